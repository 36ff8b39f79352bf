"""Servers with several cards: the double of pynq, and the driver that takes one card of them."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

APP = Path(__file__).resolve().parents[2] / "app"
DRIVER = APP / "distributed_pynq" / "driver"
STANDIN = APP / "standin"
FIRST, TWIN, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:c1:1f.1"
CARDS = {
    "XILINX_XRT": "/opt/xilinx/xrt",
    "DISTRIBUTED_PYNQ_STANDIN_DEVICES": f"u50@{FIRST}, u50@{TWIN},u200@{THIRD}",
}
THERE = f"0 {FIRST} u50; 1 {TWIN} u50; 2 {THIRD} u200"


@pytest.fixture(scope="session", params=["own", "3.6", "3.13"])
def python(request, board_python):
    return sys.executable if request.param == "own" else board_python(request.param)


@pytest.fixture
def environment(tmp_path):
    """Of a server with three cards."""
    kept = {name: value for name, value in os.environ.items() if "PYNQ" not in name}
    own = {"PYTHONPATH": str(STANDIN), "DISTRIBUTED_PYNQ_TMPFS": str(tmp_path)}
    return {**kept, **own, **CARDS}


@pytest.fixture
def server(python, environment, tmp_path):
    """Run Python code on the server; what it printed, or the last line of what went wrong."""

    def server(code, **changes):
        env = {**environment, **changes}
        done = subprocess.run(
            [python, "-c", PRELUDE + textwrap.dedent(code)],
            cwd=tmp_path,
            env={name: value for name, value in env.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stderr.splitlines()[-1] if done.returncode else done.stdout.strip()

    return server


PRELUDE = """\
import os, sys, threading, warnings
import numpy as np, pynq
warnings.simplefilter("ignore")

def load(number=0):
    pynq.Device.active_device = pynq.Device.devices[number]
    return pynq.Overlay("intro.xclbin")

