"""What Arrow data looks like as Dask's frames, and that it comes out of them equal."""

import asyncio
import datetime
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Union

import pyarrow as pa
import pytest
from dask.sizeof import sizeof
from distributed.comm.utils import from_frames, to_frames
from distributed.protocol import deserialize, serialize, to_serialize
from distributed.protocol.serialize import deserialize_bytes, serialize_bytes

from distributed_pynq import arrow
from distributed_pynq.bench.arrow import APP, OLDEST

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


Shape = tuple[str, list["Shape"]]
"""What an array is made of: a name of PLAIN or OTHERS, or a nested type and what is in it."""

NESTED = (
    "list",
    "large list",
    "list view",
    "fixed list",
    "map",
    "struct",
    "union",
    "dictionary",
    "run ends",
)
LEAVES = ("int16", "bool", "null", "decimal", "string", "string view", "large binary", "extension")


def shape(dice: random.Random, depth: int) -> Shape:
    """A random shape."""
    kind = dice.choice(NESTED) if depth else dice.choice(LEAVES)
    if kind == "run ends":
        # Of those of dictionaries, pyarrow makes the dictionaries anew when it cuts them.
        return kind, [shape(dice, 0)]
    inner = (2 if kind in ("struct", "union") else 1) if depth else 0
    return kind, [shape(dice, depth - 1) for _ in range(inner)]


def grow(of: Shape, dice: random.Random, rows: int) -> pa.Array:
    """A random array of that shape, cut out of a longer one on all levels."""
    kind, inner = of
    if not inner:
        return PLAIN.get(kind, OTHERS.get(kind)).slice(dice.randrange(ROWS - rows), rows)
    before, length = dice.randrange(10), rows + 20
    missing = pa.array([dice.random() < 0.3 for _ in range(length)])
    sizes = [dice.randrange(3) for _ in range(length + 1)]
    ends = [*itertools.accumulate(sizes)]
    sides = [dice.randrange(2) for _ in range(length)]

    def within(count: int, number: int = 0) -> pa.Array:
        return grow(inner[number], dice, count)

    if kind == "list":
        array = pa.ListArray.from_arrays(pa.array(ends, "int32"), within(ends[-1]), mask=missing)
    elif kind == "large list":
        array = pa.LargeListArray.from_arrays(pa.array(ends), within(ends[-1] + 1), mask=missing)
    elif kind == "list view":
        order = dice.sample(range(length), length)
        starts = pa.array([ends[n] - sizes[n] for n in order], "int32")
        counts = pa.array([sizes[n] for n in order], "int32")
        array = pa.ListViewArray.from_arrays(starts, counts, within(ends[-1]))
    elif kind == "fixed list":
        values = within(2 * length)
        layout = pa.list_(pa.field("of", values.type, metadata={"a": "b"}), 2)
        array = pa.FixedSizeListArray.from_arrays(values, type=layout, mask=missing)
    elif kind == "map":
        keys = pa.array(range(ends[-1])).cast("string")
        array = pa.MapArray.from_arrays(ends, keys, within(ends[-1]))
    elif kind == "struct":
        array = pa.StructArray.from_arrays(
            [within(length), within(length, 1)], ["a", "b"], mask=missing
        )
    elif kind == "union":
        array = pa.UnionArray.from_sparse(
            pa.array(sides, "int8"), [within(length), within(length, 1)]
        )
    elif kind == "dictionary":
        words = dice.randrange(1, 9)
        numbers = pa.array(
            [dice.randrange(words) for _ in range(length)], mask=missing.to_numpy(False)
        )
        array = pa.DictionaryArray.from_arrays(numbers, within(words))
    else:
        array = pa.RunEndEncodedArray.from_arrays(
            pa.array(range(3, length + 3, 3), "int32"), within(-(-length // 3))
        )
    return array.slice(before, rows)


def through_frames(data: Data) -> tuple[Data, int]:
    """The data after a journey as bytes, and their number."""
    header, frames = serialize(data)
    assert header["serializer"] == "dask"
    copies = [bytearray(frame) for frame in frames]
    return deserialize(header, copies), sum(map(len, copies))


def through_comm(data: Data) -> Data:
    """The data after a journey in a message, whose frames Dask may cut and compress."""

    async def sent() -> Data:
        frames = await to_frames([to_serialize(data)])
        return (await from_frames([bytearray(frame) for frame in frames]))[0]

    return asyncio.run(sent())


def check(data: Data) -> int:
    """Check that the data arrive equal, and return how many bytes they took."""
    arrived, size = through_frames(data)
    for one in (arrived, through_comm(data), deserialize_bytes(serialize_bytes(data))):
        assert type(one) is type(data)
        assert one.schema.equals(data.schema, check_metadata=True)
        assert one.num_rows == data.num_rows
        assert one.equals(data)
        one.validate(full=True)
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


def coded(*dictionaries: pa.Array) -> list[pa.Array]:
    """Each dictionary's first and last value."""
    return [
        pa.DictionaryArray.from_arrays(pa.array([0, len(words) - 1]), words)
        if len(words)
        else pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), words)
        for words in dictionaries
    ]


