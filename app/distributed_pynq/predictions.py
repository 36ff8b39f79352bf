"""What a job has found so far, kept so that neither a crash nor 10 million records hurt.

While a job runs, its output folder holds two memory-mapped arrays with a place for every record:
``answers.npy`` (class and, if asked for, scores) and ``boards.npy`` (1 + number of the board that
answered, 0 for none yet); ``boards.json`` lists the boards. A record is marked only after its
answer is flushed to disk, so that it counts as classified only if its answer is safe, whatever
dies, client or machine. At the end the arrays become predictions.parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .datasets import Dataset
from .errors import InputError

ROW_GROUP = 65_536

Array = npt.NDArray[Any]


class Predictions:
    """A place for the answer of every record, on disk; answers that lie there already count.

    Parameters
    ----------
    folder
        The job's output folder.
    records
        How many records the data set has.
    scores
        Scores kept per record, 0 for none.

    Raises
    ------
    InputError
        What lies in the folder does not fit.
    """

    def __init__(self, folder: Path, records: int, scores: int) -> None:
        self._files = [folder / name for name in ("answers.npy", "boards.npy", "boards.json")]
        answer = np.dtype([("class", "<i2"), ("scores", "<i2", (scores,))])
        # The file of the marks is the last to be made.
        resume = self._files[1].exists()
        self._answers = _array(self._files[0], answer, records, resume)
        self._marks = _array(self._files[1], np.dtype("<u2"), records, resume)
        self._boards: list[tuple[str, str]] = []
        if resume and self._files[2].exists():
            self._boards = [
                (name, device) for name, device in json.loads(self._files[2].read_text())
            ]
        self._unmarked: list[tuple[int, int, int]] = []
        self._taken = np.asarray(self._marks) != 0
        self.answered = int(np.count_nonzero(self._taken))

    def has(self, start: int, stop: int) -> bool:
        """Whether each of the records start..stop has an answer."""
        return bool(self._taken[start:stop].all())

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
        self.answered += int(np.count_nonzero(~self._taken[start:stop]))
        self._taken[start:stop] = True
        self._answers["class"][start:stop] = classes
        if scores is not None:
            self._answers["scores"][start:stop] = scores
        self._unmarked.append((start, stop, 1 + self._boards.index(board)))

    def commit(self) -> None:
        """Flush what was put, then mark it as there."""
        unmarked, self._unmarked = self._unmarked, []
        if unmarked:
            self._answers.flush()
            listed = self._files[2].with_suffix(".partial")
            listed.write_text(json.dumps(self._boards))
            listed.replace(self._files[2])
            for start, stop, mark in unmarked:
                self._marks[start:stop] = mark
            self._marks.flush()

    def write(self, path: Path, dataset: Dataset, class_names: Sequence[str]) -> int | None:
        """Write predictions.parquet in the order of the records.

        Returns
        -------
        int or None
            How many of the classified records have the class of their label; None without labels.
        """
        self.commit()
        boards, devices = ([board[field] for board in self._boards] for field in (0, 1))
        width = self._answers.dtype["scores"].shape[0]
        schema = _schema(width)
        correct: int | None = None
        partial = path.with_suffix(".partial")
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for start in range(0, len(self._taken), ROW_GROUP):
                stop = min(start + ROW_GROUP, len(self._taken))
                index = start + np.flatnonzero(self._taken[start:stop])
                answers = self._answers[index]
                board = self._marks[index].astype(np.int32) - 1
                labels = dataset.labels(start, stop)
                if labels is not None:
                    labels = labels[index - start]
                    correct = (correct or 0) + int(np.count_nonzero(labels == answers["class"]))
                columns: list[Any] = [
                    pa.array(index, pa.int64()),
                    pa.nulls(len(index), pa.uint8()) if labels is None else pa.array(labels),
                    pa.array(answers["class"]),
                    pa.DictionaryArray.from_arrays(answers["class"].astype(np.int32), class_names),
                    pa.DictionaryArray.from_arrays(board, boards),
                    pa.DictionaryArray.from_arrays(board, devices),
                ]
                if width:
                    scores = pa.array(np.ascontiguousarray(answers["scores"]).reshape(-1))
                    columns.append(pa.FixedSizeListArray.from_arrays(scores, width))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        partial.replace(path)
        return correct

    def drop(self) -> None:
        """Delete the arrays, once predictions.parquet has replaced them."""
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


def _array(path: Path, dtype: np.dtype[Any], records: int, resume: bool) -> np.memmap[Any, Any]:
    if not resume:
        return np.lib.format.open_memmap(path, "w+", dtype, (records,))
    try:
        array = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be resumed from ({error})") from None
    if array.dtype != dtype or array.shape != (records,):
        raise InputError(
            f"{path}: holds {array.shape} of {array.dtype}, expected ({records},) of {dtype}"
        )
    return array
