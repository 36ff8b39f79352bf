"""Data sets as records that are read when they are needed: files of any size, flat memory."""

from __future__ import annotations

import difflib
import gzip
import io
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from . import digits, pictures, storage
from .errors import InputError
from .networks import NETWORKS, Network

Bytes = npt.NDArray[np.uint8]

CIFAR10_ARCHIVE = ("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530")
MNIST_FILES = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR10_RECORD = 3073
MNIST_SIDE = 28
IDX_IMAGES, IDX_LABELS = 0x803, 0x801


@dataclass(frozen=True)
class Table:
    """Rows of `width` bytes in an open file, mapped into memory only while they are looked at."""

    file: IO[bytes]
    offset: int
    width: int
    rows: int

    def cut(self, start: int, stop: int) -> Bytes:
        """Rows start to stop as uint8 (n, width), zero-copy and read-only."""
        shape = (stop - start, self.width)
        where = self.offset + start * self.width
        return np.asarray(np.memmap(self.file, np.uint8, "r", where, shape))


@dataclass(frozen=True)
class Segment:
    """Records that lie in one file.

    labels: rows that start with a label, one for each record. pictures: the file that each record
    was made of.
    """

    source: str
    records: Table
    labels: Table | None
    pictures: Sequence[Path] = ()


class Dataset:
    """Records of one or several files behind one another, in the form that a kind of network takes.

    CNV's are CIFAR-10 records of 3073 bytes (label, 32x32 planar RGB), LFC's the 784 pixels of a
    28x28 grey image.
    """

    def __init__(self, name: str, kind: str, segments: Sequence[Segment]) -> None:
        self.name = name
        self.kind = kind
        self.segments = segments
        self._ends = np.cumsum([segment.records.rows for segment in segments])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def records(self, start: int, stop: int) -> Bytes:
        """Records start to stop as uint8 (n, 3073 or 784); zero-copy inside one file."""
        cuts = [segment.records.cut(first, last) for segment, first, last in self._at(start, stop)]
        return cuts[0] if len(cuts) == 1 else np.concatenate(cuts)

    def labels(self, start: int, stop: int) -> Bytes | None:
        """Labels of records start to stop as uint8 (n,), or None where nobody gave any."""
        cuts = []
        for segment, first, last in self._at(start, stop):
            if segment.labels is None:
                return None
            cuts.append(segment.labels.cut(first, last)[:, 0])
        return np.concatenate(cuts)

    def image(self, index: int) -> Bytes:
        """One record to look at: uint8 (32, 32, 3) or (28, 28)."""
        record: Bytes = self.records(index, index + 1)[0]
        image: Bytes = (
            record.reshape(MNIST_SIDE, MNIST_SIDE)
            if self.kind == "lfc"
            else record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
        )
        return image

    def source(self, index: int) -> str:
        """Where a record comes from, for messages: its picture, or its file and place there."""
        segment, first, _ = self._at(index, index + 1)[0]
        if segment.pictures:
            return str(segment.pictures[first])
        return f"{segment.source}, record {first}"

    def _at(self, start: int, stop: int) -> list[tuple[Segment, int, int]]:
        """The segments that records start to stop lie in, with the first and last row in each."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"{self.name}: records {start} to {stop} of {len(self)}")
        begins = self._ends - [segment.records.rows for segment in self.segments]
        return [
            (segment, max(start - int(begin), 0), min(stop, int(end)) - int(begin))
            for segment, begin, end in zip(self.segments, begins, self._ends)
            if start < end and begin < stop
        ]


def load(source: str, network: Network) -> Dataset:
    """The data set `source` for a network.

    source: digits, cifar10, mnist, a CIFAR-10 binary file (….bin) or an idx file, either also with
    .gz, or a folder of PNG and JPEG pictures, taken in the order of their names.
    Raises InputError: one line with the file, the offset and what was expected there.
    """
    try:
        return Dataset(source, network.kind, _segments(source, network))
    except OSError as error:
        raise InputError(f"{error.filename or source}: {error.strerror or error}") from error


def _segments(source: str, network: Network) -> list[Segment]:
    path = Path(source)
    if source == "digits":
        return [_digits(network.kind)]
    if source == "cifar10":
        _expect("cnv", source, network)
        return [_cifar(file) for file in _cifar10_files()]
    if source == "mnist":
        _expect("lfc", source, network)
        return [_idx(_mnist_file())]
    if not source or not path.exists():
        names = ["cifar10", "digits", "mnist"]
        nearest = difflib.get_close_matches(source.lower(), names, 1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(f"{source!r}: no such file or folder, nor one of {', '.join(names)}{hint}")
    if path.is_dir():
        return [_pictures(path, network.kind)]
    if not path.is_file():
        raise InputError(f"{path}: expected a regular file or a folder of pictures")
    if path.suffix.lower() in pictures.SUFFIXES:
        raise InputError(f"{path}: a single picture, expected the folder it is in")
    if path.name.removesuffix(".gz").endswith(".bin"):
        _expect("cnv", source, network)
        return [_cifar(path)]
    _expect("lfc", source, network)
    return [_idx(path)]


def _expect(kind: str, source: str, network: Network) -> None:
    """Refuse records of one kind of network for the other."""
    if network.kind == kind:
        return
    form = {"cnv": "32x32 colour records", "lfc": "28x28 grey images"}
    fitting = ", ".join(name for name, other in NETWORKS.items() if other.kind == kind)
    raise InputError(
        f"{source}: {form[kind]} are for {fitting}; {network.name} expects {form[network.kind]}"
    )


def _digits(kind: str) -> Segment:
    """The held-out digits, laid into files like any other data set."""
    images, labels = digits.load("held-out", kind)
    column = labels[:, np.newaxis]
    if kind == "cnv":
        records = _table(np.hstack([column, images]))
        return Segment("digits", records, records)
    return Segment("digits", _table(images), _table(column))


def _table(rows: Bytes) -> Table:
    """Rows (n, width) laid into a file."""
    file = _nameless()
    file.write(np.ascontiguousarray(rows).data)
    file.flush()
    return Table(file, 0, rows.shape[1], len(rows))


def _nameless() -> IO[bytes]:
    """A file without a name: it is gone as soon as nothing has it open or mapped."""
    return tempfile.TemporaryFile()


def _cifar10_files() -> list[Path]:
    """The data folder's cifar10/test*.bin in the order of their names, downloaded if missing."""
    folder = storage.data_folder() / "cifar10"
    if not list(folder.glob("test*.bin")):
        remedy = f"put the test_batch.bin that is in it into {folder}"
        with storage.workspace(folder) as scratch:
            archive = storage.download("cifar10", *CIFAR10_ARCHIVE, scratch, remedy)
            with tarfile.open(archive) as tar, open(scratch / "test_batch.bin", "wb") as file:
                member = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
                shutil.copyfileobj(member or io.BytesIO(), file)
            storage.place(scratch / "test_batch.bin", folder / "test_batch.bin")
    return sorted(folder.glob("test*.bin"))


