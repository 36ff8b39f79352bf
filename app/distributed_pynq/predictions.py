"""What a job has found so far, kept so that neither a crash nor 10 million records hurt.

While a job runs, its output folder holds two memory-mapped arrays with a place for every record:
``answers.npy`` (class, label and, if asked for, scores) and ``boards.npy`` (1 + number of the board
that answered, 0 for none yet); ``boards.json`` lists the boards. A record is marked only after its
answer is flushed to disk, so that it counts as classified only if its answer is safe, whatever
dies, client or machine. Meanwhile each row group whose records are all marked is appended to
``predictions.partial``, in order, which at the end becomes predictions.parquet.
"""

from __future__ import annotations

import collections
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .datasets import Dataset
from .errors import InputError
from .storage import settle, writing

ROW_GROUP = 65_536
UNLABELLED = -1

Array = npt.NDArray[Any]


class Predictions:
    """A place for the answer of every record, on disk; answers that lie there already count.

    Parameters
    ----------
    folder
        The job's output folder.
    dataset
        The records, whose labels are kept with their answers.
    class_names
        Names of the classes.
    scores
        Scores kept per record, 0 for none.

    Raises
    ------
    InputError
        What lies in the folder does not fit, or there is no room for the answers.
    """

    def __init__(
        self, folder: Path, dataset: Dataset, class_names: Sequence[str], scores: int = 0
    ) -> None:
        self._folder = folder
        self._dataset = dataset
        self._class_names = class_names
        self._files = [folder / name for name in ("answers.npy", "boards.npy", "boards.json")]
        fields = [("class", "<i2"), ("label", "<i2"), ("scores", "<i2", (scores,))]
        # The file of the marks is the last to be made.
        resume = self._files[1].exists()
        with writing(folder):
            self._answers = _array(self._files[0], np.dtype(fields), len(dataset), resume)
            self._marks = _array(self._files[1], np.dtype("<u2"), len(dataset), resume)
            self._boards = _listed(self._files[2]) if resume else []
            # Nobody knows any more who answered these: they are done again.
            self._marks[self._marks > len(self._boards)] = 0
            self._marks.flush()
        self._committing = threading.Lock()
        self._unmarked: collections.deque[tuple[int, int, int]] = collections.deque()
        self._taken = np.asarray(self._marks) != 0
        self.answered = int(np.count_nonzero(self._taken))
        self._schema = _schema(scores)
        self._partial = folder / "predictions.partial"
        with writing(folder):
            self._begin()

    def missing(self) -> Iterator[tuple[int, int]]:
        """Ranges (start, stop) of records without an answer, in order."""
        edges = np.flatnonzero(np.diff(self._taken, prepend=True, append=True))
        return ((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]))

    def put(
        self, start: int, stop: int, board: tuple[str, str], classes: Array, scores: Array | None
    ) -> None:
        """Keep the answers of the records start..stop, which a board (name, device) gave.

        classes is int16 (stop - start,), scores int16 (stop - start, scores a record) or None.
        """
        if board not in self._boards:
            self._boards.append(board)
        labels = self._dataset.labels(start, stop)
        self._answers["class"][start:stop] = classes
        self._answers["label"][start:stop] = UNLABELLED if labels is None else labels
        if scores is not None:
            self._answers["scores"][start:stop] = scores
        self.answered += int(np.count_nonzero(~self._taken[start:stop]))
        self._taken[start:stop] = True
        self._unmarked.append((start, stop, 1 + self._boards.index(board)))

    def commit(self) -> None:
        """Flush what was put, mark it as there, and write the row groups that it completes.

        Raises
        ------
        InputError
            The disk is full, say; what was put stays, for the next time.
        """
        with self._committing, writing(self._folder):
            # More may be put meanwhile.
            unmarked = len(self._unmarked)
            if unmarked:
                self._answers.flush()
                listed = self._files[2].with_suffix(".partial")
                listed.write_text(json.dumps(self._boards))
                settle(listed, self._files[2])
                for _ in range(unmarked):
                    start, stop, mark = self._unmarked.popleft()
                    self._marks[start:stop] = mark
                self._marks.flush()
            while self._remaining >= ROW_GROUP and self._marks[self._written :][:ROW_GROUP].all():
                self._write_group()

    def finish(self) -> int | None:
        """Complete predictions.parquet, in the order of the records.

        Returns
        -------
        int or None
            How many of the classified records have the class of their label; None without labels.
        """
        self.commit()
        with writing(self._folder):
            while self._remaining:
                self._write_group()
            self._writer.close()
            settle(self._partial, self._partial.with_suffix(".parquet"))
        return self._correct if self._labelled else None

    @property
    def _remaining(self) -> int:
        return len(self._marks) - self._written

    def _begin(self) -> None:
        self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        self._written = 0
        self._labelled = self._correct = 0

    def _write_group(self) -> None:
        start = self._written
        marks = self._marks[start : start + ROW_GROUP]
        index = start + np.flatnonzero(marks)
        answers = self._answers[index]
        board = self._marks[index].astype(np.int32) - 1
        labels, classes = answers["label"], answers["class"]
        self._labelled += int(np.count_nonzero(labels != UNLABELLED))
        self._correct += int(np.count_nonzero(labels == classes))
        names, devices = ([board[field] for board in self._boards] for field in (0, 1))
        columns: list[Any] = [
            pa.array(index, pa.int64()),
            pa.array(labels.astype(np.uint8), mask=labels == UNLABELLED),
            pa.array(classes),
            pa.DictionaryArray.from_arrays(classes.astype(np.int32), self._class_names),
            pa.DictionaryArray.from_arrays(board, names),
            pa.DictionaryArray.from_arrays(board, devices),
        ]
        if "scores" in self._schema.names:
            scores = np.ascontiguousarray(answers["scores"])
            columns.append(
                pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), scores.shape[1])
            )
        try:
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        except OSError:
            # The writer is of no use any more.
            self._begin()
            raise
        self._written += len(marks)

    def drop(self) -> None:
        """Delete the arrays, whose content predictions.parquet has."""
        for file in self._files:
            file.unlink(missing_ok=True)


