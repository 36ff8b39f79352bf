"""A long job on 4 boards with a random fault every 10 s, always the same for a seed.

usage: soak.py [--minutes 20] [--seed 1], or make soak. Fails where a record is lost, doubled or
changed, or where memory grows.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "app" / "standin"), str(ROOT / "tests")]

from distributed_pynq import datasets, predictions  # noqa: E402
from noise import classes_of, noisy_digits  # noqa: E402
from stage import BOARDS, Run, running  # noqa: E402

RATE = 500
EVERY_S = 10
PATIENCE_S = 300
GROWTH_MB = 60


async def kill_worker(run: Run, board: int) -> None:
    run.restart(board)


async def kill_two_workers(run: Run, board: int) -> None:
    run.restart(board)
    run.restart(board % BOARDS + 1)


async def kill_driver(run: Run, board: int) -> None:
    for driver in run.worker(board).children():
        driver.kill()


async def hang_driver(run: Run, board: int) -> None:
    for driver in run.worker(board).children():
        driver.suspend()


async def freeze_worker(run: Run, board: int) -> None:
    worker = run.worker(board)
    worker.suspend()
    await asyncio.sleep(5)
    worker.resume()


async def unplug_board(run: Run, board: int) -> None:
    run.cluster.stop(f"standin-{board}")
    await asyncio.sleep(5)
    run.start(f"standin-{board}")


async def restart_scheduler(run: Run, board: int) -> None:
    await run.restart_scheduler()


FAULTS = [
    kill_worker,
    kill_two_workers,
    kill_driver,
    hang_driver,
    freeze_worker,
    unplug_board,
    restart_scheduler,
]


async def disturb(
    run: Run, task: "asyncio.Task[None]", seed: int
) -> tuple[Counter[str], list[float]]:
    """Strike every 10 s until the job ends; count faults, and the client's memory in MB."""
    dice = random.Random(seed)
    struck: Counter[str] = Counter()
    memory = []
    while not task.done():
        await asyncio.wait({task}, timeout=EVERY_S)
        fault, board = dice.choice(FAULTS), dice.randint(1, BOARDS)
        memory.append(psutil.Process().memory_full_info().uss / 2**20)
        if task.done():
            break
        struck[fault.__name__] += 1
        print(
            f"{time.strftime('%X')} {run.answers.answered:,} done, {memory[-1]:.0f} MB: "
            f"{fault.__name__}, board {board}",
            flush=True,
        )
        try:
            await fault(run, board)
        except psutil.NoSuchProcess:
            continue
        for number in range(1, BOARDS + 1):
            if run.cluster.processes[f"standin-{number}"].poll() is not None:
                run.restart(number)
    return struck, memory


async def soak(dataset: datasets.Dataset, folder: Path, seed: int) -> bool:
    async with running(dataset, folder, RATE) as (run, task):
        # One fault after another can take every board for a while.
        run.job.patience = PATIENCE_S
        struck, memory = await disturb(run, task, seed)
        await task
    path = folder / "predictions.parquet"
    run.answers.finish()
    summary = run.job.summary(*predictions.count(path, len(dataset)), None)
    given = predictions.pq.read_table(path, columns=["class"])["class"].to_numpy()
    same = np.array_equal(given, classes_of(dataset))
    half = len(memory) // 2
    growth = max(memory[half:]) - max(memory[: half or 1])
    print(f"{sum(struck.values())} faults: {dict(struck)}")
    print(
        f"{len(dataset):,} records in {run.job.wall_s:,.0f} s: {summary['lost']} lost, "
        f"{summary['duplicates']} duplicate, {len(summary['failed'])} failed, "
        f"{summary['retries']} retries, classes {'as' if same else 'NOT as'} undisturbed; "
        f"memory {memory[0]:.0f} to {memory[-1]:.0f} MB"
    )
    lost = summary["lost"] or summary["duplicates"] or summary["failed"]
    return same and not lost and growth < GROWTH_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
        # Faults take about a third of the boards' time.
        records = int(arguments.minutes * 60 * RATE * BOARDS * 0.65)
        dataset = noisy_digits(Path(folder, "soak-images-idx3-ubyte"), records)
        sys.exit(not asyncio.run(soak(dataset, Path(folder), arguments.seed)))


if __name__ == "__main__":
    main()
