"""Arrow tables and record batches through Dask without a copy, in place of Dask's own serialiser.

Dask's own writes a table into one new buffer and sends that. Here the buffers that a table already
has are the frames of the message, a slice sends the bytes of its own rows alone, and what arrives
lives, aligned, in the memory that it was read into. A table in thousands of small chunks, as
``pyarrow.csv`` reads it, is gathered into few frames, since a frame costs more than its copy.

Both ends need this. Importing the module registers it; ``distributed_pynq.worker`` has Dask import
it once something from pyarrow passes by, so that boards need no pyarrow; any other worker takes
``--preload distributed_pynq.arrow``. Runs on Python 3.8, pyarrow 3 and distributed 2021.3.0 up to
the newest of each.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Union

import distributed.protocol.arrow  # noqa: F401  Dask's own is registered now, and not later
import pyarrow as pa
import pyarrow.compute as pc
from dask.sizeof import sizeof
from distributed.protocol.serialize import (
    dask_deserialize,
    dask_dumps,
    dask_loads,
    dask_serialize,
    register_serialization_family,
)
from pyarrow import ipc, types

Data = Union[pa.Table, pa.RecordBatch]

SMALL_CHUNK = 2**18
"""Bytes of a column's chunk below which a copy costs less than a frame of its own."""

PART = 2**26
"""Bytes of a table in small chunks that become one frame, about."""


class _Parts(NamedTuple):
    """What pyarrow reduces an array to when it is pickled."""

    type: pa.DataType
    length: int
    nulls: int  # -1: not counted yet
    offset: int  # rows of every buffer to skip
    buffers: list[Any]
    children: list[tuple[Any, ...]]
    dictionary: tuple[Any, ...] | None


class _Pickler(pickle.Pickler):
    """Pickles Arrow data, every array cut down to its own rows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffers: dict[tuple[int, int], pa.Buffer] = {}

    def reducer_override(self, value: Any) -> Any:
        """Reduce as pyarrow does, but for fragments, the rows of others, and what it forgets."""
        if isinstance(value, pa.Table) and _fragmented(value):
            # What old versions of pyarrow cannot write goes array by array.
            with contextlib.suppress(pa.ArrowException):
                return _unpack, tuple(map(pickle.PickleBuffer, _pack(value)))
        # The number of rows without columns; the field of values; whether keys are sorted.
        if isinstance(value, pa.RecordBatch) and not value.num_columns:
            return ipc.read_record_batch, (value.serialize(), value.schema)
        if isinstance(value, pa.FixedSizeListType):
            return pa.list_, (value.value_field, value.list_size)
        if isinstance(value, pa.MapType) and hasattr(value, "keys_sorted"):
            return pa.map_, (*value.__reduce__()[1], value.keys_sorted)
        if not isinstance(value, pa.Array):
            return NotImplemented
        restore, (parts,) = value.__reduce__()
        return restore, (self._once(_rows(_Parts(*parts), 0, len(value))),)

    def _once(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same parts, but memory that went before as the same object, which is pickled once.

        Chunks share the memory of their dictionary, but each has buffers of its own for it.
        """
        layout, length, nulls, offset, buffers, children, dictionary = parts
        buffers = [
            buffer and self._buffers.setdefault((buffer.address, buffer.size), buffer)
            for buffer in buffers
        ]
        children = [self._once(child) for child in children]
        dictionary = dictionary and self._once(dictionary)
        return layout, length, nulls, offset, buffers, children, dictionary


def serialize(data: Data) -> tuple[dict[str, Any], list[Any]]:
    """Frames of a table or record batch: its pickled skeleton, then its own buffers.

    A table in small chunks is copied into few frames; elsewhere only the offsets and unaligned
    bitmaps of slices are copied, and arrays of unions, views and run-ends.
    """
    skeleton = io.BytesIO()
    buffers: list[Any] = []
    _Pickler(skeleton, protocol=5, buffer_callback=buffers.append).dump(data)
    # Dask reads a message's first frame that is not bytes together with its header, wherever that
    # ends, and every later one into aligned memory of its own: the skeleton goes first.
    return {}, [memoryview(frame) for frame in (bytearray(skeleton.getvalue()), *buffers)]


def deserialize(header: dict[str, Any], frames: list[Any]) -> Data:
    """The table or record batch of `serialize`, in the memory of the frames."""
    data: Data = pickle.loads(frames[0], buffers=frames[1:])
    return data


def register() -> None:
    """Have Dask use this module for tables and record batches from now on."""
    for kind in (pa.Table, pa.RecordBatch):
        dask_serialize.register(kind, serialize)
        dask_deserialize.register(kind, deserialize)
        sizeof.dispatch(kind)  # Dask's own is registered now, and not later
        sizeof.register(kind, _size)
    register_serialization_family("dask", _dumps, dask_loads)


