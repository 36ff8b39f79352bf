"""A job of 50,000 records on 4 boards while something breaks: each classified once, undisturbed.

Real processes are killed, stopped and restarted; boards are paced so that the fault falls into the
job. What needs a network or systemd of its own is in tests/fleet.
"""

import asyncio
import subprocess
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from distributed_pynq import datasets, local, networks, predictions
from distributed_pynq.classify import Classification
from distributed_pynq.errors import ClusterError
from distributed_pynq.job import WINDOW
from noise import NETWORK, classes_of, noisy_digits
from stage import BOARDS, Run, running

RECORDS = 50_000
RATE = 4_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> datasets.Dataset:
    return noisy_digits(tmp_path_factory.mktemp("records") / "noisy-images-idx3-ubyte", RECORDS)


@pytest.fixture(scope="module")
def expected(dataset) -> np.ndarray:
    return classes_of(dataset)


def survive(
    dataset: datasets.Dataset,
    expected: np.ndarray,
    folder: Path,
    blow: Callable[[Run], Awaitable[None]],
    failed: tuple[int, ...] = (),
    rate: float = RATE,
    protocol: str = "tls",
    **odd: str,
) -> dict[str, Any]:
    """Run a job, strike, and check that nothing is lost, doubled or changed."""

    async def story() -> tuple[Classification, float]:
        async with running(dataset, folder, rate, protocol, **odd) as (run, task):
            handed_out = run.handed_out
            struck = time.monotonic()
            await blow(run)
            while run.answered < handed_out and not task.done():
                await asyncio.sleep(0.05)
            recovered = time.monotonic() - struck
            await task
            return run.job, recovered

    job, recovered = asyncio.run(story())
    path = folder / "predictions.parquet"
    job.answers.finish()
    summary = job.summary(*predictions.count(path, RECORDS), None)
    table = predictions.pq.read_table(path)
    ideal = RECORDS / rate / BOARDS
    assert (summary["lost"], summary["duplicates"]) == (0, 0)
    assert [record["index"] for record in summary["failed"]] == list(failed)
    there = np.setdiff1d(np.arange(RECORDS), failed)
    assert np.array_equal(table["index"].to_numpy(), there)
    assert np.array_equal(table["class"].to_numpy(), expected[there])
    title = blow.__name__.replace("_", " ")
    print(
        f"\n{title}: recovered in {recovered:.1f} s; wall {job.wall_s:.1f} s, ideal {ideal:.1f} s"
    )
    return summary


def faults(summary: dict[str, Any], board: str) -> list[str]:
    return [fault["reason"] for fault in summary["faults"] if fault["board"] == board]


def test_a_worker_is_killed(dataset, expected, tmp_path):
    async def kill_a_worker(run: Run) -> None:
        run.restart(1)

    summary = survive(dataset, expected, tmp_path, kill_a_worker)
    assert summary["retries"] > 0


def test_a_worker_is_asked_to_leave(dataset, expected, tmp_path):
    async def ask_a_worker_to_leave(run: Run) -> None:
        """As systemd does; it ends by itself, and is back later."""
        worker = run.cluster.processes["standin-1"]
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 15) == 0
        run.restart(1)

    summary = survive(dataset, expected, tmp_path, ask_a_worker_to_leave)
    assert summary["faults"] == []
    assert summary["retries"] <= WINDOW


@pytest.mark.parametrize(
    ("dead", "others", "told"),
    [
        ("board-0", 1, None),
        ("board-0", 0, "board-0: gone while it loaded"),
        ("scheduler", 0, "gone"),
    ],
)
def test_one_is_killed_while_a_board_loads(tmp_path, dead, others, told):
    few = noisy_digits(tmp_path / "few-images-idx3-ubyte", 100)

    async def story() -> Classification:
        with local.Cluster(networks.parameter_root("digits", NETWORK)) as cluster:
            for number in range(1 + others):
                cluster.start_board(f"board-{number}")
            async with cluster.client() as client:
                (driver,) = psutil.Process(cluster.processes["board-0"].pid).children()
                driver.suspend()
                job = Classification(client, few, NETWORK, "digits")
                preparing = asyncio.create_task(job.prepare())
                while not any((await client.processing()).values()):
                    await asyncio.sleep(0.05)
                cluster.stop(dead)
                await asyncio.wait_for(preparing, 30)
                await job.run(predictions.Predictions(tmp_path, few, job.class_names))
                return job

    if told:
        with pytest.raises(ClusterError, match=told):
            asyncio.run(story())
        return
    job = asyncio.run(story())
    assert job.answers.answered == len(few)
    assert job.boards["board-0"].faults == ["gone while it loaded"]


