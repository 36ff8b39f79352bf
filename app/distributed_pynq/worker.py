"""The network side of a board: a Dask preload that keeps one device's driver alive, and its tasks.

The worker process never touches the device. It starts the driver (``driver/``) in the interpreter
that owns pynq, asks it in JSON lines over a pipe, and hands records over through tmpfs, since
bnn-pynq takes only paths. Every answer has a time limit; a driver that dies or hangs is replaced,
and the fault is reported to the job, which decides what becomes of the chunk.

Runs on Python 3.6 with distributed 2021.3.0 up to the newest of both. Environment:

``DISTRIBUTED_PYNQ_DRIVER_PYTHON``  interpreter that owns pynq, by default this one
``DISTRIBUTED_PYNQ_TMPFS``          folder in memory for records, by default /dev/shm
``DISTRIBUTED_PYNQ_PROVEN``         file that names the installation that passed a test; another
                                    gets no records before `admit`
``NOTIFY_SOCKET``                   set by systemd, which is told READY=1 and WATCHDOG=1
"""

import asyncio
import collections
import contextlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import distributed
from distributed.protocol.serialize import dask_deserialize, dask_serialize
from tornado.ioloop import PeriodicCallback

from distributed_pynq import __version__

try:
    from pickle import PickleBuffer
except ImportError:  # Python < 3.8
    PickleBuffer = bytes  # type: ignore[assignment, misc]

# Chunks on the board at a time: one with the driver, one laid ready in memory. Each takes a thread
# of the worker and one of its resource FPGA: what Dask does between two tasks costs no FPGA time.
BAYS = 2
DRIVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "driver")
PROVEN = os.environ.get("DISTRIBUTED_PYNQ_PROVEN")
# With links resolved: each release is one of its own.
INSTALLATION = os.path.realpath(sys.prefix)
START_LIMIT_S = 60.0
LOAD_LIMIT_S = 120.0
STOP_LIMIT_S = 5.0
WATCHDOG_INTERVAL_MS = 5000


class DeviceFault(Exception):
    """The driver died, hung or could not be fed: the device failed, the records may be innocent."""


class RequestError(Exception):
    """The driver lives and refuses the request, and would refuse it again."""


class LoadError(RequestError):
    """The driver refuses the job itself, e.g. lacks its parameter set, whatever the records."""


class _Unanswered(Exception):
    """The driver went with another request before this one's turn came."""


class Records:
    """The bytes of consecutive records, which travel out of band where both ends can do so.

    Parameters
    ----------
    buffer : bytes-like
        Records in the form they travel in (job.Job.encode).
    """

    __slots__ = ("buffer",)

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        wrap = PickleBuffer if protocol >= 5 else bytes
        return Records, (wrap(self.buffer),)


