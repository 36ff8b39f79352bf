"""A stage for jobs to be disturbed on: stand-in boards, a job under way, and hands to break it."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from distributed_pynq import datasets, local, networks, predictions
from distributed_pynq.classify import Classification
from noise import NETWORK

BOARDS = 4


class Run:
    """A job on a cluster of stand-ins, and what a test does to them."""

    job: Classification
    answers: predictions.Predictions

    def __init__(self, cluster: local.Cluster, rate: float) -> None:
        self.cluster, self.rate = cluster, rate

    @property
    def handed_out(self) -> int:
        """Records that boards have been given so far; they are given in order."""
        under_way = (chunk for board in self.job.boards.values() for chunk in board.under_way)
        return max((chunk.stop for chunk in under_way), default=0)

    @property
    def answered(self) -> int:
        """Records that have an answer, up to the first that has none."""
        return next(self.answers.missing(), (self.job.total,))[0]

    def worker(self, number: int) -> psutil.Process:
        return psutil.Process(self.cluster.processes[f"standin-{number}"].pid)

    def driver(self, number: int) -> psutil.Process:
        (driver,) = self.worker(number).children()
        return driver

    def start(self, name: str, **environment: str) -> None:
        paced = {"DISTRIBUTED_PYNQ_STANDIN_RATE": f"{self.rate:g}"}
        self.cluster.start_board(name, **paced | environment)

    def restart(self, number: int) -> None:
        """What systemd does for the board's worker."""
        self.cluster.stop(f"standin-{number}")
        self.start(f"standin-{number}")

    async def restart_scheduler(self, away_s: float = 0) -> None:
        """Kill it; the workers leave with it, and systemd brings them all back."""
        self.cluster.stop("scheduler")
        await asyncio.sleep(away_s)
        self.cluster.start_scheduler()
        for number in range(1, BOARDS + 1):
            # One that had not joined yet joins the next scheduler.
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.cluster.processes[f"standin-{number}"].wait, 30)
                self.restart(number)


@contextlib.asynccontextmanager
async def running(
    dataset: datasets.Dataset, folder: Path, rate: float, protocol: str = "tls", **odd: str
) -> AsyncIterator[tuple[Run, "asyncio.Task[None]"]]:
    """A job that has classified some records already; ``odd`` is the environment of board 4."""
    with local.Cluster(networks.parameter_root("digits", NETWORK), protocol) as cluster:
        run = Run(cluster, rate)
        for number in range(1, BOARDS + 1):
            run.start(f"standin-{number}", **(odd if number == BOARDS else {}))
        async with cluster.client() as client:
            run.job = Classification(client, dataset, NETWORK, "digits", patience=40)
            await run.job.prepare()
            run.answers = predictions.Predictions(folder, dataset, run.job.class_names)
            task = asyncio.create_task(run.job.run(run.answers))
            while not run.answers.answered and not task.done():
                await asyncio.sleep(0.01)
            yield run, task
