"""What Arrow data looks like as Dask's frames, and that it comes out of them equal."""

import datetime
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Union

import pyarrow as pa
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize

from distributed_pynq import arrow

ROWS = 1000
SLICES = [(0, ROWS), (0, 10), (3, 17), (16, 64), (801, 199), (5, 0), (ROWS, 0)]

Data = Union[pa.Table, pa.RecordBatch]


class Celsius(pa.ExtensionType):
    """A type of our own, as users define them."""

    def __init__(self) -> None:
        super().__init__(pa.float32(), "distributed-pynq.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Celsius":
        return cls()


def make(type_: Any, value: Callable[[random.Random], Any], nulls: float = 0.2) -> pa.Array:
    """ROWS random values, some of them null."""
    dice = random.Random(0)
    values = [None if dice.random() < nulls else value(dice) for _ in range(ROWS)]
    return pa.array(values, type_)


def word(dice: random.Random) -> str:
    return "ä" * dice.randrange(20)


def words(dice: random.Random) -> list[Any]:
    return [None if dice.random() < 0.2 else word(dice) for _ in range(dice.randrange(5))]


def number(dice: random.Random) -> int:
    return dice.randrange(100)


# Arrays that are cut without copying their values.
PLAIN = {
    "int16": make(pa.int16(), number),
    "without nulls": make(pa.int64(), number, nulls=0),
    "all null": make(pa.int8(), number, nulls=1),
    "bool": make(pa.bool_(), lambda dice: dice.random() < 0.5),
    "null": pa.nulls(ROWS),
    "decimal": make(pa.decimal128(20, 2), lambda dice: Decimal(number(dice))),
    "timestamp": make(
        pa.timestamp("us", "UTC"), lambda dice: datetime.datetime(2020, 1, 1 + number(dice) % 28)
    ),
    "string": make(pa.string(), word),
    "large string": make(pa.large_string(), word),
    "binary": make(pa.binary(), lambda dice: word(dice).encode()),
    "large binary": make(pa.large_binary(), lambda dice: word(dice).encode()),
    "fixed binary": make(pa.binary(5), lambda dice: b"%05d" % number(dice)),
    "list": make(pa.list_(pa.string()), words),
    "large list": make(pa.large_list(pa.string()), words),
    "fixed list": make(pa.list_(pa.int16(), 3), lambda dice: [1, None, number(dice)]),
    "map": make(pa.map_(pa.string(), pa.int8()), lambda dice: [("a", 1), ("b", number(dice))]),
    "struct": make(None, lambda dice: {"a": number(dice), "b": word(dice), "c": words(dice)}),
    "nested": make(None, lambda dice: [{"a": words(dice)}, {"a": [], "b": {"c": word(dice)}}]),
    "extension": pa.ExtensionArray.from_storage(Celsius(), make(pa.float32(), number)),
    "dictionary": make(None, lambda dice: "abc"[number(dice) % 3]).dictionary_encode(),
    "list of dictionary": pa.ListArray.from_arrays(
        pa.array(range(0, 2 * ROWS + 1, 2), pa.int32()),
        make(None, lambda dice: "abc"[number(dice) % 3])
        .take(pa.array([n % ROWS for n in range(2 * ROWS)]))
        .dictionary_encode(),
    ),
}
# Arrays that pyarrow has to cut.
OTHERS = {
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1] * (ROWS // 2), pa.int8()),
        pa.array([row // 2 for row in range(ROWS)], pa.int32()),
        [make(pa.int8(), number), make(pa.string(), word)],
    ),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1] * (ROWS // 2), pa.int8()),
        [make(pa.int8(), number), make(pa.string(), word)],
    ),
    "run ends": pa.RunEndEncodedArray.from_arrays(
        pa.array(range(10, ROWS + 1, 10), pa.int32()), list(range(ROWS // 10))
    ),
    "string view": make(pa.string_view(), word),
    "list view": make(pa.list_view(pa.int8()), lambda dice: [1] * (number(dice) % 5)),
}


def through_frames(data: Data) -> tuple[Data, int]:
    """The data after a journey as bytes, and their number."""
    header, frames = serialize(data)
    assert header["serializer"] == "dask"
    copies = [bytearray(frame) for frame in frames]
    return deserialize(header, copies), sum(map(len, copies))


def check(data: Data) -> int:
    """Check that the data arrive equal, and return how many bytes they took."""
    arrived, size = through_frames(data)
    assert type(arrived) is type(data)
    assert arrived.schema.equals(data.schema, check_metadata=True)
    assert arrived.equals(data)
    arrived.validate(full=True)
    return size


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_arrives_equal(name: str) -> None:
    array = {**PLAIN, **OTHERS}[name]
    whole = pa.record_batch([array], names=["column"])
    for start, length in SLICES:
        batch = whole.slice(start, length)
        check(batch.replace_schema_metadata({"a": "b"}))
        check(pa.Table.from_batches([batch, whole.slice(1, 100), batch, batch.slice(0, 0)]))


@pytest.mark.parametrize("name", PLAIN)
def test_slice_sends_its_own_rows_only(name: str) -> None:
    def size(batch: pa.RecordBatch) -> int:
        return sum(memoryview(frame).nbytes for frame in serialize(batch)[1][1:])

    whole = pa.record_batch([PLAIN[name]], names=["column"])
    for start, length in SLICES:
        # Built anew, the rows have no other rows beside them; bitmaps may end in another byte.
        rows = whole.slice(start, length).to_pylist()
        anew = pa.RecordBatch.from_pylist(rows, whole.schema)
        assert size(whole.slice(start, length)) <= size(anew) + 16


def test_frames_are_the_buffers_of_the_table() -> None:
    table = pa.table({"n": list(range(100_000)), "s": [str(n) for n in range(100_000)]})
    own = [
        (buffer.address, buffer.size)
        for column in table.columns
        for buffer in column.chunk(0).buffers()
        if buffer
    ]
    header, frames = serialize(table)
    assert [(pa.py_buffer(frame).address, len(frame)) for frame in frames[1:]] == own
    arrived = deserialize(header, frames)
    assert arrived["s"].chunk(0).buffers()[2].address == own[2][0]


def test_slices_of_plain_columns_are_not_copied() -> None:
    values = make(pa.int64(), number)
    strings = make(pa.string(), word)
    batch = pa.record_batch([values, strings], names=["n", "s"]).slice(3, 50)
    sent = {pa.py_buffer(frame).address for frame in serialize(batch)[1]}
    assert values.buffers()[1].address + 3 * 8 in sent
    start = sum(len((value or "").encode()) for value in strings[:3].to_pylist())
    assert strings.buffers()[2].address + start in sent


def test_frames_are_neither_compressed_nor_cut() -> None:
    header, frames = serialize([pa.table({"n": [1, 2]}), pa.record_batch({"n": [3]})])
    assert header["compression"] == [False] * len(frames)
    assert "compression" not in serialize(b"other data")[0]


def test_bitmaps_without_nulls_stay_at_home() -> None:
    array = pa.array([None, *range(1000)])
    _, frames = serialize(pa.record_batch([array.slice(1)], names=["n"]).slice(0, 1000))
    assert sum(map(len, frames[1:])) <= 8000 + 126
    filled = pa.Array.from_buffers(pa.int64(), 3, pa.array([1, 2, 3, None]).buffers(), 0)
    assert len(serialize(pa.record_batch([filled], names=["n"]))[1]) == 2


def test_dictionary_of_all_chunks_is_sent_once() -> None:
    words = pa.array([f"{n:01000}" for n in range(1000)])
    chunks = [pa.DictionaryArray.from_arrays(pa.array([n, 2 * n]), words) for n in range(300)]
    table = pa.table({"d": pa.chunked_array(chunks)})
    assert check(table) < 1.1 * words.nbytes


def test_small_chunks_travel_in_one_frame_and_large_ones_apart() -> None:
    for rows, frames in ((1000, 1), (100_000, 50)):
        table = pa.concat_tables([pa.table({"n": [n] * rows}) for n in range(50)])
        check(table)
        assert len(serialize(table)[1]) == 1 + frames
        assert through_frames(table)[0]["n"].num_chunks == 50


def test_many_small_chunks_travel_in_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "PART", 10_000)
    arrays = {**PLAIN, **OTHERS}
    del arrays["extension"]
    table = pa.concat_tables([pa.table(arrays).slice(3, 500)] * 20)
    check(table)
    assert len(serialize(table)[1]) > 10


def test_small_chunks_arrive_without_a_copy_and_aligned() -> None:
    table = pa.concat_tables([pa.table({"n": [1, 2, 3], "s": ["a", "bc", None]})] * 50)
    header, frames = serialize(table)
    start = pa.py_buffer(frames[1]).address
    chunks = [chunk for column in deserialize(header, frames).columns for chunk in column.chunks]
    addresses = [buffer.address for chunk in chunks for buffer in chunk.buffers() if buffer]
    assert all(start < address < start + len(frames[1]) for address in addresses)
    assert not any((address - start) % 8 for address in addresses)


def test_size_is_what_the_buffers_hold() -> None:
    table = pa.concat_tables([pa.table({"n": list(range(1000))})] * 50)
    for data in (table.combine_chunks(), table.combine_chunks().to_batches()[0]):
        assert sizeof(data) == 50 * 1000 * 8
    # A chunk that is there fifty times holds its memory once.
    assert sizeof(table) == 1000 * 8


@pytest.mark.parametrize(
    "table",
    [
        pa.table({}),
        pa.table({"n": pa.array([], pa.int8()), "s": pa.array([], pa.string())}),
        pa.Table.from_batches([], pa.schema([("n", pa.int8()), ("l", pa.list_(pa.string()))])),
    ],
)
def test_empty_tables(table: pa.Table) -> None:
    check(table)


def test_random_tables() -> None:
    dice = random.Random(1)
    arrays = {**PLAIN, **OTHERS}
    for _ in range(50):
        names = dice.sample(sorted(arrays), 4)
        batches, length = [], dice.randrange(200)
        for _ in range(dice.randrange(1, 5)):
            columns = [arrays[name].slice(dice.randrange(800), length) for name in names]
            batches.append(pa.record_batch(columns, names=names))
        check(pa.Table.from_batches(batches).slice(dice.randrange(50), dice.randrange(500)))
        check(batches[0])


def test_dask_does_not_take_over_again() -> None:
    # Other types of pyarrow have Dask register all of its own serialisers.
    serialize(pa.schema([]))
    header, frames = serialize(pa.table({"n": [1]}))
    assert len(frames) == 2
    assert arrow.deserialize({}, frames).equals(deserialize(header, frames))