"""


class Driver:
    """A driver under test."""

    def __init__(self, python, environment, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [python, DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def add(self, *vectors):
        np.array(vectors, "<u4").tofile(self.folder / "in")
        files = {"input": str(self.folder / "in"), "output": str(self.folder / "out")}
        answer = self.ask(do="run", **files, size=len(vectors[0]))
        if answer and answer["ok"]:
            assert answer["seconds"] > 0
            return np.fromfile(self.folder / "out", "<u4").tolist()
        return answer

    def last_words(self):
        assert self.answer() is None
        assert self.process.wait(60) == 1
        return self.process.stderr.read().decode().splitlines()[-1]


@pytest.fixture
def start(python, environment, tmp_path):
    """Start a driver on the server; none outlives the test."""
    started = []

    def start(device, **changes):
        env = {**environment, "DEVICE": device, **changes}
        started.append(Driver(python, env, tmp_path))
        return started[-1]

    yield start
    for driver in started:
        with driver.process:
            driver.process.kill()


# -- the double ----------------------------------------------------------------------------------


def test_cards_and_their_names(server):
    code = """
        print([(d.tag, d.name, hex(d.device_info.mPciSlot)) for d in pynq.Device.devices])
        print(pynq.Device.active_device is pynq.Device.devices[0])
    """
    assert server(code).splitlines() == [
        "[('xrt0', 'u50', '0x100'), ('xrt1', 'u50', '0x200'), ('xrt2', 'u200', '0xc1f9')]",
        "True",
    ]


def test_a_board_has_one_device(server):
    code = "print([(d.tag, d.name) for d in pynq.Device.devices])"
    zynq = {"DISTRIBUTED_PYNQ_STANDIN_DEVICES": None, "BOARD": "Pynq-Z2"}
    assert server(code, **zynq) == "[('xlnk', 'Pynq-Z2')]"


def test_no_card_is_found_without_xrt(server):
    assert server("print(pynq.Device.devices)", XILINX_XRT=None) == "[]"
    for code in ('pynq.Overlay("intro.xclbin")', "pynq.allocate(4)", "pynq.PL.bitfile_name"):
        assert server(code, XILINX_XRT=None) == "RuntimeError: No Devices Found"


def test_cards_are_opened_in_the_main_thread(server):
    code = """
        def probe():
            try:
                pynq.Device.devices
            except RuntimeError as error:
                print(error)
        thread = threading.Thread(target=probe, name="T")
        thread.start()
        thread.join()
    """
    assert server(code) == "There is no current event loop in thread 'T'."


def test_vectors_are_added_on_the_card(server):
    code = """
        ol = load(1)
        a, b, out = (pynq.allocate((2, 3), np.uint32) for _ in range(3))
        a[:], b[:] = [[1, 2, 3], [4, 5, 6]], 2**32 - 2
        a.sync_to_device()
        b.sync_to_device()
        a[:] = 7                             # not synced: the card knows nothing of it
        ol.vadd_1.call(a, b, out, 5)
        print(out.tolist())                  # not synced: stale
        out.sync_from_device()
        print(out.tolist(), a.device.tag)
        out[1].sync_to_device()
        ol.vadd_1.call(out[1], out[1], out[0], 3)
        out.sync_from_device()
        print(out.tolist())
    """
    assert server(code).splitlines() == [
        "[[0, 0, 0], [0, 0, 0]]",
        "[[4294967295, 0, 1], [2, 3, 0]] xrt1",
        "[[4, 6, 0], [2, 3, 0]]",
    ]


def test_a_kernel_sees_bytes(server):
    code = """
        ol = load()
        a, out = pynq.allocate((2,), "u2"), pynq.allocate((1,))
        a[:] = 1
        a.sync_to_device()
        ol.vadd_1.call(a, a, out, 1)
        out.sync_from_device()
        print(hex(out[0]))
    """
    assert server(code) == "0x20002"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("pynq.allocate(4)", "RuntimeError: No active memories in design"),
        ('pynq.Overlay("other.xclbin")', "OSError: Bitstream file other.xclbin does not exist."),
        ("load().vsub_1", "AttributeError: Could not find IP or hierarchy vsub_1 in overlay"),
        ("ol = load()\nol.free()\nol.vadd_1", "RuntimeError: Overlay not currently loaded"),
        ("load()\na = pynq.allocate(4)\na[:] = np.zeros(3)", "ValueError: could not broadcast"),
        (
            "ol = load()\na = np.zeros(4, 'u4')\nol.vadd_1.call(a, a, a, 4)",
            "AttributeError: 'numpy.ndarray' object has no attribute 'device_address'",
        ),
        ("ol = load()\na = pynq.allocate(4)\nol.vadd_1.call(a, a, a, 1.5)", "struct.error"),
        (
            "ol = load()\na = pynq.allocate(4)\nol.vadd_1.call(a, a, a, 5)",
            "RuntimeError: Execution failed: 5",
        ),
        (
            "load()\na = pynq.allocate(4)\nload(1).vadd_1.call(a, a, a, 4)",
            "RuntimeError: Execution failed: 5",
        ),
        (
            "load()\na = pynq.allocate(4)\na.freebuffer()\na.sync_to_device()",
            "RuntimeError: Flush Failed",
        ),
        (
            "ol = load()\na = pynq.allocate(4)\nol.device.close()\na.sync_from_device()",
            "RuntimeError: Invalidate Failed",
        ),
    ],
)
def test_fails_as_the_real_one(server, code, error):
    assert server(code).startswith(error)


def test_device_memory_is_freed_with_its_buffer(server):
    code = """
        load()
        for _ in range(3):
            a = pynq.allocate(1000)
            part = a[500:]
            del a, part
        print(len(pynq.Device.active_device._memory))
    """
    assert server(code) == "0"


def test_a_pulled_card(server, tmp_path):
    pulled = {"DISTRIBUTED_PYNQ_STANDIN_PULLED": str(tmp_path)}
    (tmp_path / TWIN).touch()
    names = "print([(d.tag, d.name) for d in pynq.Device.devices])"
    assert server(names, **pulled) == "[('xrt0', 'u50'), ('xrt1', 'u200')]"
    pull = "open(f'{os.environ[\"DISTRIBUTED_PYNQ_STANDIN_PULLED\"]}/0000:01:00.0', 'w')\n"
    for code, error in [
        (f"ol, a = load(), pynq.allocate(4)\n{pull}ol.vadd_1.call(a, a, a, 4)", "Buffer submit"),
        (f"load()\na = pynq.allocate(4)\n{pull}a.sync_to_device()", "Flush Failed: 4294967277"),
        (f"load()\n{pull}pynq.allocate(4)", "Allocate failed: 4294967277"),
        (f"pynq.Device.devices\n{pull}load()", "Could not lock device"),
    ]:
        (tmp_path / FIRST).unlink(missing_ok=True)
        assert server(code, **pulled).startswith(f"RuntimeError: {error}")


@pytest.mark.parametrize("text", ["", "u50", "u50@1:0.0", f"u50@{FIRST},u200@{FIRST}"])
def test_wrong_settings_are_named(server, text):
    told = server("pynq.Device.devices", DISTRIBUTED_PYNQ_STANDIN_DEVICES=text)
    assert told.startswith("ValueError: DISTRIBUTED_PYNQ_STANDIN_DEVICES=")


# -- the driver ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "device"),
    [
        ("0", FIRST),
        ("xrt1", TWIN),
        (TWIN, TWIN),
        ("C1:1F.1", THIRD),
        ("u200", THIRD),
        ("", FIRST),
    ],
)
def test_the_driver_takes_the_device_it_is_told(start, wanted, device):
    name = "u200" if device == THIRD else "u50"
    ready = start(wanted).answer()
    assert ready["ready"]
    assert (ready["device"], ready["name"], ready["board"]) == (device, name, name)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("3", f"no such device here, only {THERE}"),
        ("u250", f"no such device here, only {THERE}"),
        ("u50", f"2 devices have that name; choose by index or address: {THERE}"),
    ],
)
def test_the_driver_says_which_devices_there_are(start, wanted, told):
    assert start(wanted).last_words() == f"DEVICE={wanted}: {told}"


def test_no_device(start, environment):
    del environment["XILINX_XRT"]
    told = "DEVICE=0: pynq finds no device here; XILINX_XRT is not set"
    assert start("0").last_words() == told


def test_a_device_has_one_driver(start):
    first = start("xrt1")
    assert first.answer()["ready"]
    told = f"DEVICE={TWIN}: claimed by another process; here are {THERE}"
    assert start(TWIN).last_words() == told
    assert start(THIRD).answer()["ready"]
    first.process.kill()
    first.process.wait()
    assert start(TWIN).answer()["ready"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_device_is_claimed_by_any_user(server):
    code = f"""
        sys.path.insert(0, {str(DRIVER)!r})
        import _device
        os.umask(0o077)
        os.setuid(int(os.environ["USER_ID"]))
        try:
            print(_device.open_device(pynq, "xrt1"))
        except _device.NoDevice as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        lock = Path(folder, f"distributed-pynq-{TWIN}.lock")
        for user in ("0", "65534", "0"):
            told = server(code, USER_ID=user, DISTRIBUTED_PYNQ_TMPFS=folder)
            assert told == f"1 {TWIN} u50"
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            told = server(code, USER_ID="65534", DISTRIBUTED_PYNQ_TMPFS=folder)
            assert told == f"DEVICE=xrt1: claimed by another process; here are {THERE}"
        lock.chmod(0o600)
        told = server(code, USER_ID="65534", DISTRIBUTED_PYNQ_TMPFS=folder)
        refused = f"[Errno 13] Permission denied: '{lock}'"
        assert told == f"DEVICE=xrt1: {refused}; here are {THERE}"