def count(path: Path, records: int) -> tuple[int, int]:
    """Read predictions.parquet back: how many different records it has, and how many rows too many.

    Returns
    -------
    (int, int)
        Records present at least once, and duplicate rows.
    """
    seen = np.zeros(records, bool)
    rows = 0
    for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP, columns=["index"]):
        seen[batch.column(0).to_numpy()] = True
        rows += batch.num_rows
    present = int(np.count_nonzero(seen))
    return present, rows - present


def _schema(scores: int) -> pa.Schema:
    name = pa.dictionary(pa.int32(), pa.string())
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.uint8()),
        pa.field("class", pa.int16(), nullable=False),
        pa.field("class_name", name),
        pa.field("board", name),
        pa.field("device", name),
    ]
    if scores:
        fields.append(pa.field("scores", pa.list_(pa.int16(), scores)))
    return pa.schema(fields)


def _listed(file: Path) -> list[tuple[str, str]]:
    try:
        return [(name, device) for name, device in json.loads(file.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def _array(path: Path, dtype: np.dtype[Any], records: int, resume: bool) -> np.memmap[Any, Any]:
    if resume:
        array = _present(path, dtype, records)
        _reserve(path)
    else:
        partial = path.with_suffix(".partial")
        array = np.lib.format.open_memmap(partial, "w+", dtype, (records,))
        _reserve(partial)
        partial.replace(path)
    return array


def _reserve(path: Path) -> None:
    """Where a page of the file found no room later, the process would die of SIGBUS."""
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _present(path: Path, dtype: np.dtype[Any], records: int) -> np.memmap[Any, Any]:
    try:
        array = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be resumed from ({error})") from None
    if array.dtype != dtype or array.shape != (records,):
        raise InputError(
            f"{path}: holds {array.shape} of {array.dtype}, expected ({records},) of {dtype}"
        )
    return array
