"""The client side of a job: cut the records into chunks, dispatch them, collect each exactly once.

Every device is fed by a few slots, coroutines that each take a chunk, submit it to that device's
worker and await the answer, so that the next chunk is on the board before the present one is done.
A chunk travels in the task graph: nothing is lost with a board, for the client still has the
records. What fails is tried on another board; what fails there too is cut until the bad record is
alone and named.

A kind of job is a subclass of `Job` in a file of its own, and the file of its name in driver/:
classify.py and driver/classify.py, vadd.py and driver/vadd.py. Nothing else knows of it.
"""

from __future__ import annotations

import abc
import asyncio
import collections
import concurrent.futures
import contextlib
import itertools
import logging
import platform
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import dask.config
import distributed
import yaml
from distributed.versions import VersionMismatchWarning

from . import __version__
from . import worker as task
from .errors import ClusterError, InputError
from .report import Span

# Chunks under way per device: one in the FPGA, one waiting on the board, one on its way.
WINDOW = 3
# FPGA time of a chunk: long enough to hide what a task costs, short enough to share fairly.
CHUNK_S = 0.15
LAST_CHUNK_S = 0.02
# Tasks a second that client and scheduler manage: the more boards, the longer their chunks.
TASKS_PER_S = 100
# The first chunks of a device, which may be nowhere near as fast as published: the first of them,
# and records in any of them.
FIRST_CHUNK_S = 0.04
FIRST_CHUNK = 400
# Bytes of memory that a board has until it says what it has: a Pynq-Z1.
SMALL_BOARD = 512 << 20
# A chunk that failed this often, on boards in good standing, is cut into pieces.
ATTEMPTS = 2
PIECES = 8
# A chunk lost with its board this often may be what kills the boards.
LOSSES = 5
# A board that failed this often in a row is set aside, and probed after a pause that doubles.
FAULTS_IN_A_ROW = 3
PAUSE_S = 2.0
PAUSE_MAX_S = 60.0
# A driver that is this late counts as hung; its time for the chunk, ten times over, comes on top.
LIMIT_S = 5.0
WATCH_S = 0.5
# Dask's client sends what has gathered this long.
MESSAGE_S = 0.01
REACH_S = 10.0
# Dask's client gives up a scheduler that is away this long: well after a job does.
RECONNECT_S = 300.0
COMMIT_S = 2.0


@dataclass(eq=False)
class Chunk:
    """Consecutive records start..stop, and what became of them so far."""

    number: int
    start: int
    stop: int
    tries: int = 0
    attempts: int = 0
    losses: int = 0
    tried_by: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(eq=False)