def test_the_driver_leaves_the_other_cards_closed(server):
    code = f"""
        sys.path.insert(0, {str(DRIVER)!r})
        import _device
        device = _device.open_device(pynq, "xrt1")
        print([d.handle for d in pynq.Device.devices], pynq.Device.active_device.tag)
    """
    assert server(code) == "[None, 1, None] xrt1"


def test_the_driver_lists_devices(python, environment):
    listed = subprocess.check_output([python, DRIVER, "devices"], env=environment)
    assert json.loads(listed) == [
        {"index": 0, "device": FIRST, "name": "u50"},
        {"index": 1, "device": TWIN, "name": "u50"},
        {"index": 2, "device": THIRD, "name": "u200"},
    ]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([THIRD, "xrt1", "0"], ""),
        (["xrt1", "7"], f"DEVICE=7: no such device here, only {THERE}"),
        (["u50"], f"DEVICE=u50: 2 devices have that name; choose by index or address: {THERE}"),
        (["1", TWIN], f"DEVICE={TWIN}: the same as 1; here are {THERE}"),
    ],
)
def test_the_driver_looks_for_devices(python, environment, wanted, told):
    command = [python, DRIVER, "devices", *wanted]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == bool(told)
    assert not told or run.stderr.splitlines()[-1] == told


def test_the_driver_adds_vectors(start, tmp_path):
    driver = start(TWIN)
    driver.answer()
    load = {"do": "load", "job": "vadd"}
    refused = driver.ask(**load, overlay="other.xclbin")
    assert refused["error"] == "OSError: Bitstream file other.xclbin does not exist."
    assert driver.ask(**load)["error"] == "ValueError: field 'overlay' is missing"
    assert driver.ask(**load, overlay="intro.xclbin")["ok"]
    assert driver.add([1, 2**32 - 1], [2, 3]) == [3, 2]
    files = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    short = driver.ask(do="run", **files, size=3)["error"]
    assert short.endswith("in has 16 bytes, two vectors of 3 have 24")
    assert not driver.ask(do="run", **files, size=0)["ok"]
    assert driver.add(range(100_000), range(100_000)) == list(range(0, 200_000, 2))


def test_a_driver_ends_when_its_card_is_pulled(start, tmp_path):
    pulled = {"DISTRIBUTED_PYNQ_STANDIN_PULLED": str(tmp_path)}
    driver = start(FIRST, **pulled)
    driver.answer()
    assert driver.ask(do="load", job="vadd", overlay="intro.xclbin")["ok"]
    assert driver.add([1], [2]) == [3]
    (tmp_path / FIRST).touch()
    assert driver.add([1], [2]) is None
    assert driver.last_words() == "the card failed: Allocate failed: 4294967277"
    gone = start(FIRST, **pulled).last_words()
    assert gone == f"DEVICE={FIRST}: no such device here, only 0 {TWIN} u50; 1 {THIRD} u200"
    (tmp_path / FIRST).unlink()
    assert start(FIRST, **pulled).answer()["ready"]
