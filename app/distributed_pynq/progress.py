"""A running job, to be seen: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .job import Job

REFRESH_S = 0.25
LINE_EVERY_S = 5.0


def console() -> Console:
    """Where a job is shown: the terminal or, in a notebook, plain lines."""
    # Paths and reasons are printed as they are: brackets and colons in them are no markup.
    words: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    usual = Console(**words)
    # rich's live displays want widgets in a notebook, which few have installed.
    plain = Console(**words, force_jupyter=False, force_terminal=False)
    return plain if usual.is_jupyter else usual


@contextlib.asynccontextmanager
async def shown(job: Job[Any], console: Console, *, quiet: bool) -> AsyncIterator[None]:
    """Show how a running job gets on, until the block ends."""
    show = _lines if quiet or not console.is_terminal else _bar
    task = asyncio.create_task(show(job, console))
    try:
        yield
    finally:
        # Of one that failed asyncio tells, unless it is cancelled; the job goes on unseen.
        if not task.done():
            task.cancel()
        await asyncio.wait({task})


def boards(job: Job[Any]) -> str:
    """How many boards are in which state, e.g. "3 busy, 1 failed (z1-04)"."""
    states = Counter(board.state for board in job.boards.values())
    failed = [board.worker for board in job.boards.values() if board.state == "failed"]
    parts = [f"{states[state]} {state}" for state in ("busy", "idle", "failed") if states[state]]
    return ", ".join(parts) + (f" ({', '.join(failed)})" if failed else "")


def failures(job: Job[Any]) -> list[str]:
    """A line for each board that failed or left, with the reason."""
    failed = (board for board in job.boards.values() if board.state == "failed")
    return [f"{b.worker} failed: {(b.faults or ['it left the cluster'])[-1]}" for b in failed]


async def _bar(job: Job[Any], console: Console) -> None:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]:,.0f}} {job.unit}/s", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[boards]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(job.title, total=job.total, rate=0.0, boards="")
        try:
            while True:
                _update(progress, bar, job)
                await asyncio.sleep(REFRESH_S)
        finally:
            _update(progress, bar, job)


def _update(progress: Progress, bar: object, job: Job[Any]) -> None:
    progress.update(bar, completed=job.answers.answered, rate=job.rate, boards=boards(job))  # type: ignore[arg-type]


async def _lines(job: Job[Any], console: Console) -> None:
    while True:
        await asyncio.sleep(LINE_EVERY_S)
        answered = job.answers.answered
        left = job.total - answered
        eta = f"{left / job.rate:,.0f} s left" if job.rate else "waiting for a board"
        console.print(
            f"{answered:,} of {job.total:,} {job.unit}, {job.rate:,.0f} {job.unit}/s, "
            f"{eta}; {boards(job)}"
        )
