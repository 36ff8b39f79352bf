"""The kind of job "vadd": two arrays of uint32, added row by row on every device of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

from . import local, progress, report
from .errors import InputError
from .job import Job

Array = npt.NDArray[np.uint32]

# A task carries so many bytes of operands, and its result is half as many.
CHUNK_BYTES = 1 << 22
# Numbers/s of the kernel, at a guess.
RATE = 1e8
SEED = 0


class Sums:
    """A place for the sum of every row: uint32, of a shape (rows, columns)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values: Array = np.zeros(shape, np.uint32)
        self.there = np.zeros(shape[0], bool)

    @property
    def answered(self) -> int:
        """Rows that are there."""
        return int(np.count_nonzero(self.there))

    def missing(self) -> Iterator[tuple[int, int]]:
        """None is there before the job, and none is kept after it."""
        yield 0, len(self.there)

    def commit(self) -> None:
        """They stay in memory."""


class Addition(Job[Sums]):
    """Add two arrays, modulo 2**32.

    Parameters
    ----------
    client
        Asynchronous distributed.Client of the cluster.
    first, second
        uint32 (rows, columns).
    overlay
        The xclbin with the kernel vadd_1, as pynq finds it on every board: a path there.
    engine
        `chunk` (rows) and `patience` of the engine, `Job`.

    Raises
    ------
    InputError
        An array has another dtype or shape.
    """

    name = title = "vadd"
    unit = "rows"

    def __init__(
        self, client: Any, first: Array, second: Array, overlay: str, **engine: Any
    ) -> None:
        for array in (first, second):
            if array.dtype != np.uint32 or array.ndim != 2 or not array.size:
                found = f"{array.dtype} of shape {array.shape}"
                raise InputError(f"vadd: expected arrays of uint32 (rows, columns), not {found}")
        if first.shape != second.shape:
            raise InputError(
                f"vadd: expected arrays of the same shape, not {first.shape} and {second.shape}"
            )
        rows, columns = first.shape
        super().__init__(client, rows, {"overlay": overlay}, RATE / columns, **engine)
        self._rows: int = max(1, CHUNK_BYTES // (2 * columns * first.itemsize))
        self.first = first
        self.second = second

    def chunk_max(self, memory: int) -> int:
        """As many rows as make a task worth its while."""
        return self._rows

    def encode(self, start: int, stop: int) -> tuple[Any, dict[str, Any]]:
        """The rows of the one array, then those of the other."""
        both = np.stack([self.first[start:stop], self.second[start:stop]]).astype("<u4", copy=False)
        return both.data.cast("B"), {"size": both.size // 2}

    def keep(self, start: int, stop: int, board: tuple[str, str], output: bytes) -> None:
        """Put the rows of the sum where they belong."""
        self.answers.values[start:stop] = np.frombuffer(output, "<u4").reshape(stop - start, -1)
        self.answers.there[start:stop] = True

    async def prepare(self) -> None:
        """Load the overlay into every device; each gets some rows, however few there are."""
        await super().prepare()
        self._rows = min(self._rows, max(1, self.total // len(self.boards)))

    async def add(self) -> Array:
        """Do the job.

        Returns
        -------
        numpy.ndarray
            uint32 (rows, columns), 0 in the rows that `failed` names.

        Raises
        ------
        ClusterError, InputError
            As of the engine: no usable board, or no such overlay on any.
        """
        await self.prepare()
        await self.run(Sums(self.first.shape))
        return self.answers.values


def add_random(
    rows: int, columns: int, overlay: str, scheduler: str | None, devices: int, *, quiet: bool
) -> bool:
    """Add two seeded random arrays on a fleet, or on stand-in cards without a scheduler.

    Prints a table of the devices and compares with numpy.

    Returns
    -------
    bool
        Whether every number is right.

    Raises
    ------
    InputError
        The arrays do not fit into memory, or no board has the overlay.
    """
    try:
        random = np.random.default_rng(SEED)
        first, second = random.integers(0, 1 << 32, (2, rows, columns), np.uint32)
        return asyncio.run(_add(first, second, overlay, scheduler, devices, quiet))
    except (MemoryError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--rows {rows} --columns {columns}: {error}") from None


async def _add(
    first: Array, second: Array, overlay: str, scheduler: str | None, devices: int, quiet: bool
) -> bool:
    console = progress.console()
    async with contextlib.AsyncExitStack() as stack:
        with console.status(
            Text(f"connecting to {scheduler}" if scheduler else "starting devices")
        ):
            client = await stack.enter_async_context(local.client(scheduler, cards=devices))
        job = Addition(client, first, second, overlay)
        with console.status("loading the overlay"):
            await job.prepare()
        async with progress.shown(job, console, quiet=quiet):
            await job.run(Sums(first.shape))
        total = job.answers.values
    console.print(report.table(job.figures(), job.unit))
    for line in progress.failures(job):
        console.print(line, soft_wrap=True)
    right = int(np.count_nonzero(total == first + second))
    verdict = "equal numpy's" if right == total.size else f"sums, {right:,} of them numpy's"
    console.print(f"{total.size:,} sums {verdict}; {len(job.failed)} rows failed")
    return right == total.size
