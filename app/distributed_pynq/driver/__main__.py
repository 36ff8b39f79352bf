"""The process that owns a board's device: requests in, answers out, one JSON line each.

Run as ``PYTHON distributed_pynq/driver`` by the interpreter that owns pynq (Python 3.6 or newer),
with BOARD set on a Zynq board, and DEVICE on a machine with several: a device's index (0, xrt0),
PCIe address or name. It uses the standard library and the board's own modules alone. With the
argument "devices" it prints which there are, and ends; with devices named after that, it fails
unless there is each of them.

It says ``{"ready": true, ...}`` once the device is open. Then, for each line it reads:

``{"do": "load", "job": NAME, ...}``
    Load what the job needs into the device: NAME.py beside this file, whose class ``Job`` takes the
    other fields. Once per process; loading the same again changes nothing.
``{"do": "run", ...}``
    Process one batch: ``Job.run`` takes the other fields.

Another kind of job is one more such file, and one beside job.py on the host's side.

Answers are ``{"ok": true, ...}`` or ``{"ok": false, "error": "ValueError: ..."}``; after either it
goes on. It ends when its input ends or at SIGTERM, which waits for a call into C++ to return.
"""

import importlib
import inspect
import json
import os
import signal
import sys
import time
import traceback
import types

import _device

FOLDER = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "distributed_pynq_driver"


class Driver:
    """What is loaded into the device, and the answers to requests about it."""

    def __init__(self):
        self._loaded = None
        self._job = None

    def answer(self, line):
        """Do what one line of input asks for, and describe what came of it as a dict."""
        try:
            request = json.loads(line.decode())
            if not isinstance(request, dict):
                raise ValueError(f"a request is a JSON object, not {line.decode().strip()}")
            do = request.pop("do", None)
            if do == "load":
                return dict(self._load(request), ok=True)
            if do == "run":
                return dict(self._run(request), ok=True)
            raise ValueError(f"field 'do': {do!r} is neither 'load' nor 'run'")
        except Exception as error:
            if not isinstance(error, (OSError, ValueError)):
                traceback.print_exc()
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _load(self, request):
        started = time.monotonic()
        if self._job is None:
            settings = dict(request)
            job = _find_job(settings.pop("job", None))
            self._job = job(**_arguments(job, settings))
            self._loaded = request
        elif request != self._loaded:
            loaded = json.dumps(self._loaded, sort_keys=True)
            raise ValueError(f"this process has loaded {loaded}; another load needs a fresh one")
        return dict(self._job.description, seconds=time.monotonic() - started)

    def _run(self, request):
        if self._job is None:
            raise ValueError("field 'do': nothing is loaded yet to 'run'")
        return self._job.run(**_arguments(self._job.run, request))


def _find_job(name):
    names = sorted(
        file[:-3] for file in os.listdir(FOLDER) if file.endswith(".py") and file[0] != "_"
    )
    if name not in names:
        raise ValueError(f"field 'job': no {name!r} here, only {', '.join(names)}")
    return importlib.import_module(f"{PACKAGE}.{name}").Job


def _arguments(function, request):
    """Check a request against the function that takes it, whose annotations are the types."""
    parameters = inspect.signature(function).parameters
    for field in sorted(request):
        if field not in parameters:
            raise ValueError(f"field {field!r}: unknown, only {', '.join(parameters)}")
    for field, parameter in parameters.items():
        if field not in request:
            if parameter.default is parameter.empty:
                raise ValueError(f"field {field!r} is missing")
        elif type(request[field]) is not parameter.annotation:
            kind, found = parameter.annotation.__name__, json.dumps(request[field])
            raise ValueError(f"field {field!r}: {kind} expected, not {found}")
    return request


def _end(signum, frame):
    sys.exit(0)


def _claim_pipes():
    """Take stdin and stdout for the protocol; what the board's modules print goes to stderr."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(requests, "rb"), answers


def _import_pynq():
    # bnn's C++ code takes SIGINT over at every call and ends the process at Ctrl-C, which a
    # terminal sends to the whole process group. The worker decides when this process ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, _end)
    import pynq

    # pynq up to 2.6.2 has a Python handler for segmentation faults, with which a process that has
    # one spins for ever rather than dies.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    return pynq


def _open_device():
    """Open the device that DEVICE chooses, and say what it is."""
    try:
        device = _device.open_device(_import_pynq(), os.environ.get("DEVICE") or "0")
    except _device.NoDevice as error:
        sys.exit(str(error))
    if not device.address and "BOARD" not in os.environ:
        sys.exit("BOARD is not set; bnn needs it to be Pynq-Z1, Pynq-Z2 or Ultra96")
    return {
        "ready": True,
        "python": "{}.{}.{}".format(*sys.version_info),
        "board": os.environ.get("BOARD", device.name),
        "device": device.id,
        "name": device.name,
        "pid": os.getpid(),
    }


def main():
    """Answer requests until there are no more."""
    # Python puts the folder of this file on the path, and its jobs might hide the board's modules:
    # they are a package.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != FOLDER]
    sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    sys.modules[PACKAGE].__path__ = [FOLDER]
    requests, answers = _claim_pipes()
    if sys.argv[1:2] == ["devices"]:
        found = _device.find(_import_pynq())
        try:
            _device.choose_all(found, sys.argv[2:])
        except _device.NoDevice as error:
            sys.exit(str(error))
        os.write(answers, json.dumps([device.description for device in found]).encode() + b"\n")
        return
    driver = Driver()
    answer = _open_device()
    while True:
        os.write(answers, json.dumps(answer).encode() + b"\n")
        line = requests.readline()
        if not line:
            break
        answer = driver.answer(line)


if __name__ == "__main__":
    main()