def _dumps(value: Any, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    header, frames = dask_dumps(value, context=context)
    if isinstance(value, (pa.Table, pa.RecordBatch)):
        # A serialiser of Dask's "dask" family has no say in this: frames that are marked are not
        # tried on a compressor, nor cut into shards that the receiver would copy together again.
        header["compression"] = (False,) * len(frames)
    return header, frames


def _size(data: Data) -> int:
    """Bytes that data hold in memory.

    Dask counts them in Python, chunk by chunk, which takes a tenth of the time of sending them.
    """
    if hasattr(data, "get_total_buffer_size"):
        return int(data.get_total_buffer_size())
    return int(data.nbytes)  # old versions of pyarrow


def _fragmented(table: pa.Table) -> bool:
    """Whether few frames for all are better than one for each buffer."""
    if not table.num_columns:  # nothing but a stream says how many rows there are
        return bool(table.num_rows)
    chunks = sum(column.num_chunks for column in table.itercolumns())
    return (
        chunks > table.num_columns
        and _size(table) < chunks * SMALL_CHUNK
        and all(map(_streamable, table.schema.types))
    )


def _streamable(layout: pa.DataType, dictionaries: bool = True) -> bool:
    """Whether a type arrives in a stream as it is.

    Extension types need not be registered where it is read, and of dictionaries in dictionaries
    pyarrow reads others than it wrote.
    """
    if types.is_dictionary(layout):
        return dictionaries and _streamable(layout.value_type, dictionaries=False)
    return not isinstance(layout, pa.BaseExtensionType) and all(
        # Old versions of pyarrow do not show what is in a type.
        hasattr(layout, "field") and _streamable(layout.field(number).type, dictionaries)
        for number in range(layout.num_fields)
    )


def _pack(table: pa.Table) -> list[pa.Buffer]:
    """A table as Arrow streams of as many rows each, written by several threads."""
    rows = max(1, -(-table.num_rows // (1 + _size(table) // PART)))
    starts = range(0, max(1, table.num_rows), rows)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda start: _stream(table.slice(start, rows)), starts))


def _stream(table: pa.Table) -> pa.Buffer:
    """A table as an Arrow stream, in memory of its exact size."""

    def write(sink: pa.NativeFile) -> pa.NativeFile:
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink

    stream = pa.allocate_buffer(write(pa.MockOutputStream()).size())
    write(pa.FixedSizeBufferWriter(stream))
    return stream


def _unpack(*streams: Any) -> pa.Table:
    """The table of `_pack`, in the memory of the streams."""
    first, *others = (ipc.open_stream(pa.py_buffer(stream)).read_all() for stream in streams)
    return pa.concat_tables([first, *others]) if others else first


def _rows(parts: _Parts, start: int, stop: int) -> _Parts:
    """The rows from start to stop of an array, in buffers that hold nothing else."""
    layout, _, nulls, offset, buffers, children, dictionary = parts
    while isinstance(layout, pa.BaseExtensionType):
        layout = layout.storage_type
    first, last = offset + start, offset + stop
    kept = []
    if types.is_struct(layout):
        children = [_rows(_Parts(*child), first, last) for child in children]
    elif types.is_fixed_size_list(layout):
        size = layout.list_size
        children = [_rows(_Parts(*children[0]), first * size, last * size)]
    elif types.is_list(layout) or types.is_large_list(layout) or types.is_map(layout):
        offsets, low, high = _offsets(buffers[1], first, last, types.is_large_list(layout))
        kept = [offsets]
        children = [_rows(_Parts(*children[0]), low, high)]
    elif types.is_string(layout) or types.is_binary(layout):
        kept = _values(buffers, first, last, large=False)
    elif types.is_large_string(layout) or types.is_large_binary(layout):
        kept = _values(buffers, first, last, large=True)
    elif _width(layout):
        kept = [_slice(buffers[1], first, last, _width(layout))]
    elif not types.is_null(layout):
        # Unions, run-ends, views: pyarrow cuts them, with a copy, or they go with all their rows.
        rows = pa.lib._restore_array(tuple(parts)).slice(start, stop - start)
        with contextlib.suppress(pa.ArrowNotImplementedError):
            rows = pa.concat_arrays([rows])
        return _Parts(*rows.__reduce__()[1][0])
    if dictionary:
        dictionary = _rows(_Parts(*dictionary), 0, dictionary[1])
    if types.is_null(layout):
        nulls = stop - start
    elif nulls and stop - start < parts.length:
        nulls = -1
    validity = _slice(buffers[0], first, last, 1) if nulls else None
    return _Parts(parts.type, stop - start, nulls, 0, [validity, *kept], children, dictionary)


def _width(layout: pa.DataType) -> int:
    """Bits per value of a fixed-width type, 0 for others."""
    try:
        return int(layout.bit_width)
    except ValueError:
        return 0


def _slice(buffer: pa.Buffer | None, first: int, last: int, width: int) -> pa.Buffer | None:
    """The values from first to last, of `width` bits each."""
    if buffer is None or first == last:
        return buffer and buffer.slice(0, 0)
    if first * width % 8:
        bits = pa.Array.from_buffers(pa.bool_(), last - first, [None, buffer], offset=first)
        return pa.concat_arrays([bits]).buffers()[1]
    start = first * width // 8
    return buffer.slice(start, (last * width + 7) // 8 - start)


def _offsets(
    buffer: pa.Buffer | None, first: int, last: int, large: bool
) -> tuple[pa.Buffer | None, int, int]:
    """The offsets of the rows from first to last, from 0 on, and the values that they enclose."""
    if not buffer:  # as an empty array may have it
        return buffer, 0, 0
    kind = pa.int64() if large else pa.int32()
    rows = buffer.slice(first * kind.bit_width // 8, (last - first + 1) * kind.bit_width // 8)
    offsets = pa.Array.from_buffers(kind, last - first + 1, [None, rows])
    low, high = offsets[0].as_py(), offsets[-1].as_py()
    if low:
        offsets = pc.subtract(offsets, pa.scalar(low, kind))
    return offsets.buffers()[1], low, high


def _values(buffers: list[Any], first: int, last: int, *, large: bool) -> list[Any]:
    offsets, low, high = _offsets(buffers[1], first, last, large)
    return [offsets, buffers[2] and buffers[2].slice(low, high - low)]


register()
