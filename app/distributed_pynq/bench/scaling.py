"""Wall time over the number of boards: ours, the predecessor's way, and the ideal.

Stand-in boards are paced to a real board's rate, so that the ideal is known: records divided by the
sum of the boards' rates. Both ways classify the same records on the same cluster in turn, after
it is connected.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .. import datasets, local, networks
from ..classify import Classification
from ..predictions import Predictions

# What the predecessor's task does on a board, in a fresh process each time.
PREDECESSOR = """
import json, os, sys, bnn
path, network, params = sys.argv[1:]
bnn.bnn.BNN_PARAM_DIR = os.environ["DISTRIBUTED_PYNQ_PARAMS"]
stdout = os.dup(1)
os.dup2(2, 1)
classes = bnn.CnvClassifier(network, params, bnn.RUNTIME_HW).classify_cifars(path)
os.write(stdout, json.dumps(classes.tolist()).encode())
"""


def scaling(
    boards: Sequence[Sequence[float]],
    network: networks.Network,
    records: int,
    *,
    predecessor: bool = True,
    protocol: str = "tls",
) -> list[dict[str, Any]]:
    """Measure one row per fleet.

    Parameters
    ----------
    boards
        Fleets, each the rates of its boards in images/s; a rate of 0 is not paced.
    records
        Images to classify: the held-out digits, over and over.
    predecessor
        Also measure the predecessor's way (CNV networks only).
    protocol
        "tls", or "tcp" to see what encryption costs.

    Returns
    -------
    list of dict
        boards, rates, records, ideal_s, wall_s, ratio and images_per_s; predecessor_s and
        predecessor_ratio if measured.
    """
    with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
        dataset = _dataset(Path(folder), network, records)
        return [
            asyncio.run(_row(rates, network, dataset, predecessor, protocol)) for rates in boards
        ]


async def _row(
    rates: Sequence[float],
    network: networks.Network,
    dataset: datasets.Dataset,
    predecessor: bool,
    protocol: str,
) -> dict[str, Any]:
    records = len(dataset)
    with local.Cluster(networks.parameter_root("digits", network), protocol) as cluster:
        for number, rate in enumerate(rates, 1):
            paced = {"DISTRIBUTED_PYNQ_STANDIN_RATE": f"{rate:g}"} if rate else {}
            cluster.start_board(f"standin-{number}", **paced)
        async with cluster.client() as client:
            job = Classification(client, dataset, network, "digits")
            await job.prepare()
            with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
                predictions = Predictions(Path(folder), records, 0)
                await job.run(predictions)
            rate = sum(rates) or sum(b.records / b.busy_s for b in job.boards.values())
            row = {
                "boards": len(rates),
                "rates": list(rates),
                "records": records,
                "ideal_s": records / rate,
                "wall_s": job.wall_s,
                "ratio": job.wall_s * rate / records,
                "images_per_s": records / job.wall_s,
                "classified": predictions.answered,
            }
            if predecessor:
                seconds = await _predecessor(client, dataset, network, len(rates))
                row |= {"predecessor_s": seconds, "predecessor_ratio": seconds * rate / records}
    return row


async def _predecessor(
    client: Any, dataset: datasets.Dataset, network: networks.Network, boards: int
) -> float:
    """One chunk per worker: scatter, map, gather."""
    started = time.monotonic()
    edges = np.linspace(0, len(dataset), boards + 1).astype(int)
    chunks = [
        dataset.records(int(start), int(stop)).tobytes() for start, stop in zip(edges, edges[1:])
    ]
    scattered = await client.scatter(chunks)
    futures = client.map(classify_afresh, scattered, network=network.name, params="digits")
    answers = await client.gather(futures)
    assert sum(map(len, answers)) == len(dataset)
    return time.monotonic() - started


def classify_afresh(records: bytes, network: str, params: str) -> list[int]:
    """The predecessor's task: a file on disk, and a new process that loads the overlay."""
    with tempfile.NamedTemporaryFile(dir=tempfile.gettempdir(), suffix=".bin") as file:
        file.write(records)
        file.flush()
        os.fsync(file.fileno())
        python = os.environ.get("DISTRIBUTED_PYNQ_DRIVER_PYTHON", sys.executable)
        run = subprocess.run(
            [python, "-c", PREDECESSOR, file.name, network, params],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return [int(number) for number in json.loads(run.stdout)]


def _dataset(folder: Path, network: networks.Network, records: int) -> datasets.Dataset:
    digits = datasets.load("digits", network)
    once = digits.records(0, len(digits))
    if network.kind == "lfc":
        path = folder / "digits-images-idx3-ubyte"
        header = np.array([0x803, records, 28, 28], ">u4").tobytes()
    else:
        path, header = folder / "digits.bin", b""
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, records, len(once)):
            file.write(once[: records - start].tobytes())
    return datasets.load(str(path), network)


def show(rows: Sequence[dict[str, Any]], network: networks.Network, console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{network.name}, {rows[0]['records']:,} images")
    for column in ("Boards", "Rates", "Ideal", "Wall", "Wall/ideal", "Images/s", "Scaling"):
        table.add_column(column, justify="right")
    old = "predecessor_s" in rows[0]
    if old:
        table.add_column("Predecessor", justify="right")
        table.add_column("Its wall/ideal", justify="right")
    for row in rows:
        rates = sorted(set(row["rates"]), reverse=True)
        cells = [
            f"{row['boards']}",
            "/".join(f"{rate:g}" for rate in rates) if any(rates) else "unpaced",
            f"{row['ideal_s']:.2f} s",
            f"{row['wall_s']:.2f} s",
            f"{row['ratio']:.3f}",
            f"{row['images_per_s']:,.0f}",
            f"{rows[0]['wall_s'] / row['wall_s']:.2f}x",
        ]
        if old:
            cells += [f"{row['predecessor_s']:.2f} s", f"{row['predecessor_ratio']:.2f}"]
        table.add_row(*cells)
    console.print(table)
