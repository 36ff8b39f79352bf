"""The driver as a process of its own, under the interpreters that boards have, on the doubles."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import parameter_sets
from overlays import classes, plain
from overlays.parameters import read

APP = Path(__file__).resolve().parents[2] / "app"
DRIVER = APP / "distributed_pynq" / "driver"
STANDIN = APP / "standin"
LIMIT_S = 60  # for what takes a second at most
CNV = ["cnvW1A1", "cnvW1A2", "cnvW2A2"]
LFC = ["lfcW1A1", "lfcW1A2"]


@pytest.fixture(scope="session", params=["own", "3.6", "3.13"])
def python(request, board_python):
    """Interpreters of boards: the oldest and the newest, and this one, which may have numba."""
    return sys.executable if request.param == "own" else board_python(request.param)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Folder with a random parameter set "noise" for each network, and "other" for lfcW1A1."""
    root = tmp_path_factory.mktemp("params")
    for network in CNV + LFC:
        parameter_sets.write(root, "noise", network)
    parameter_sets.write(root, "other", "lfcW1A1", seed=1, classes=3)
    for network in CNV:
        parameter_sets.write(root, "cifar10", network, seed=2)
    return root


class Driver:
    """A driver under test, and what it prints besides its answers."""

    def __init__(self, python, folder, sets, **env):
        own = {"DISTRIBUTED_PYNQ_PARAMS": str(sets), "DISTRIBUTED_PYNQ_TMPFS": str(folder)}
        env = {"BOARD": "Pynq-Z1", **own, **env}
        kept = {key: value for key, value in os.environ.items() if "PYNQ" not in key}
        self.folder = folder
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [python, DRIVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**kept, "PYTHONPATH": str(STANDIN), **env},
            )

    def send(self, request):
        line = request if isinstance(request, bytes) else json.dumps(request).encode()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, request):
        self.send(request)
        return self.answer()

    def load(self, network="lfcW1A1", params="noise"):
        return self.ask({"do": "load", "job": "classify", "network": network, "params": params})

    def request(self, payload, records, **fields):
        """A request to classify ``payload``."""
        (self.folder / "in").write_bytes(payload)
        files = {"input": str(self.folder / "in"), "output": str(self.folder / "out")}
        return {"do": "run", **files, "records": records, "scores": False, **fields}

    def result(self):
        return np.fromfile(self.folder / "out", "<i2")

    def wait(self):
        return self.process.wait(LIMIT_S)

    def wait_until_printed(self, text):
        deadline = time.monotonic() + LIMIT_S
        while text not in self.errors.read_text():
            assert time.monotonic() < deadline, f"{text!r} not printed: {self.errors.read_text()}"
            time.sleep(0.01)


@pytest.fixture
def start(python, sets, tmp_path):
    """Start a driver with further settings in its environment; none outlives the test."""
    started = []

    def start(**env):
        driver = Driver(python, tmp_path, sets, **env)
        started.append(driver)
        return driver

    yield start
    for driver in started:
        with driver.process:
            driver.process.kill()


@pytest.fixture
def driver(start):
    """A driver that has said it is ready."""
    driver = start()
    assert driver.answer()["ready"]
    return driver


def records(count, size=3073):
    return np.random.default_rng(2).integers(0, 256, (count, size), np.uint8)


def bits(images):
    """LFC images in the form they travel in."""
    return np.packbits(images >= 128, axis=1).tobytes()


def test_ready(start, python):
    version = subprocess.check_output(
        [python, "-c", "import platform as p; print(p.python_version())"]
    )
    driver = start(BOARD="Pynq-Z2", DEVICE="Pynq-Z2")
    assert driver.answer() == {
        "ready": True,
        "python": version.decode().strip(),
        "board": "Pynq-Z2",
        "device": "0",
        "name": "Pynq-Z2",
        "pid": driver.process.pid,
    }


