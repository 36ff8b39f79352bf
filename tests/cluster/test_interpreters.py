"""Whole jobs, with faults, on the Pythons of boards and their images' versions of distributed.

As in a fleet, the scheduler runs on the oldest board's Python, and the command on the host's; all
of them with one version of distributed, the newest that the oldest board can run.
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


def start_boards(cluster: local.Cluster, pythons: dict[str, Path]) -> None:
    with systemd(cluster.folder, *pythons) as notify:
        for name, python in pythons.items():
            paced = {"DISTRIBUTED_PYNQ_STANDIN_RATE": str(RATE), "NOTIFY_SOCKET": notify[name]}
            fault = {"DISTRIBUTED_PYNQ_STANDIN_FAULT": "abort@20"} if name == "aborts" else {}
            cluster.start_board(name, python, **paced, **fault)


@pytest.mark.parametrize(
    ("versions", "dask"),
    [
        (["3.6"], ""),
        (["3.8"], ""),
        (["3.10"], ""),
        (["3.13"], ""),
        (["3.6", "3.8", "3.10"], "2021.3.0"),
        (["3.8", "3.10"], "2023.5.0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value or "newest",
)
def test_jobs_with_faults(versions, dask, board_python, host_python, start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(APP))
    oldest, *newer = versions
    host = host_python(oldest)
    pythons = [board_python(oldest), *(board_python(version, dask) for version in newer)]
    boards = {"aborts": pythons[0], "works": pythons[len(pythons) // 2], "dies": pythons[-1]}
    digits = noisy_digits(tmp_path / "noisy-images-idx3-ubyte", RECORDS)
    colour = datasets.load("digits", CNV).records(0, 20)
    (tmp_path / "colour.bin").write_bytes(colour.tobytes())
    parameters = networks.parameter_root("digits", LFC)
    with local.Cluster(parameters, python=pythons[0]) as cluster:
        start_boards(cluster, boards)
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
        start_boards(cluster, {"dies": boards["dies"]})
        done = command.wait()
        assert done.code == 0, done.printed
        summary = done.summary
        assert (summary["classified"], summary["lost"], summary["duplicates"]) == (RECORDS, 0, 0)
        used = summary["versions"]["board_python"].split(", ")
        assert {python.rpartition(".")[0] for python in used} == set(versions)
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