class Driver:
    """One process that owns the device: started, asked and, where need be, killed.

    It finds the next request in its pipe when it is done with one, so that the device need not wait
    for this process. Threads may send while others receive; answers come in the order of requests.

    Parameters
    ----------
    python : str
        Path of the interpreter that owns pynq.

    Attributes
    ----------
    loaded : tuple or None
        What is loaded, and the answer to that.
    fault : str
        Why it is gone, or empty.

    Raises
    ------
    DeviceFault
        The process did not come up, with the last lines it printed.
    """

    def __init__(self, python):
        self.loaded = None
        self.fault = ""
        self._answers = b""
        self._turn = threading.Condition()
        self._sent = self._answered = 0
        self._process = subprocess.Popen(
            [python, DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._printed = collections.deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.device = self._answer(START_LIMIT_S, "start")

    @property
    def alive(self):
        """Whether the process still runs."""
        return self._process.poll() is None

    def send(self, request):
        """Send a request, and return what `receive` knows it by: its number, and what it does."""
        with self._turn:
            # Of one that is dead, or stopped already, whoever waits for the answer learns.
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._sent += 1
            return self._sent, request["do"]

    def receive(self, sent, limit):
        """Wait for the answer to a request; its ``limit`` of seconds begins when its turn comes.

        Raises
        ------
        DeviceFault
            The driver died or gave no answer in time; it is gone now.
        RequestError
            The driver refused, in its own words.
        _Unanswered
            It is gone because of a request before this one.
        """
        number, what = sent
        with self._turn:
            self._turn.wait_for(lambda: self.fault or self._answered == number - 1)
            if self.fault:
                raise _Unanswered
        try:
            answer = self._answer(limit, what)
        finally:
            with self._turn:
                self._answered = number
                self._turn.notify_all()
        if not answer["ok"]:
            raise RequestError(answer["error"])
        return answer

    def settle(self):
        """Wait until no answer is outstanding."""
        with self._turn:
            self._turn.wait_for(lambda: self.fault or self._answered == self._sent)

    def stop(self):
        """End the process: politely, then not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _listen(self):
        with self._process.stderr as printed:
            for line in printed:
                self._printed.append(line.decode(errors="replace").rstrip())

    def _answer(self, limit, what):
        deadline = time.monotonic() + limit
        stdout = self._process.stdout
        while b"\n" not in self._answers:
            ready, _, _ = select.select([stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise self._fault("gave no answer to '{}' in {:g} s".format(what, limit))
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                raise self._fault("died during '{}'".format(what))
            self._answers += piece
        line, self._answers = self._answers.split(b"\n", 1)
        return json.loads(line.decode())

    def _fault(self, what):
        died = what.startswith("died")
        if not died:
            self._process.kill()
        self.stop()
        self._listener.join(1)
        code = self._process.returncode
        if died and code < 0:
            what += " ({})".format(signal.Signals(-code).name)
        elif died:
            what += " (exit code {})".format(code)
        printed = [line for line in self._printed if line.strip()]
        self.fault = "driver " + what + (": " + printed[-1] if printed else "")
        return DeviceFault(self.fault)


class Device:
    """This worker's device: a driver that is always there, and the tmpfs folder that feeds it."""

    def __init__(self):
        self._python = os.environ.get("DISTRIBUTED_PYNQ_DRIVER_PYTHON", sys.executable)
        tmpfs = os.environ.get("DISTRIBUTED_PYNQ_TMPFS", "/dev/shm")
        self._folder = tempfile.mkdtemp(
            prefix="distributed-pynq-", dir=tmpfs if os.path.isdir(tmpfs) else None
        )
        self._bays = queue.Queue()
        for number in range(BAYS):
            self._bays.put(os.path.join(self._folder, str(number)))
        self._lock = threading.Lock()
        self._driver = None
        self._closing = False
        self._faults = []
        self._fault = ""
        self._require_driver()

    @property
    def description(self):
        """What the driver said of itself: board, device, name, python, pid; and 'fault', why none
        can be started, or empty.
        """
        return dict(self._driver.device, fault=self._fault)

    @property
    def busy(self):
        """Whether there is a task for the driver."""
        return self._lock.locked() or self._bays.qsize() < BAYS

    def load(self, job, settings):
        """Load what a job needs into the device, unless it is loaded already.

        Returns
        -------
        dict
            The driver's answer to 'load'.
        """
        with self._lock:
            return self._load(job, settings).loaded[1]

    def run(self, job, settings, payload, request, limit):
        """Have the driver process one payload.

        Parameters
        ----------
        job, settings : str, dict
            What must be loaded.
        payload : bytes-like
            Written to the input file on tmpfs.
        request : dict
            Further fields of the driver's 'run'.
        limit : float
            Seconds until the driver counts as hung.

        Returns
        -------
        dict
            The driver's answer, with 'output' (bytes), 'device', 'memory' (bytes of the board) and
            'faults' (list of str), those that happened here since the last answer.
        """
        bay = self._bays.get()
        try:
            files = {"input": bay + ".input", "output": bay + ".output"}
            self._write(files["input"], payload)
            answer = self._ask(job, settings, dict(request, do="run", **files), limit)
            answer["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            with open(files["output"], "rb") as file:
                answer["output"] = file.read()
            return answer
        finally:
            self._bays.put(bay)

    def close(self):
        """Stop the driver and leave nothing on tmpfs."""
        self._closing = True
        if self._driver is not None:
            self._driver.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, path, payload):
        try:
            with open(path, "wb", buffering=0) as file:
                view = memoryview(payload).cast("B")
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            if os.path.exists(path):
                os.remove(path)
            raise DeviceFault("{}: {}".format(self._folder, error.strerror)) from None

    def _ask(self, job, settings, request, limit):
        while True:
            with self._lock:
                driver = self._load(job, settings)
                sent = driver.send(request)
            try:
                answer = driver.receive(sent, limit)
            except _Unanswered:
                continue
            with self._lock:
                answer["faults"], self._faults = self._faults, []
            answer["device"] = driver.device["device"]
            return answer

    def _load(self, job, settings):
        """The driver, with that loaded."""
        wanted = dict(settings, job=job)
        driver = self._require_driver()
        if driver.loaded is not None and driver.loaded[0] != wanted:
            driver.settle()
            driver.stop()
            driver = self._require_driver(expected=True)
        if driver.loaded is None:
            sent = driver.send(dict(wanted, do="load"))
            try:
                driver.loaded = wanted, driver.receive(sent, LOAD_LIMIT_S)
            except RequestError as error:
                raise LoadError(str(error)) from None
        return driver

    def _require_driver(self, expected=False):
        if self._driver is not None and not self._driver.alive and not expected:
            self._driver.settle()
            if not self._driver.fault:
                self._faults.append("driver died while idle")
            self._driver.stop()
        if self._driver is None or not self._driver.alive:
            if self._closing:
                raise DeviceFault("the worker is leaving")
            try:
                self._driver = Driver(self._python)
            except DeviceFault as fault:
                self._fault = str(fault)
                raise
            self._fault = ""
            # An index is another device's once one is pulled; this is the same for ever.
            os.environ["DEVICE"] = self._driver.device["device"]
        return self._driver


_device = None


def load(job, settings):
    """Task: load what a job needs into this worker's device.

    Parameters
    ----------
    job : str
        Its kind, a file in driver/: "classify".
    settings : dict
        What the driver's 'load' takes, e.g. {"network": "cnvW1A1", "params": "cifar10"}.

    Returns
    -------
    dict
        What the driver answered, e.g. 'classes' and 'seconds' (of the load), and what `describe`
        does.
    """
    return dict(_device.load(job, settings), **describe())


def run(job, settings, records, request, limit):
    """Task: process one chunk on this worker's device.

    Parameters
    ----------
    job, settings : str, dict
        What must be loaded.
    records : Records
        The chunk.
    request : dict
        What the driver's 'run' takes besides files, e.g. {"records": 250, "scores": False}.
    limit : float
        Seconds until the driver counts as hung.

    Returns
    -------
    dict
        'output': what the driver wrote, bytes; 'seconds' of accelerator time; 'device'; 'memory' of
        the board in bytes; 'faults'.
    """
    return _device.run(job, settings, records.buffer, request, limit)


def describe():
    """What this worker is: its device's 'board', 'device', 'name', 'python', 'pid' and 'fault', why
    it cannot be opened any more, or empty; 'host'; 'distributed' and 'distributed_pynq', versions;
    'proven', whether its installation has passed a test.
    """
    versions = {"distributed": distributed.__version__, "distributed_pynq": __version__}
    return dict(_device.description, host=socket.gethostname(), proven=_proven(), **versions)


async def admit(dask_worker):
    """Let a worker have records from now on, since its installation has passed a test."""
    if PROVEN:
        with open(PROVEN, "w") as file:
            file.write(INSTALLATION)
    await dask_worker.set_resources(FPGA=BAYS)


@dask_serialize.register_lazy("pyarrow")
@dask_deserialize.register_lazy("pyarrow")
def _use_own_arrow_serialiser():
    # Called once something from pyarrow passes by, which on a board without it never does.
    from . import arrow  # noqa: F401


def dask_setup(worker):
    """Open the device before the worker registers; without it there is no worker to be."""
    global _device
    try:
        _device = Device()
    except Exception as error:
        # Dask swallows what a preload raises and would register a worker without a device.
        print("distributed-pynq: {}".format(error), file=sys.stderr, flush=True)
        os._exit(1)
    if _proven():
        state = getattr(worker, "state", worker)
        state.total_resources["FPGA"] = state.available_resources["FPGA"] = BAYS
    if "NOTIFY_SOCKET" in os.environ:
        worker.periodic_callbacks["systemd"] = PeriodicCallback(
            lambda: _notify_systemd(worker), WATCHDOG_INTERVAL_MS
        )
        worker.loop.add_callback(_notify_until_ready, worker)
    _leave_when_asked(worker)


def dask_teardown(worker):
    """Close the device when the worker leaves."""
    _device.close()


def _proven():
    if not PROVEN:
        return True
    try:
        with open(PROVEN) as file:
            return file.read() == INSTALLATION
    except FileNotFoundError:
        return False


def _leave_when_asked(worker):
    # Without a nanny SIGTERM ends a Dask worker in the middle of what it does.
    end = signal.getsignal(signal.SIGTERM)

    def leave():
        if worker.status.name == "running":
            worker.loop.add_callback(_leave, worker)
        else:
            end(signal.SIGTERM, None)

    asyncio.get_event_loop().add_signal_handler(signal.SIGTERM, leave)


async def _leave(worker):
    # The scheduler sends nothing new, which retiring alone prevents since 2022 only; the task in
    # the device ends, and its answer is fetched.
    await worker.set_resources(FPGA=0)
    await worker.scheduler.retire_workers(workers=[worker.address], remove=False)
    while _device.busy or worker.data:
        await asyncio.sleep(0.05)
    await worker.close()


async def _notify_until_ready(worker):
    while worker.status.name != "running":
        await asyncio.sleep(0.1)
    _notify_systemd(worker)
    worker.periodic_callbacks["systemd"].start()


def _notify_systemd(worker):
    if worker.status.name != "running":
        return
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1\nWATCHDOG=1", address)
