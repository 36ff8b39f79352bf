"""Arrow data between a client and the processes of a cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from distributed_pynq import local, networks

ROWS = 300_000
TABLE = pa.table(
    {
        "number": pa.array(range(ROWS)),
        "word": pa.array([f"word {n % 1000}" if n % 7 else None for n in range(ROWS)]),
        "kind": pa.array([f"kind {n % 5}" for n in range(ROWS)]).dictionary_encode(),
        "list": pa.array([[n] * (n % 3) for n in range(ROWS)]),
    }
)


@pytest.fixture(scope="module")
def on_cluster() -> Any:
    """Run a coroutine with the client of two stand-in boards."""
    parameters = networks.parameter_root("digits", networks.get("lfcW1A1"))
    with local.Cluster(parameters) as cluster:
        cluster.start_board("one")
        cluster.start_board("two")

        def run(task: Callable[[Any], Awaitable[Any]]) -> Any:
            async def connected() -> Any:
                async with cluster.client() as client:
                    return await task(client)

            return asyncio.run(connected())

        yield run


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "data", [TABLE, TABLE.slice(12_345, 67_890), TABLE.combine_chunks().to_batches()[0]]
)
def test_there_and_back(on_cluster: Any, data: Any, direct: bool) -> None:
    async def task(client: Any) -> Any:
        future = await client.scatter(data, direct=direct, hash=False)
        rows = await client.submit(lambda data: data.num_rows, future)
        return rows, await client.gather(future, direct=direct)

    rows, back = on_cluster(task)
    assert rows == data.num_rows
    assert back.equals(data)


def test_workers_receive_into_aligned_memory(on_cluster: Any) -> None:
    """What Dask's own serialiser sends lies anywhere, of which Arrow's engine warns each time."""

    def misaligned(data: pa.Table) -> list[int]:
        buffers = [b for column in data.columns for b in column.chunk(0).buffers() if b]
        return [b.address for b in buffers if b.address % 8]

    async def task(client: Any) -> Any:
        return await client.submit(misaligned, await client.scatter(TABLE, direct=True))

    assert on_cluster(task) == []


def test_results_and_worker_to_worker(on_cluster: Any) -> None:
    async def task(client: Any) -> Any:
        one, two = sorted((await client.scheduler.identity())["workers"])
        data = await client.scatter(TABLE, workers=[one], direct=True, hash=False)
        half = client.submit(lambda t: t.slice(ROWS // 2), data, workers=[one], pure=False)
        total = client.submit(lambda t: t, half, workers=[two], pure=False)
        return await client.gather([half, total])

    half, total = on_cluster(task)
    assert half.equals(TABLE.slice(ROWS // 2))
    assert pc.sum(total["number"]).as_py() == sum(range(ROWS // 2, ROWS))