def test_boards_that_refuse_the_job_spoil_no_records(tmp_path):
    few = noisy_digits(tmp_path / "few-images-idx3-ubyte", 100)
    unable = [f"unable-{number}" for number in range(4)]

    def start_unable(cluster: local.Cluster, names: list[str]) -> None:
        for name in names:
            # It knows neither this network nor these parameters.
            cluster.start_board(name, DISTRIBUTED_PYNQ_RUNTIME="finn-examples")

    async def story() -> Classification:
        with local.Cluster(networks.parameter_root("digits", NETWORK)) as cluster:
            cluster.start_board("able", DISTRIBUTED_PYNQ_STANDIN_RATE="100")
            start_unable(cluster, unable[:2])
            async with cluster.client() as client:
                job = Classification(client, few, NETWORK, "digits", chunk=1)
                await job.prepare()
                assert [name for name, board in job.boards.items() if not board.aside] == ["able"]
                start_unable(cluster, unable[2:])
                await client.wait_for_workers(1 + len(unable))
                await job.run(predictions.Predictions(tmp_path, few, job.class_names))
                return job

    job = asyncio.run(story())
    job.answers.finish()
    assert job.failed == []
    assert np.array_equal(
        predictions.pq.read_table(tmp_path / "predictions.parquet")["class"].to_numpy(),
        classes_of(few),
    )
    summary = job.summary(len(few), 0, None)
    for name in unable:
        assert "no 'lfcW1A1' here" in faults(summary, name)[0]


def test_two_workers_are_killed_for_good(dataset, expected, tmp_path):
    async def kill_two_workers(run: Run) -> None:
        for number in (1, 2):
            run.cluster.stop(f"standin-{number}")

    survive(dataset, expected, tmp_path, kill_two_workers)


def test_a_driver_is_killed(dataset, expected, tmp_path):
    async def kill_a_driver(run: Run) -> None:
        run.driver(1).kill()

    summary = survive(dataset, expected, tmp_path, kill_a_driver)
    assert any("died" in reason for reason in faults(summary, "standin-1"))


def test_a_driver_hangs(dataset, expected, tmp_path):
    async def let_a_driver_hang(run: Run) -> None:
        """It does so in its fourth batch."""

    odd = {"DISTRIBUTED_PYNQ_STANDIN_FAULT": "hang@4"}
    summary = survive(dataset, expected, tmp_path, let_a_driver_hang, **odd)
    assert any("no answer to 'run'" in reason for reason in faults(summary, "standin-4"))


def test_a_board_is_far_slower_than_published(dataset, expected, tmp_path, monkeypatch):
    async def be_slow(run: Run) -> None:
        """It is from the start, so that its first chunks look as if they hung."""

    monkeypatch.setattr("distributed_pynq.job.LIMIT_S", 1.0)
    slow = {"DISTRIBUTED_PYNQ_STANDIN_RATE": "20"}
    summary = survive(dataset, expected, tmp_path, be_slow, rate=RATE / 4, **slow)
    assert any("no answer to 'run'" in reason for reason in faults(summary, "standin-4"))
    assert {board["name"]: board["images"] for board in summary["boards"]}["standin-4"] > 0


def test_one_record_kills_the_driver_on_every_board(dataset, expected, tmp_path, monkeypatch):
    async def feed_a_deadly_record(run: Run) -> None:
        """It is among the others."""

    bad = 31_234
    pixels = np.where(dataset.records(bad, bad + 1)[0] >= 128, 255, 0).astype(np.uint8)
    fault = f"abort@crc32:{zlib.crc32(pixels):08x}"
    monkeypatch.setenv("DISTRIBUTED_PYNQ_STANDIN_FAULT", fault)
    summary = survive(dataset, expected, tmp_path, feed_a_deadly_record, failed=(bad,))
    assert "SIGABRT" in summary["failed"][0]["reason"]


