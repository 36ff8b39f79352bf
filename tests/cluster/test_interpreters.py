"""Whole jobs, with faults, on the Pythons of boards and their images' versions of distributed.

As in a fleet, scheduler and boards run on the boards' Python, and the command on the host's; all of
them with one version of distributed.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import overlays.classes
import overlays.parameters
import overlays.plain
from distributed_pynq import datasets, local, networks
from noise import noisy_digits

APP = Path(local.__file__).parents[1]
LFC, CNV = networks.NETWORKS["lfcW1A1"], networks.NETWORKS["cnvW1A1"]
RECORDS, RATE = 2_000, 300


def plain_path(network: networks.Network) -> overlays.plain.Overlay:
    folder = networks.parameter_root("digits", network) / "digits" / network.name
    return overlays.plain.Overlay(overlays.parameters.read(folder, network.name))


@contextlib.contextmanager
def systemd(folder: Path, *names: str) -> Iterator[dict[str, str]]:
    """NOTIFY_SOCKET for each board; at the end, wait until they have said that they joined."""
    sockets = {name: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for name in names}
    for name, own in sockets.items():
        own.bind(str(folder / f"{name}.{time.monotonic_ns()}"))
        own.settimeout(local.START_LIMIT_S)
    yield {name: own.getsockname() for name, own in sockets.items()}
    for own in sockets.values():
        with own:
            assert own.recv(100) == b"READY=1\nWATCHDOG=1"


def start_boards(cluster: local.Cluster, boards: dict[str, dict[str, str]]) -> None:
    with systemd(cluster.folder, *boards) as notify:
        for name, environment in boards.items():
            paced = {"DISTRIBUTED_PYNQ_STANDIN_RATE": str(RATE), "NOTIFY_SOCKET": notify[name]}
            cluster.start_board(name, **paced, **environment)


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10", "3.13"])
def test_jobs_with_faults(version, board_python, host_python, start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(APP))
    host = host_python(version)
    digits = noisy_digits(tmp_path / "noisy-images-idx3-ubyte", RECORDS)
    colour = datasets.load("digits", CNV).records(0, 20)
    (tmp_path / "colour.bin").write_bytes(colour.tobytes())
    parameters = networks.parameter_root("digits", LFC)
    with local.Cluster(parameters, python=board_python(version)) as cluster:
        start_boards(
            cluster, {"aborts": {"DISTRIBUTED_PYNQ_STANDIN_FAULT": "abort@20"}, "dies": {}}
        )
        address = json.loads((cluster.folder / "scheduler.json").read_text())["address"]

        def classify(*job):
            options = ("--scheduler", address, "--params", "digits")
            return start(*job, *options, python=host, DASK_CONFIG=str(cluster.folder))

        command = classify(digits.name, "--network", LFC.name, "--chunk", 20)
        while not (command.folder / "boards.json").exists():
            assert command.process.poll() is None, command.wait().printed
            time.sleep(0.05)
        for driver in psutil.Process(cluster.processes["aborts"].pid).children():
            driver.kill()
        cluster.stop("dies")
        start_boards(cluster, {"dies": {}})
        done = command.wait()
        assert done.code == 0, done.printed
        summary = done.summary
        assert (summary["classified"], summary["lost"], summary["duplicates"]) == (RECORDS, 0, 0)
        assert summary["versions"]["board_python"].startswith(f"{version}.")
        faults = {fault["reason"].partition(":")[0] for fault in summary["faults"]}
        assert "driver died during 'run' (SIGABRT)" in faults
        assert summary["retries"] > 0
        words = plain_path(LFC).words(digits.records(0, RECORDS))
        assert np.array_equal(done.columns("class")[0], overlays.classes.lfc_many(words, 10))

        done = classify(
            tmp_path / "colour.bin", "--network", CNV.name, "--scores", "--chunk", 5
        ).wait()
        assert done.code == 0, done.printed
        scores = plain_path(CNV).scores(colour)[:, :10]
        given, told = done.columns("class", "scores")
        assert np.array_equal(given, overlays.classes.cnv_many(scores, 10))
        assert np.array_equal(np.stack(told), scores)