WORDS = pa.array([f"word {number}" for number in range(9)])
NUMBERS = pa.array([1, 2, 3])


@pytest.mark.parametrize(
    "columns",
    [
        coded(pa.array([{"x": 1}, {"x": 2}]), pa.array([{"x": 3}, {"x": 4}])),
        coded(WORDS.slice(0, 3), WORDS),
        coded(NUMBERS, NUMBERS.view(pa.timestamp("us"))),
        coded(pa.array([], pa.int64()), pa.array([], pa.float64())),
        coded(*(coded(words)[0] for words in (WORDS.slice(0, 3), WORDS.slice(3)))),
    ],
    ids=["of structs", "of other lengths", "of another type", "empty", "of dictionaries"],
)
def test_dictionaries_are_not_mixed_up(columns: list[pa.Array]) -> None:
    check(pa.table(columns, names=["a", "b"]))
    check(pa.record_batch(columns, names=["a", "b"]))
    if columns[0].type == columns[1].type:
        # Too few chunks for streams, and enough.
        check(pa.table({"a": pa.chunked_array(columns), "b": pa.array([0] * len(columns) * 2)}))
        check(pa.table({"a": pa.chunked_array(columns * 20)}))


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
        pa.table({"n": [1, 2]}, metadata={"a": "b"}).select([]),
        pa.record_batch({"n": [1, 2]}, metadata={"a": "b"}).select([]),
    ],
)
def test_without_rows_or_columns(table: Data) -> None:
    check(table)


@pytest.mark.parametrize(
    "layout",
    [
        pa.list_(pa.field("number", pa.int8(), nullable=False, metadata={"a": "b"}), 2),
        pa.map_(pa.string(), pa.field("number", pa.int8(), nullable=False), keys_sorted=True),
    ],
)
def test_types_keep_what_pyarrow_does_not_pickle(layout: pa.DataType) -> None:
    check(pa.table({"column": pa.array([None, None], layout)}))


def test_what_pyarrow_cannot_cut_goes_with_all_its_rows() -> None:
    array = pa.RunEndEncodedArray.from_arrays(
        pa.array(range(10, ROWS + 1, 10), pa.int32()), PLAIN["extension"].slice(0, ROWS // 10)
    )
    with pytest.raises(pa.ArrowNotImplementedError):
        pa.concat_arrays([array])
    check(pa.record_batch([array], names=["column"]).slice(3, 17))


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


@pytest.mark.parametrize("seed", range(60))
def test_random_nested_tables(seed: int) -> None:
    dice = random.Random(seed)
    shapes = [shape(dice, dice.randrange(4)) for _ in range(2)]
    batches = []
    for _ in range(3):
        rows = dice.choice([0, 1, 7, 13])
        columns = [grow(of, dice, rows) for of in shapes]
        batches.append(pa.record_batch(columns, names=["a", "b"]))
        check(batches[-1].slice(rows // 3, rows // 2))
    table = pa.Table.from_batches(batches)
    check(table)
    check(table.select(["b"]).slice(2, 15))


def test_dask_does_not_take_over_again() -> None:
    # Other types of pyarrow have Dask register all of its own serialisers.
    serialize(pa.schema([]))
    header, frames = serialize(pa.table({"n": [1]}))
    assert len(frames) == 2
    assert arrow.deserialize({}, frames).equals(deserialize(header, frames))


ON_OLDEST = """
import pyarrow as pa
from distributed.protocol import deserialize, serialize
import distributed_pynq.arrow

print(pa.__version__)
words = pa.array(["a", "bc", None])
for array in (
    words,
    words.dictionary_encode(),
    pa.array([[1, 2], [], None]),
    pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
    pa.array([{"a": 1, "b": ["c"]}, None]),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
    pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), words]),
):
    for count in (1, 50):
        table = pa.table({"column": pa.chunked_array([array] * count)})
        header, frames = serialize(table)
        assert header["serializer"] == "dask", (array.type, count, header)
        arrived = deserialize(header, [bytearray(frame) for frame in frames])
        arrived.validate(full=True)
        assert arrived.equals(table), (array.type, count)
"""


def test_on_the_oldest_versions(board_python: Callable[..., Path], tmp_path: Path) -> None:
    python = board_python("3.8", "2021.3.0")
    wanted = [name for name in OLDEST if name.startswith(("pyarrow", "numpy"))]
    uv = Path(sys.executable).with_name("uv")
    install = [uv, "pip", "install", "-q", "--python", python, "--target", tmp_path, *wanted]
    subprocess.run(install, check=True)
    run = subprocess.run(
        [python, "-c", ON_OLDEST],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tmp_path, APP]))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "3.0.0\n"