class Board:
    """One device of the cluster and its share of the job; it outlives its worker processes."""

    worker: str
    rate: float
    device: str = ""
    memory: int = SMALL_BOARD
    address: str = ""
    records: int = 0
    chunks: int = 0
    busy_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    faults_in_a_row: int = 0
    pause_s: float = PAUSE_S
    aside_until: float = 0.0
    under_way: list[Chunk] = field(default_factory=list)
    slots: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The board's name in the inventory; a worker's is NAME/DEVICE where there are several."""
        return self.worker.partition("/")[0]

    @property
    def aside(self) -> bool:
        """Whether it failed so often that it gets no records for now."""
        return self.faults_in_a_row >= FAULTS_IN_A_ROW

    @property
    def state(self) -> str:
        """One of "busy", "idle" and "failed" (set aside, or gone)."""
        if not self.address or self.aside:
            return "failed"
        return "busy" if self.under_way else "idle"


class Work:
    """The records still to be done: ranges not cut yet, and chunks that came back."""

    def __init__(self, ranges: Iterator[tuple[int, int]]) -> None:
        self._ranges = collections.deque(ranges)
        self._returned: list[Chunk] = []
        self._numbers = itertools.count()
        self.uncut = sum(stop - start for start, stop in self._ranges)

    def take(self, worker: str, size: int) -> Chunk | None:
        """Take a returned chunk that this worker has not tried yet, else cut a new one."""
        for chunk in self._returned:
            if worker not in chunk.tried_by:
                self._returned.remove(chunk)
                return chunk
        if not self._ranges:
            return None
        start, stop = self._ranges.popleft()
        cut = min(stop, start + size)
        if cut < stop:
            self._ranges.appendleft((cut, stop))
        self.uncut -= cut - start
        return Chunk(next(self._numbers), start, cut)

    def give_back(self, chunk: Chunk) -> None:
        """Return a chunk for another try."""
        self._returned.append(chunk)

    def cut_down(self, chunk: Chunk) -> None:
        """Return a chunk in pieces, which are new chunks."""
        size = -(-len(chunk) // PIECES)
        for start in range(chunk.start, chunk.stop, size):
            piece = Chunk(next(self._numbers), start, min(start + size, chunk.stop))
            self._returned.append(piece)

    def allow_again(self, workers: set[str]) -> bool:
        """Let chunks that each of these workers has tried be tried by them again."""
        stuck = [chunk for chunk in self._returned if chunk.tried_by >= workers]
        for chunk in stuck:
            chunk.tried_by.clear()
        return bool(stuck)


class Answers(Protocol):
    """Where the answers of a job are kept."""

    @property
    def answered(self) -> int:
        """How many records have an answer, those of an earlier run of the job among them."""

    def missing(self) -> Iterator[tuple[int, int]]:
        """Ranges (start, stop) of records without an answer, in order."""

    def commit(self) -> None:
        """Make safe what was kept since the last time."""


Kept = TypeVar("Kept", bound=Answers)


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[Any]:
    """Connect to a fleet's scheduler with the certificates that Dask's configuration names.

    Yields
    ------
    distributed.Client
        An asynchronous client.

    Raises
    ------
    InputError
        The address is not tls://HOST:PORT, or there are no certificates.
    ClusterError
        Nobody answers there, or refuses the certificates.
    """
    url = urlsplit(address)
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if url.scheme != "tls" or not host or not port:
        raise InputError(f"--scheduler {address!r}: expected tls://HOST:PORT")
    for key in ("ca-file", "client.cert", "client.key"):
        file = dask.config.get(f"distributed.comm.tls.{key}", None)
        if not file or not Path(file).is_file():
            raise InputError(
                f"distributed.comm.tls.{key} in Dask's configuration: no file {file!r}"
            )
    use_engine_settings()
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), REACH_S)
        writer.close()
        client = await distributed.Client(
            address,
            security=distributed.Security(require_encryption=True),
            asynchronous=True,
            timeout=RECONNECT_S,
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise ClusterError(f"{address}: no scheduler reachable ({error or 'no answer'})") from error
    async with client:
        yield client


def use_engine_settings() -> None:
    """Give this process the settings of dask.yaml, which every process of a cluster has, and keep
    off its terminal what Dask has to say of faults: the job tells of them in its own words.
    """
    settings = yaml.safe_load(Path(__file__).with_name("dask.yaml").read_text())
    dask.config.update(dask.config.config, settings)
    logging.getLogger("distributed").setLevel(logging.ERROR)
    logging.getLogger("asyncio").addFilter(_is_news)
    # Packages that boards do not have are none of a job's.
    warnings.simplefilter("ignore", VersionMismatchWarning)
    # Until 2023 Dask warned of every task with more than 1 MB, which ours have on purpose.
    warnings.filterwarnings("ignore", "Large object of size", UserWarning)


def _is_news(record: logging.LogRecord) -> bool:
    # What is left of a future that was given up while Dask gathered it.
    return not record.exc_info or record.exc_info[0] is not distributed.client.AllExit


class Job(abc.ABC, Generic[Kept]):
    """The engine of every kind of job: answers to records that have none yet.

    A kind of job names itself, says what devices load for it and how its records travel, and keeps
    what comes back.

    Parameters
    ----------
    client
        Asynchronous distributed.Client of the cluster.
    total
        How many records there are.
    settings
        What the driver's "load" takes for this kind of job.
    rate
        Records/s of a device's FPGA, until it has shown its own.
    chunk
        Records per task; by default as many as take the FPGA 0.15 s.
    patience
        Seconds without any usable board after which the job is given up.
    """

    name: ClassVar[str]
    """Its file in driver/, e.g. "classify"."""
    unit: ClassVar[str]
    """What its records are, e.g. "images"."""
    title: str
    """Its name where there is little room."""
    answers: Kept

    def __init__(
        self,
        client: Any,
        total: int,
        settings: dict[str, Any],
        rate: float,
        chunk: int | None = None,
        patience: float = 60.0,
    ) -> None:
        self.client = client
        self.total = total
        self.settings = settings
        self.chunk = chunk
        self.patience = patience
        self.boards: dict[str, Board] = {}
        self.timeline: list[Span] = []
        self.failed: list[dict[str, Any]] = []
        self.retries = 0
        self.wall_s = 0.0
        self.versions: dict[str, str] = {}
        self._rate = rate
        self._token = uuid.uuid4().hex
        self._sent = itertools.count()
        self._news = asyncio.Event()
        self._proven: Chunk | None = None
        self._loads: dict[str, Any] = {}

    @abc.abstractmethod
    def chunk_max(self, memory: int) -> int:
        """Records that a task may have on a board with so many bytes of memory."""

    @abc.abstractmethod
    def encode(self, start: int, stop: int) -> tuple[Any, dict[str, Any]]:
        """The records start..stop as they travel, bytes-like, and what the driver's "run" takes."""

    @abc.abstractmethod
    def keep(self, start: int, stop: int, board: tuple[str, str], output: bytes) -> None:
        """Keep what a board (name, device) wrote as the answers to the records start..stop."""

    def loaded(self, answer: dict[str, Any]) -> None:
        """Learn from a driver's answer to "load"."""

    async def prepare(self) -> None:
        """Load what the job needs into every device, before the clock starts.

        Raises
        ------
        ClusterError
            There is no board, or every one of them fails.
        InputError
            Every board refuses, e.g. since it lacks the parameter set.
        """
        present = await self._present()
        if not present:
            raise ClusterError(f"{self.client.scheduler.address}: no board has joined the cluster")
        loads = self._loads = {
            name: self._submit(task.load, address, "load", job=self.name, settings=self.settings)
            for name, address in present.items()
        }
        refusals: dict[str, Exception] = {}
        pythons: set[str] = set()
        for name, load in loads.items():
            board = self._board(name)
            try:
                answer = await self._while_there(load, name, present[name])
            except (task.DeviceFault, task.LoadError) as error:
                refusals[name] = error
                refused = isinstance(error, task.LoadError)
                self._blame(board, str(error), FAULTS_IN_A_ROW if refused else 1)
                continue
            board.device = answer["device"]
            self.loaded(answer)
            pythons.add(answer["python"])
            self.versions = {
                "distributed_pynq": __version__,
                "distributed": answer["distributed"],
                "python": platform.python_version(),
                "board_python": ", ".join(sorted(pythons)),
            }
        if len(refusals) == len(loads):
            told = "; ".join(f"{name}: {error}" for name, error in refusals.items())
            useless = all(isinstance(error, task.LoadError) for error in refusals.values())
            raise InputError(told) if useless else ClusterError(told)

    async def run(self, answers: Kept) -> None:
        """Process the records that have no answer yet; what is kept is safe whatever happens.

        Raises
        ------
        ClusterError
            No usable board for ``patience`` seconds.
        """
        self.answers = answers
        self.resumed = answers.answered
        self._work = Work(answers.missing())
        started = self._usable_at = self._started = time.monotonic()
        keepers = {asyncio.create_task(self._watch()), asyncio.create_task(self._commit())}
        try:
            while not self.done:
                news = asyncio.create_task(self._news.wait())
                finished, _ = await asyncio.wait(
                    {news, *keepers}, return_when=asyncio.FIRST_COMPLETED
                )
                news.cancel()
                for keeper in finished & keepers:
                    keeper.result()
        finally:
            self.wall_s = time.monotonic() - started
            await self._stop(keepers.union(*(self._release(b) for b in self.boards.values())))
            answers.commit()

    @property
    def rate(self) -> float:
        """Records per second so far, over all boards."""
        seconds = time.monotonic() - self._started
        return sum(board.records for board in self.boards.values()) / seconds

    @property
    def done(self) -> bool:
        """Whether every record has an answer or has failed."""
        return self.answers.answered + len(self.failed) == self.total

    # -- boards come and go ----------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                present = await self._present()
            except OSError:
                present = {}
            left: set[asyncio.Task[None]] = set()
            for name in present:
                self._board(name)
            for board in self.boards.values():
                if board.address != present.get(board.worker, ""):
                    left |= self._release(board)
                    board.address = present.get(board.worker, "")
            await self._stop(left)
            # The first chunk of every board goes out before the second of any, and in a message of
            # its own, which is there sooner.
            while fed := [b for b in self.boards.values() if b.address and len(b.slots) < WINDOW]:
                for board in fed:
                    board.slots.append(asyncio.create_task(self._slot(board)))
                await asyncio.sleep(MESSAGE_S)
            # Forgotten earlier, they would be what Dask tells first, and then pauses.
            self._loads.clear()
            self._judge()
            await asyncio.sleep(WATCH_S)

    def _judge(self) -> None:
        here = {board.worker for board in self.boards.values() if board.address}
        usable = {board.worker for board in self.boards.values() if board.state != "failed"}
        if self._work.allow_again(usable or here):
            self._pulse()
        if usable:
            self._usable_at = time.monotonic()
        elif time.monotonic() - self._usable_at > self.patience:
            told = (f"{b.worker}: {(b.faults or ['gone'])[-1]}" for b in self.boards.values())
            raise ClusterError(f"no usable board for {self.patience:g} s ({'; '.join(told)})")

    async def _while_there(self, load: Any, name: str, address: str) -> dict[str, Any]:
        """The answer to a load, unless its worker goes away: Dask would wait for its return."""
        answer = asyncio.ensure_future(load)
        try:
            while not (await asyncio.wait({answer}, timeout=WATCH_S))[0]:
                if (await self._present()).get(name) != address:
                    raise task.DeviceFault("gone while it loaded")
        except OSError as error:
            raise ClusterError(f"{self.client.scheduler.address}: gone ({error})") from error
        finally:
            answer.cancel()
        # The newest Dask raises what older ones cancel.
        if answer.cancelled() or isinstance(answer.exception(), concurrent.futures.CancelledError):
            raise task.DeviceFault("gone with its scheduler while it loaded")
        return dict(answer.result())

    async def _present(self) -> dict[str, str]:
        if not self.client.scheduler:
            raise ClusterError(f"no scheduler for {RECONNECT_S:g} s")
        workers = (await self.client.scheduler.identity())["workers"]
        return {
            str(info["name"]): address
            for address, info in sorted(workers.items(), key=lambda item: str(item[1]["name"]))
            if "FPGA" in info["resources"]
        }

    def _board(self, worker: str) -> Board:
        if worker not in self.boards:
            self.boards[worker] = Board(worker, self._rate, worker.partition("/")[2])
        return self.boards[worker]

    @staticmethod
    def _release(board: Board) -> set[asyncio.Task[None]]:
        slots, board.slots = board.slots, []
        return set(slots)

    @staticmethod
    async def _stop(tasks: set[asyncio.Task[None]]) -> None:
        # Before Python 3.12 asyncio.wait_for, which Dask uses, can swallow a cancellation.
        while tasks:
            for stopped in tasks:
                stopped.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=1)

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            await asyncio.to_thread(self.answers.commit)

    # -- chunks go out and answers come back -----------------------------------------------------

    async def _slot(self, board: Board) -> None:
        while True:
            if board.aside and not await self._readmit(board):
                continue
            if board.faults_in_a_row and board.under_way:
                # In doubt, one at a time.
                await self._news.wait()
                continue
            chunk = self._work.take(board.worker, self._size(board))
            if chunk is None:
                await self._news.wait()
                continue
            board.under_way.append(chunk)
            try:
                self._collect(board, chunk, await self._process(board, chunk))
            except task.LoadError as error:
                # It joined late.
                self._blame(board, str(error), FAULTS_IN_A_ROW)
                self._work.give_back(chunk)
                self._pulse()
            except (task.DeviceFault, task.RequestError) as error:
                self._fault(board, chunk, str(error))
            except asyncio.CancelledError:
                self._lost(board, chunk, "lost with its board")
                if asyncio.current_task() not in board.slots:
                    raise
            except Exception as error:
                # Whatever Dask raises when a worker or the scheduler goes away under it.
                self._lost(board, chunk, f"{type(error).__name__}: {error}")
                await asyncio.sleep(WATCH_S)
            finally:
                board.under_way.remove(chunk)

    def _size(self, board: Board) -> int:
        if self.chunk is not None:
            return self.chunk
        boards = [b for b in self.boards.values() if b.state != "failed"] or [board]
        shortest_s = max(LAST_CHUNK_S, len(boards) / TASKS_PER_S)
        # Towards the end chunks shrink, so that all boards finish together.
        share_s = self._work.uncut / sum(b.rate for b in boards) / WINDOW
        wanted_s = max(shortest_s, min(CHUNK_S, share_s))
        # No larger than what the board has before it, so that it is there in time.
        largest = max(FIRST_CHUNK, sum(map(len, board.under_way)))
        if not board.chunks:
            wanted_s = FIRST_CHUNK_S * (1 + len(board.under_way))
            largest = FIRST_CHUNK
        return max(1, min(int(board.rate * wanted_s), largest, self.chunk_max(board.memory)))

    async def _process(self, board: Board, chunk: Chunk) -> dict[str, Any]:
        chunk.tries += 1
        self.retries += chunk.tries > 1
        records, request = self.encode(chunk.start, chunk.stop)
        future = self._submit(
            task.run,
            board.address,
            self.name,
            job=self.name,
            settings=self.settings,
            records=task.Records(records),
            request=request,
            limit=LIMIT_S + 10 * len(chunk) / board.rate,
        )
        return dict(await future)

    def _submit(self, function: Any, address: str, title: str, **arguments: Any) -> Any:
        return self.client.submit(
            function,
            key=f"{title}-{self._token}-{next(self._sent)}",
            workers=[address],
            resources={"FPGA": 1},
            **arguments,
        )

    def _collect(self, board: Board, chunk: Chunk, answer: dict[str, Any]) -> None:
        self.keep(chunk.start, chunk.stop, (board.name, answer["device"]), answer["output"])
        now, busy_s = time.monotonic() - self._started, answer["seconds"]
        board.device = answer["device"]
        board.memory = answer["memory"]
        board.records += len(chunk)
        board.busy_s += busy_s
        shown = len(chunk) / busy_s
        board.rate = (board.rate + shown) / 2 if board.chunks else shown
        board.chunks += 1
        board.faults += answer["faults"]
        self._proven = chunk
        if board.faults_in_a_row:
            board.faults_in_a_row = 0
            self._pulse()
        self.timeline.append(
            Span(board.name, board.device, max(0, now - busy_s), now, len(chunk), chunk.number)
        )
        if self.done:
            self._pulse()

    # -- what fails ------------------------------------------------------------------------------

    def _fault(self, board: Board, chunk: Chunk, reason: str) -> None:
        # A board that fails with everything says nothing about the records.
        chunk.attempts += not board.aside
        chunk.tried_by.add(board.worker)
        self._blame(board, reason)
        if not board.chunks:
            # It may be far slower than published, and late rather than hung.
            board.rate = max(1.0, board.rate / 10)
        if chunk.attempts < ATTEMPTS:
            self._work.give_back(chunk)
        elif len(chunk) > 1:
            self._work.cut_down(chunk)
        else:
            self.failed.append({"index": chunk.start, "reason": f"{board.worker}: {reason}"})
        self._pulse()

    def _lost(self, board: Board, chunk: Chunk, reason: str) -> None:
        chunk.losses += 1
        if chunk.losses % LOSSES == 0:
            self._fault(board, chunk, f"{reason} ({chunk.losses} times)")
        else:
            self._work.give_back(chunk)
            self._pulse()

    def _blame(self, board: Board, reason: str, weight: int = 1) -> None:
        """Count a fault; of one that no other records could prevent, so many at once."""
        board.faults.append(reason)
        board.faults_in_a_row += weight
        if board.aside:
            board.aside_until = time.monotonic() + board.pause_s
            board.pause_s = min(2 * board.pause_s, PAUSE_MAX_S)

    async def _readmit(self, board: Board) -> bool:
        """Wait out the pause of a board that was set aside, then try it on records that are known
        to be good; with none known yet, the next chunk is the trial.
        """
        while (pause := board.aside_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        if not board.aside or self._proven is None:
            return True
        # One slot tries; the others wait for how it ends.
        board.aside_until = time.monotonic() + 1
        if asyncio.current_task() is not board.slots[0]:
            return False
        good = self._proven
        trial = replace(good, stop=min(good.stop, good.start + self._size(board)))
        try:
            await self._process(board, trial)
        except Exception as error:
            self._blame(board, f"{type(error).__name__}: {error}")
        else:
            board.faults_in_a_row = 0
            board.aside_until = 0.0
        return not board.aside

    def _pulse(self) -> None:
        """Wake all who wait for news."""
        self._news.set()
        self._news.clear()

    # -- what is told ----------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What every summary tells, whose "images" are the records of the job."""
        boards = [b for b in self.boards.values() if b.chunks or b.faults or b.address]
        done = sum(board.records for board in boards)
        rate = sum(b.records / b.busy_s for b in boards if b.busy_s)
        ideal_s = done / rate if rate else 0.0
        return {
            "job": self.name,
            "images": self.total,
            "resumed": self.resumed,
            "retries": self.retries,
            "wall_s": self.wall_s,
            "images_per_s": done / self.wall_s if self.wall_s else 0.0,
            "ideal_s": ideal_s,
            "efficiency": ideal_s / self.wall_s if self.wall_s else 0.0,
            "boards": [
                {
                    "name": board.name,
                    "address": board.address,
                    "device": board.device,
                    "images": board.records,
                    "chunks": board.chunks,
                    "busy_s": board.busy_s,
                    "images_per_s": board.records / board.busy_s if board.busy_s else 0.0,
                    "faults": len(board.faults),
                }
                for board in boards
            ],
            "faults": [
                {"board": board.worker, "reason": reason}
                for board in boards
                for reason in board.faults
            ],
            "failed": sorted(self.failed, key=lambda record: int(record["index"])),
            "versions": self.versions,
        }
