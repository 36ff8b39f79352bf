"""A worker's device on a real driver process: what becomes of requests that wait behind others."""

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import parameter_sets
from distributed_pynq import worker
from overlays import classes, plain
from overlays.parameters import read

STANDIN = Path(__file__).resolve().parents[2] / "app" / "standin"
NETWORK = "lfcW1A1"
CLASSES = {"noise": 10, "other": 3}
IMAGES = np.random.default_rng(4).integers(0, 2, (40, 784), np.uint8) * 255
TURN_S = 0.5  # after which a request that was sent waits in the driver's pipe


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folder with the parameter sets."""
    root = tmp_path_factory.mktemp("params")
    for seed, (name, count) in enumerate(CLASSES.items()):
        parameter_sets.write(root, name, NETWORK, seed, count)
    return root


@pytest.fixture(scope="module")
def expected(sets):
    """Classes of the images by parameter set."""
    words = {name: plain.Overlay(read(sets / name / NETWORK)).words(IMAGES) for name in CLASSES}
    return {name: classes.lfc_many(words[name], count) for name, count in CLASSES.items()}


def settings(params):
    """What must be loaded for a parameter set."""
    return {"network": NETWORK, "params": params}


@pytest.fixture
def device(monkeypatch, sets, tmp_path):
    """A device whose first driver hangs in its first batch."""
    monkeypatch.setenv("BOARD", "Pynq-Z1")
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    monkeypatch.setenv("DISTRIBUTED_PYNQ_PARAMS", str(sets))
    monkeypatch.setenv("DISTRIBUTED_PYNQ_TMPFS", str(tmp_path))
    with monkeypatch.context() as first:
        first.setenv("DISTRIBUTED_PYNQ_STANDIN_FAULT", "hang@1")
        device = worker.Device()
    device.load("classify", settings("noise"))
    yield device
    device.close()
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.fixture
def pool():
    """Threads, as many as a worker has."""
    with concurrent.futures.ThreadPoolExecutor(worker.BAYS) as pool:
        yield pool


def ask(device, params="noise", limit=60.0):
    """The device's answer to a request to classify the images."""
    request = {"records": len(IMAGES), "scores": False}
    payload = np.packbits(IMAGES >= 128, axis=1)
    return device.run("classify", settings(params), payload, request, limit)


def run(device, params="noise", limit=60.0):
    """The classes in that answer."""
    return np.frombuffer(ask(device, params, limit)["output"], "<i2")


def test_only_the_request_that_hangs_is_blamed(device, pool, expected):
    hanging = pool.submit(run, device, limit=2 * TURN_S)
    time.sleep(TURN_S)
    behind = pool.submit(run, device)
    with pytest.raises(worker.DeviceFault, match="gave no answer to 'run' in 1 s"):
        hanging.result()
    assert np.array_equal(behind.result(), expected["noise"])


def test_only_the_request_that_a_driver_dies_with_is_blamed(device, pool, expected):
    dying = pool.submit(run, device)
    time.sleep(TURN_S)
    behind = pool.submit(run, device, "other")
    time.sleep(TURN_S)
    os.kill(device.description["pid"], signal.SIGKILL)
    with pytest.raises(worker.DeviceFault, match=r"died during 'run' \(SIGKILL\)"):
        dying.result()
    assert np.array_equal(behind.result(), expected["other"])


def test_limit_begins_when_the_turn_comes(device, pool, expected):
    hanging = pool.submit(run, device, limit=6 * TURN_S)
    time.sleep(TURN_S)
    behind = pool.submit(run, device, limit=4 * TURN_S)
    with pytest.raises(worker.DeviceFault):
        hanging.result()
    assert np.array_equal(behind.result(), expected["noise"])


def test_two_jobs_take_turns(device, pool, expected):
    os.kill(device.description["pid"], signal.SIGKILL)
    time.sleep(TURN_S)
    names = ["noise", "other"] * 4
    for name, found in zip(names, pool.map(lambda name: run(device, name), names)):
        assert np.array_equal(found, expected[name])


def test_death_while_idle_is_told_with_the_next_answer(device):
    os.kill(device.description["pid"], signal.SIGKILL)
    time.sleep(TURN_S)
    answers = [ask(device) for _ in range(2)]
    assert [answer["faults"] for answer in answers] == [["driver died while idle"], []]