def test_refuses_to_start_without_board(python, tmp_path):
    env = {"PYTHONPATH": str(STANDIN), "DISTRIBUTED_PYNQ_TMPFS": str(tmp_path)}
    done = subprocess.run([python, DRIVER], env=env, capture_output=True, text=True, input="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("BOARD is not set")


@pytest.mark.parametrize("network", CNV)
def test_classifies_colour_images(driver, sets, network):
    images = records(5)
    scores = plain.Overlay(read(sets / "noise" / network)).scores(images)
    loaded = driver.load(network)
    assert loaded["ok"] and loaded["classes"] == [f"noise {index}" for index in range(10)]
    assert driver.ask(driver.request(images.tobytes(), 5))["ok"]
    expected = classes.cnv_many(scores, 10)
    np.testing.assert_array_equal(driver.result(), expected)
    assert driver.ask(driver.request(images[:4].tobytes(), 4, scores=True))["ok"]
    np.testing.assert_array_equal(driver.result()[:4], expected[:4])
    np.testing.assert_array_equal(driver.result()[4:].reshape(4, 10), scores[:4, :10])


@pytest.mark.parametrize("network", LFC)
def test_classifies_bits(driver, sets, network):
    images = records(300, 784)
    words = plain.Overlay(read(sets / "noise" / network)).words(images)
    assert driver.load(network)["ok"]
    assert driver.ask(driver.request(bits(images), 300))["ok"]
    np.testing.assert_array_equal(driver.result(), classes.lfc_many(words, 10))
    assert not (driver.folder / "in.idx").exists()


@pytest.mark.parametrize(
    ("network", "params", "images", "golden"),
    [
        ("cnvW2A2", "cifar10", "cifar10/test_first846.bin", "cifar10-cnvW2A2-first50"),
        ("lfcW1A2", "mnist", "mnist/t10k-images-idx3-ubyte.gz", "mnist-lfcW1A2-first500"),
    ],
)
def test_agrees_with_the_runtime_of_bnn(start, shared, tmp_path, network, params, images, golden):
    expected = np.load(shared / "golden" / f"{golden}.npy")
    count, cnv = len(expected), network in CNV
    subprocess.run(
        ["tar", "-xf", shared / "data/bnn-pynq/params.tar.gz", "-C", tmp_path], check=True
    )
    opener = open if cnv else gzip.open
    with opener(shared / "data" / images, "rb") as file:
        file.seek(0 if cnv else 16)
        payload = file.read(count * (3073 if cnv else 784))
    driver = start(DISTRIBUTED_PYNQ_PARAMS=str(tmp_path))
    driver.answer()
    assert driver.load(network, params)["ok"]
    if cnv:
        assert driver.ask(driver.request(payload, count, scores=True))["ok"]
        np.testing.assert_array_equal(driver.result()[count:].reshape(count, 10), expected)
    else:
        pixels = np.frombuffer(payload, np.uint8).reshape(count, 784)
        assert driver.ask(driver.request(bits(pixels), count))["ok"]
        np.testing.assert_array_equal(driver.result(), expected)


@pytest.mark.parametrize("network", CNV)
def test_classifies_with_finn_examples(start, sets, network):
    driver = start(DISTRIBUTED_PYNQ_RUNTIME="finn-examples", BOARD="Pynq-Z2")
    assert driver.answer()["board"] == "Pynq-Z2"
    loaded = driver.load(network, "cifar10")
    assert (loaded["classes"][4], len(loaded["classes"]), loaded["scores"]) == ("Deer", 10, False)
    images = records(24)
    scores = plain.Overlay(read(sets / "cifar10" / network)).scores(images)
    # The batch is made, fits, is filled up, grows and shrinks.
    for first, last in [(0, 20), (4, 24), (5, 24), (0, 24), (23, 24)]:
        answer = driver.ask(driver.request(images[first:last].tobytes(), last - first))
        assert answer["ok"] and answer["seconds"] > 0
        expected = scores[first:last, :10].argmax(axis=1)
        np.testing.assert_array_equal(driver.result(), expected)


def test_refuses_what_finn_examples_lacks(start):
    driver = start(DISTRIBUTED_PYNQ_RUNTIME="finn-examples")
    driver.answer()
    there = ", ".join(CNV)
    bad_loads = [
        (("lfcW1A1", "noise"), f"ValueError: field 'network': no 'lfcW1A1' here, only {there}"),
        (("cnvW1A1", "noise"), "ValueError: field 'params': no 'noise' for cnvW1A1, only cifar10"),
    ]
    for load, message in bad_loads:
        answer = driver.load(*load)
        assert not answer["ok"] and answer["error"].startswith(message), answer
    assert driver.load("cnvW1A1", "cifar10")["ok"]
    answer = driver.ask(driver.request(records(1).tobytes(), 1, scores=True))
    assert answer == {"ok": False, "error": "ValueError: field 'scores': cnvW1A1 has none here"}
    assert driver.ask(driver.request(records(1).tobytes(), 1))["ok"]


def test_finds_the_runtime_that_is_installed(start, tmp_path):
    path = tmp_path / "modules"
    path.mkdir()

    def load(*modules, **env):
        for module in modules:
            (path / module).symlink_to(STANDIN / module)
        driver = start(PYTHONPATH=str(path), **env)
        driver.answer()
        answer = driver.load("cnvW1A1", "cifar10")
        driver.process.kill()
        driver.wait()
        return answer

    neither = "ValueError: no runtime is installed here, neither of bnn-pynq, finn-examples"
    assert load("pynq", "overlays")["error"] == neither
    assert load("finn_examples")["scores"] is False
    assert load("bnn")["scores"] is True
    assert load(DISTRIBUTED_PYNQ_RUNTIME="finn-examples")["scores"] is False
    unknown = "ValueError: DISTRIBUTED_PYNQ_RUNTIME='finn': expected one of bnn-pynq, finn-examples"
    assert load(DISTRIBUTED_PYNQ_RUNTIME="finn")["error"] == unknown


def test_loads_once(driver):
    first = driver.load()
    again = driver.load()
    assert first["ok"] and again["ok"] and again["classes"] == first["classes"]
    for other in [{"params": "other"}, {"network": "lfcW1A2"}]:
        answer = driver.load(**other)
        assert not answer["ok"]
        assert answer["error"].startswith("ValueError: this process has loaded")
        assert '"network": "lfcW1A1"' in answer["error"]
    assert driver.ask(driver.request(bits(records(1, 784)), 1))["ok"]


def test_names_the_parameter_sets_there_are(driver, sets):
    answer = driver.load("lfcW1A1", "mnist")
    assert not answer["ok"]
    assert answer["error"].startswith(
        f"ValueError: field 'params': no 'mnist' for lfcW1A1, only noise, other in {sets}; "
    )
    assert driver.load("lfcW1A1", "other")["classes"] == ["other 0", "other 1", "other 2"]


def test_bad_requests_get_an_error_line(driver):
    load = {"do": "load", "job": "classify", "network": "lfcW1A1", "params": "noise"}
    bad_loads = [
        (b"", "JSONDecodeError: "),
        (b"load", "JSONDecodeError: "),
        (b'{"do": ', "JSONDecodeError: "),
        (b"\xff\xfe{}", "UnicodeDecodeError: "),
        ([1], "ValueError: a request is a JSON object, not [1]"),
        ({}, "ValueError: field 'do': None is neither"),
        ({"do": "dance"}, "ValueError: field 'do': 'dance' is neither"),
        ({"do": "run"}, "ValueError: field 'do': nothing is loaded yet"),
        ({"do": "load"}, "ValueError: field 'job': no None here, only classify, vadd"),
        ({**load, "job": "../classify"}, "ValueError: field 'job': no '../classify' here"),
        ({**load, "job": "__main__"}, "ValueError: field 'job': no '__main__' here"),
        ({**load, "job": ["classify"]}, "ValueError: field 'job': no ['classify'] here"),
        (
            {**load, "network": "cnvW3A3"},
            "ValueError: field 'network': no 'cnvW3A3' here, only cnv",
        ),
        ({**load, "network": 1}, "ValueError: field 'network': str expected, not 1"),
        ({**load, "params": "../noise"}, "ValueError: field 'params': no '../noise' for lfcW1A1"),
        ({**load, "speed": 1}, "ValueError: field 'speed': unknown, only network, params"),
        (
            {"do": "load", "job": "classify", "params": "noise"},
            "ValueError: field 'network' is missing",
        ),
    ]
    for request, message in bad_loads:
        answer = driver.ask(request)
        assert not answer["ok"] and answer["error"].startswith(message), (request, answer)

    assert driver.ask(load)["ok"]
    run = driver.request(bytes(98), 1)
    missing = driver.folder / "missing"
    absent = "[Errno 2] No such file or directory"
    bad_runs = [
        (
            {**run, "records": 2},
            f"ValueError: field 'input': {run['input']} has 98 bytes, 2 records",
        ),
        ({**run, "records": 0}, "ValueError: field 'records': 0 is not in 1..10000"),
        ({**run, "records": 10001}, "ValueError: field 'records': 10001 is not in 1..10000"),
        ({**run, "records": True}, "ValueError: field 'records': int expected, not true"),
        ({**run, "records": "1"}, "ValueError: field 'records': int expected, not \"1\""),
        ({**run, "input": str(missing)}, f"FileNotFoundError: {absent}: '{missing}'"),
        ({**run, "output": f"{missing}/out"}, f"FileNotFoundError: {absent}: '{missing}/out'"),
        ({**run, "scores": True}, "ValueError: field 'scores': lfcW1A1 has none here"),
        ({**run, "limit": 3}, "ValueError: field 'limit': unknown"),
        ({"do": "run", "input": run["input"]}, "ValueError: field 'output' is missing"),
    ]
    for request, message in bad_runs:
        answer = driver.ask(request)
        assert not answer["ok"] and answer["error"].startswith(message), (request, answer)

    assert driver.ask(run)["ok"]


def test_what_bnn_prints_stays_out_of_the_answers(driver):
    driver.load()
    driver.send(driver.request(bits(records(1, 784)), 1))
    assert re.fullmatch(rb'\{"seconds": [\d.e-]+, "ok": true\}\n', driver.process.stdout.readline())
    driver.process.stdin.close()
    assert (driver.wait(), driver.process.stdout.read()) == (0, b"")
    printed = driver.errors.read_text()
    assert "Setting network weights and thresholds in accelerator...\n" in printed
    assert re.search(r"^Inference took [\d.]+ microseconds, [\d.]+ usec per image$", printed, re.M)


def test_ends_with_its_input(driver):
    driver.process.stdin.close()
    assert driver.wait() == 0


def test_sigterm_ends_it_while_idle(driver):
    driver.load()
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 0


def test_sigterm_ends_it_while_busy(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_RATE="2")
    driver.answer()
    driver.load()
    driver.send(driver.request(bits(records(1, 784)), 1))
    driver.wait_until_printed("Running prebinarized test")
    driver.process.send_signal(signal.SIGTERM)
    assert (driver.wait(), driver.process.stdout.read()) == (0, b"")


def test_sigint_is_not_for_the_driver(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_RATE="2")
    driver.answer()
    driver.process.send_signal(signal.SIGINT)
    driver.load()
    driver.send(driver.request(bits(records(1, 784)), 1))
    driver.wait_until_printed("Running prebinarized test")
    driver.process.send_signal(signal.SIGINT)
    assert driver.answer()["ok"]
    assert driver.load()["ok"]


def test_segmentation_fault_ends_it(driver):
    driver.process.send_signal(signal.SIGSEGV)
    assert driver.wait() == -signal.SIGSEGV


def test_abort_in_a_batch_ends_it(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_FAULT="abort@2")
    driver.answer()
    driver.load()
    run = driver.request(bits(records(1, 784)), 1)
    assert driver.ask(run)["ok"]
    driver.send(run)
    assert (driver.wait(), driver.process.stdout.read()) == (-signal.SIGABRT, b"")
    assert driver.errors.read_text().splitlines()[-1].startswith("terminate called after throwing")


def test_only_sigkill_ends_a_hanging_batch(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_FAULT="hang@1")
    driver.answer()
    driver.load()
    driver.send(driver.request(bits(records(1, 784)), 1))
    driver.wait_until_printed("Running prebinarized test")
    for number in [signal.SIGINT, signal.SIGTERM]:
        driver.process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            driver.process.wait(0.5)
    driver.process.kill()
    assert (driver.wait(), driver.process.stdout.read()) == (-signal.SIGKILL, b"")


def test_batches_take_the_time_they_are_told_to(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_RATE="100", DISTRIBUTED_PYNQ_STANDIN_FAULT="slow@2:0.5")
    driver.answer()
    driver.load()
    run = driver.request(bits(records(50, 784)), 50)
    seconds = [driver.ask(run)["seconds"] for _ in range(3)]
    # A machine that cannot keep up takes longer, and says so.
    assert all(took > least - 1e-3 for took, least in zip(seconds, [0.5, 1.0, 0.5]))


def test_wrong_settings_of_a_stand_in_are_named(start):
    driver = start(DISTRIBUTED_PYNQ_STANDIN_FAULT="abort")
    driver.answer()
    answer = driver.load()
    assert not answer["ok"]
    assert answer["error"].startswith(
        "ValueError: DISTRIBUTED_PYNQ_STANDIN_FAULT='abort': expected"
    )
    assert driver.load() == answer


@pytest.mark.parametrize(
    "path",
    [*DRIVER.glob("*.py"), DRIVER.with_name("worker.py"), *STANDIN.rglob("*.py")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_compiles_on_the_oldest_board(board_python, path):
    check = "import ast, sys; ast.parse(open(sys.argv[1]).read())"
    subprocess.run([board_python("3.6"), "-c", check, path], check=True)
