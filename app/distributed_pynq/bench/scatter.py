"""The measuring half of the Arrow benchmark: one process, one Dask worker, every way in turn.

It imports nothing else of the package's host side, so that it runs on the oldest profile's versions
as well: Python 3.8, distributed 2021.3.0, pandas 1.2, pyarrow 3.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import platform
import socket
import statistics
import sys
import tempfile
import time
from typing import Any, Callable, NamedTuple

import distributed
import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pyarrow as pa
import pyarrow.compute as pc
from distributed.protocol import arrow as dask_arrow
from pyarrow import csv

from distributed_pynq import arrow

# The modules; their packages have functions of the same name.
sizeof = importlib.import_module("dask.sizeof")
protocol = importlib.import_module("distributed.protocol.serialize")

FAST = {"direct": True, "hash": False}
"""Straight to the worker, under a random name instead of a hash of all bytes."""


PROFIT = 13
"""The column Total Profit; a record batch of pyarrow 3 has no names."""


class Way(NamedTuple):
    """Something to scatter, and how."""

    name: str
    data: Any
    ours: bool = False
    options: dict[str, bool] = {}  # noqa: RUF012  the default is never changed


def measure(path: str, rounds: int) -> dict[str, Any]:
    """Read the CSV file and scatter it in every way, `rounds` times in turn.

    Returns
    -------
    dict
        versions; read_s of pyarrow and pandas, and of making one RecordBatch of pyarrow's chunks;
        ways, each with name, frames (of the message), bytes (of all of them) and medians of
        round_trip_s (serialise and deserialise), scatter_s, cpu_s (of both processes while they
        scatter), compute_s (on the worker) and copy_s (as many bytes through a plain socket, in
        the same turn); rounds, the scatter_s of every way in every round.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)
    read_s, (table, batch, blocks, frame) = _read(path, rounds)
    ways = [
        Way("pandas", frame),
        Way("Dask Table", table),
        Way("pandas, direct", frame, options=FAST),
        *_arrow_backed(table),
        Way("Dask Table, direct", table, options=FAST),
        Way("Dask RecordBatch, direct", batch, options=FAST),
        Way("our Table, direct", table, True, FAST),
        Way("our Table of large blocks, direct", blocks, True, FAST),
        Way("our RecordBatch, direct", batch, True, FAST),
    ]
    turns: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        cluster = distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.ERROR,
            local_directory=folder,
        )
        with cluster, distributed.Client(cluster) as client:
            for _ in range(rounds):
                for way in ways:
                    turns[way.name].append(_turn(client, way))
    totals = {turn["total"] for way in turns.values() for turn in way}
    if max(totals) - min(totals) > 1e-6 * max(totals):
        raise ArithmeticError(f"the worker's totals differ: {sorted(totals)}")
    return {
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (distributed, pd, pa)},
        },
        "read_s": read_s,
        "ways": [
            {
                "name": way.name,
                **{key: int(turns[way.name][0][key]) for key in ("frames", "bytes")},
                **{key: _median(turns[way.name], key) for key in turns[way.name][0] if "_s" in key},
            }
            for way in ways
        ],
        "rounds": [
            {name: turn[number]["scatter_s"] for name, turn in turns.items()}
            for number in range(rounds)
        ],
    }


def total_profit(data: Any) -> float:
    """What the worker computes: one column's sum."""
    if isinstance(data, pd.DataFrame):
        return float(data["Total Profit"].sum())
    return float(pc.sum(data.column(PROFIT)).as_py())


def receive(port: int, size: int) -> None:
    """Read `size` bytes from a socket of this machine into new memory, and acknowledge them."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        view = np.empty(size, "u1").data
        while view:
            view = view[connection.recv_into(view) :]
        connection.sendall(b"\0")


def use_ours() -> None:
    """Have Dask use our serialiser in this process."""
    arrow.register()


def use_dasks() -> None:
    """Have Dask use its own serialiser in this process, as if ours had never been imported."""
    for kind, name in ((pa.Table, "table"), (pa.RecordBatch, "batch")):
        protocol.dask_serialize.register(kind, getattr(dask_arrow, f"serialize_{name}"))
        protocol.dask_deserialize.register(kind, getattr(dask_arrow, f"deserialize_{name}"))
    protocol.register_serialization_family("dask", protocol.dask_dumps, protocol.dask_loads)
    sizeof.register_pyarrow()
    sizeof.sizeof.register(pa.RecordBatch, sizeof.sizeof.dispatch(object))


def _read(path: str, rounds: int) -> tuple[dict[str, float], list[Any]]:
    # A column has a chunk for every block that was read, of 1 MB by default.
    blocks = csv.ReadOptions(block_size=1 << 28)
    found: list[Any] = []
    readers: dict[str, Callable[[], Any]] = {
        "pyarrow": lambda: csv.read_csv(path),
        "its chunks made a RecordBatch": lambda: found[0].combine_chunks().to_batches()[0],
        "pyarrow in 256 MB blocks": lambda: csv.read_csv(path, blocks),
        "pandas": lambda: pd.read_csv(path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(min(rounds, 3)):
        found.clear()
        for name, read in readers.items():
            started = time.perf_counter()
            found.append(read())
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}, found


def _arrow_backed(table: pa.Table) -> list[Way]:
    """Pandas on Arrow's own memory, where pandas can."""
    if not hasattr(pd, "ArrowDtype"):
        return []
    frame = table.combine_chunks().to_pandas(types_mapper=pd.ArrowDtype)
    return [Way("pandas on Arrow, direct", frame, options=FAST)]


def _turn(client: distributed.Client, way: Way) -> dict[str, float]:
    use = use_ours if way.ours else use_dasks
    use()
    client.run(use)

    started = time.perf_counter()
    header, frames = protocol.serialize(way.data)
    protocol.deserialize(header, frames)
    round_trip_s = time.perf_counter() - started
    size = sum(memoryview(frame).nbytes for frame in frames)
    count = len(frames)
    del frames
    gc.collect()

    copy_s = _copy(client, size)
    cpu_s, started = _cpu(client), time.perf_counter()
    future = client.scatter(way.data, **way.options)
    distributed.wait(future)
    scatter_s = time.perf_counter() - started
    cpu_s = _cpu(client) - cpu_s

    started = time.perf_counter()
    total = client.submit(total_profit, future, pure=False).result()
    compute_s = time.perf_counter() - started
    return {
        "frames": count,
        "bytes": size,
        "round_trip_s": round_trip_s,
        "copy_s": copy_s,
        "scatter_s": scatter_s,
        "cpu_s": cpu_s,
        "compute_s": compute_s,
        "total": total,
    }


def _copy(client: distributed.Client, size: int) -> float:
    """Seconds for `size` bytes from this process into new memory of the worker's."""
    data = np.ones(size, "u1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        future = client.submit(receive, server.getsockname()[1], size, pure=False)
        connection, _ = server.accept()
        with connection:
            started = time.perf_counter()
            connection.sendall(data.data)
            connection.recv(1)
            seconds = time.perf_counter() - started
        future.result()
    return seconds


def _cpu(client: distributed.Client) -> float:
    """Processor seconds that this process and the worker have used."""
    seconds: list[float] = [*client.run(time.process_time).values(), time.process_time()]
    return sum(seconds)


def _median(turns: list[dict[str, float]], key: str) -> float:
    return statistics.median(turn[key] for turn in turns)


if __name__ == "__main__":
    # Under its own name, so that the worker finds the functions.
    run: Callable[..., Any] = importlib.import_module("distributed_pynq.bench.scatter").measure
    json.dump(run(sys.argv[1], int(sys.argv[2])), sys.stdout)