def test_a_driver_aborts_now_and_then(dataset, expected, tmp_path):
    async def abort_a_driver_again_and_again(run: Run) -> None:
        """Every third batch of each of its processes does."""

    odd = {"DISTRIBUTED_PYNQ_STANDIN_FAULT": "abort@3"}
    summary = survive(dataset, expected, tmp_path, abort_a_driver_again_and_again, **odd)
    assert any("SIGABRT" in reason for reason in faults(summary, "standin-4"))


# Half a minute is as long as Dask's client waits for one by itself.
@pytest.mark.parametrize("away_s", [0, 32])
def test_the_scheduler_restarts(dataset, expected, tmp_path, away_s):
    async def restart_the_scheduler(run: Run) -> None:
        run.job.patience = 90
        await run.restart_scheduler(away_s)

    survive(dataset, expected, tmp_path, restart_the_scheduler)


def test_a_worker_freezes(dataset, expected, tmp_path):
    async def freeze_a_worker(run: Run) -> None:
        run.worker(1).suspend()

    survive(dataset, expected, tmp_path, freeze_a_worker)


def test_tmpfs_is_full_on_one_board(dataset, expected, tmp_path):
    tmpfs = tmp_path / "tmpfs"
    tmpfs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmpfs)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")

    async def fill_the_tmpfs(run: Run) -> None:
        """It has 4 KB from the start."""

    try:
        odd = {"DISTRIBUTED_PYNQ_TMPFS": str(tmpfs)}
        summary = survive(dataset, expected, tmp_path, fill_the_tmpfs, **odd)
    finally:
        subprocess.run(["umount", "-l", tmpfs], check=True)
    assert any("No space left" in reason for reason in faults(summary, "standin-4"))
    board = next(board for board in summary["boards"] if board["name"] == "standin-4")
    assert board["images"] == 0


def test_a_board_joins_half_way(dataset, expected, tmp_path):
    async def join(run: Run) -> None:
        run.start("late")

    summary = survive(dataset, expected, tmp_path, join, rate=700)
    late = next(board for board in summary["boards"] if board["name"] == "late")
    assert late["images"] > 0


def test_the_client_is_killed(dataset, expected, start, classify):
    words = "--network", NETWORK.name, "--params", "digits"
    paced = {"DISTRIBUTED_PYNQ_STANDIN_RATE": f"{RATE}"}
    command = start(dataset.name, *words, "--boards", BOARDS, **paced)
    while not (command.folder / "boards.json").exists():
        assert command.process.poll() is None
        time.sleep(0.05)
    command.process.kill()
    command.wait()
    resumed = classify("--resume", command.folder, "--boards", BOARDS, **paced)
    assert resumed.code == 0, resumed.printed
    assert 0 < resumed.summary["resumed"] < RECORDS
    index, classes = resumed.columns("index", "class")
    assert np.array_equal(index, np.arange(RECORDS))
    assert np.array_equal(classes, expected)
    print(f"\nkill the client: {resumed.summary['wall_s']:.1f} s for the rest, with --resume")


def test_no_board_is_left(dataset, tmp_path):
    async def story() -> None:
        async with running(dataset, tmp_path, RATE, "tls") as (run, task):
            run.job.patience = 3
            for number in range(1, BOARDS + 1):
                run.cluster.stop(f"standin-{number}")
            await task

    with pytest.raises(ClusterError, match="no usable board for 3 s"):
        asyncio.run(story())
    resumed = predictions.Predictions(tmp_path, dataset, [])
    assert 0 < resumed.answered < RECORDS


def test_clocks_are_50_years_apart(dataset, expected, tmp_path):
    async def set_a_clock_back(run: Run) -> None:
        """It is 50 years late from the start."""

    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    # The certificates of stand-ins are valid from the day they start; a fleet's always are.
    odd = {"LD_PRELOAD": str(library), "FAKETIME": "-50y"}
    survive(dataset, expected, tmp_path, set_a_clock_back, protocol="tcp", **odd)