def _mnist_file() -> Path:
    """The data folder's mnist/t10k-images-idx3-ubyte(.gz), downloaded if missing."""
    folder = storage.data_folder() / "mnist"
    packed, *_ = MNIST_FILES
    for name in (packed.removesuffix(".gz"), packed):
        if (folder / name).exists():
            return folder / name
    remedy = f"put {' and '.join(MNIST_FILES)} into {folder}"
    with storage.workspace(folder) as scratch:
        for name, sha256 in MNIST_FILES.items():
            storage.download("mnist", name, f"sha256:{sha256}", scratch, remedy)
        # Images last: where they are, their labels are complete.
        for name in reversed(MNIST_FILES):
            storage.place(scratch / name, folder / name)
    return folder / packed


def _open(path: Path) -> tuple[IO[bytes], int]:
    """A file that can be mapped, and its length; .gz is unpacked first."""
    if path.suffix != ".gz":
        file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (stays open as long as the data set)
    else:
        file = _nameless()
        try:
            with gzip.open(path) as content:
                shutil.copyfileobj(content, file, 1 << 20)
        except EOFError as error:
            end = path.stat().st_size
            raise InputError(
                f"{path}: truncated gzip, expected more at offset {end} (its end)"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path}: expected an undamaged gzip from offset 0 on ({error})"
            ) from error
        file.seek(0)
    return file, os.fstat(file.fileno()).st_size


def _cifar(path: Path) -> Segment:
    """A CIFAR-10 binary file. Any label byte will do: road signs have 43 classes."""
    file, size = _open(path)
    rows, rest = divmod(size, CIFAR10_RECORD)
    if rest:
        raise InputError(
            f"{path}: length {size} leaves {rest} bytes at offset {size - rest}, "
            f"expected whole records of {CIFAR10_RECORD}"
        )
    if not rows:
        raise InputError(f"{path}: 0 records, expected at least {CIFAR10_RECORD} bytes")
    records = Table(file, 0, CIFAR10_RECORD, rows)
    return Segment(str(path), records, records)


def _idx(path: Path) -> Segment:
    """An idx file of images, with the labels that lie beside it under MNIST's names, if any."""
    images = _idx_table(path, IDX_IMAGES, "images", (MNIST_SIDE, MNIST_SIDE))
    if not images.rows:
        raise InputError(f"{path}: offset 4: 0 records, expected at least one")
    beside = _labels_beside(path)
    if beside is None:
        return Segment(str(path), images, None)
    labels = _idx_table(beside, IDX_LABELS, "labels", ())
    if labels.rows != images.rows:
        raise InputError(
            f"{beside}: offset 4: {labels.rows} labels, "
            f"expected one for each of the {images.rows} images of {path.name}"
        )
    return Segment(str(path), images, labels)


def _labels_beside(path: Path) -> Path | None:
    """…labels-idx1-ubyte for …images-idx3-ubyte, whether packed or not."""
    name = path.name.removesuffix(".gz")
    wanted = name.replace("image", "label").replace("idx3", "idx1")
    if wanted == name:
        return None
    candidates = (path.with_name(wanted), path.with_name(f"{wanted}.gz"))
    return next((file for file in candidates if file.exists()), None)


def _idx_table(path: Path, magic: int, what: str, shape: tuple[int, ...]) -> Table:
    """The items of an idx file of bytes, of which each must have `shape`."""
    file, size = _open(path)
    header = 8 + 4 * len(shape)
    numbers = struct.unpack(f">{header // 4}I", file.read(header).ljust(header, b"\0"))
    if size >= 4 and numbers[0] != magic:
        raise InputError(
            f"{path}: offset 0: magic 0x{numbers[0]:08x}, expected 0x{magic:08x} of idx {what} "
            "(a CIFAR-10 binary file has a name that ends in .bin)"
        )
    if size < header:
        raise InputError(f"{path}: length {size}, expected an idx header of {header} bytes")
    count, *actual = numbers[1:]
    if tuple(actual) != shape:
        raise InputError(
            f"{path}: offset 8: images of {actual[0]}x{actual[1]} pixels, "
            f"expected {shape[0]}x{shape[1]}"
        )
    width = int(np.prod(shape, dtype=int))
    if size != header + count * width:
        raise InputError(
            f"{path}: length {size}, expected {header + count * width} "
            f"for the {count} {what} that offset 4 announces"
        )
    return Table(file, header, width, count)


def _pictures(folder: Path, kind: str) -> Segment:
    """The pictures of a folder as records; files of other kinds are passed over."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in pictures.SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        what = "no picture among its files" if any(folder.iterdir()) else "empty folder"
        raise InputError(f"{folder}: {what}, expected {', '.join(sorted(pictures.SUFFIXES))}")
    records = _nameless()
    for path in storage.track(files, f"Preparing {folder.name}"):
        records.write(pictures.record(path, kind).data)
    records.flush()
    width = records.tell() // len(files)
    return Segment(str(folder), Table(records, 0, width, len(files)), None, files)
