"""Wall time over the number of boards: ours, the predecessor's way, and the ideal.

Stand-in boards are paced to a real board's rate, so that the ideal is known: records divided by the
sum of the boards' rates. They know the answers to the images of the benchmark from the start, since
real FPGAs do not compute on this machine's cores either. Both ways classify the same records on the
same cluster in turn, after it is connected.

Overlay and parameters are loaded once by us, before the clock starts: a time of its own, which is
the stand-ins'. The predecessor loads them in every task, while the clock runs; that takes what is
assumed of a real board (predecessor.LOAD_S), whatever starting so many processes costs here.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .. import datasets, local, networks
from ..classify import BNN_LIMIT, Classification
from ..errors import ClusterError
from ..predictions import Predictions
from . import predecessor


def scaling(
    fleets: Sequence[Sequence[float]], network: networks.Network, records: int, *, tcp: bool = False
) -> list[dict[str, Any]]:
    """Measure one row per fleet.

    Parameters
    ----------
    fleets
        Each the rates of its boards in images/s; a rate of 0 is as fast as software can.
    records
        Images to classify: the held-out digits, over and over.
    tcp
        Measure without encryption as well.

    Returns
    -------
    list of dict
        "boards", "rates", "records"; "load_s", before the clock starts; "ideal_s", "wall_s" and
        their "ratio"; "images_per_s"; then "tcp_s", and for CNV networks "predecessor_s" and
        "predecessor_ratio", if measured.
    """
    with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
        dataset = _dataset(Path(folder), network, records)
        rows = []
        for rates in fleets:
            row = asyncio.run(_row(rates, network, dataset, "tls"))
            if tcp:
                row["tcp_s"] = asyncio.run(_row(rates, network, dataset, "tcp"))["wall_s"]
            rows.append(row)
    return rows


async def _row(
    rates: Sequence[float], network: networks.Network, dataset: datasets.Dataset, protocol: str
) -> dict[str, Any]:
    records = len(dataset)
    with local.Cluster(networks.parameter_root("digits", network), protocol) as cluster:
        known = Path(dataset.name).with_name("known.npz")
        if not known.exists():
            know(known, _digits(network), network)
        for number, rate in enumerate(rates, 1):
            paced = {"RATE": f"{rate:g}", "KNOWN": str(known)}
            cluster.start_board(
                f"standin-{number}",
                **{f"DISTRIBUTED_PYNQ_STANDIN_{key}": paced[key] for key in paced if rate},
            )
        async with cluster.client() as client:
            job = Classification(client, dataset, network, "digits")
            started = time.monotonic()
            await job.prepare()
            load_s = time.monotonic() - started
            with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
                predictions = Predictions(Path(folder), dataset, job.class_names)
                await job.run(predictions)
            if predictions.answered != records:
                raise ClusterError(
                    f"{records - predictions.answered} records failed: {job.failed[0]}"
                )
            rate = sum(rates) or sum(b.records / b.busy_s for b in job.boards.values())
            row = {
                "boards": len(rates),
                "rates": list(rates),
                "records": records,
                "load_s": load_s,
                "ideal_s": records / rate,
                "wall_s": job.wall_s,
                "ratio": job.wall_s * rate / records,
                "images_per_s": records / job.wall_s,
            }
            # The predecessor gives each board its whole share in one call, which bnn limits.
            share = records / len(rates)
            if protocol == "tls" and network.kind == "cnv" and 1 <= share <= BNN_LIMIT:
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
    futures = client.map(predecessor.classify, scattered, network=network.name, params="digits")
    answers = await client.gather(futures)
    assert sum(map(len, answers)) == len(dataset)
    return time.monotonic() - started


def know(file: Path, images: networks.Bytes, network: networks.Network) -> None:
    """Write images for stand-ins to know with the digits' parameters, and the answers to them."""
    if network.kind == "lfc":
        images = np.where(images >= 128, 255, 0).astype(np.uint8)
    sys.path.insert(0, str(local.STANDIN))
    folder = networks.parameter_root("digits", network) / "digits" / network.name
    overlay = importlib.import_module("overlays").load(folder)
    compute = overlay.scores if network.kind == "cnv" else overlay.words
    np.savez(file, images=images, answers=compute(images))


def _dataset(folder: Path, network: networks.Network, records: int) -> datasets.Dataset:
    once = _digits(network)
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


def _digits(network: networks.Network) -> networks.Bytes:
    digits = datasets.load("digits", network)
    return digits.records(0, len(digits))


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows as a table."""
    columns: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "Boards": ("boards", lambda row: f"{row['boards']}"),
        "Rate": ("rates", lambda row: "/".join(f"{rate:g}" for rate in sorted(set(row["rates"])))),
        "Load": ("load_s", lambda row: f"{row['load_s']:.2f} s"),
        "Ideal": ("ideal_s", lambda row: f"{row['ideal_s']:.2f} s"),
        "Wall": ("wall_s", lambda row: f"{row['wall_s']:.2f} s"),
        "/ideal": ("ratio", lambda row: f"{row['ratio']:.3f}"),
        "Images/s": ("images_per_s", lambda row: f"{row['images_per_s']:,.0f}"),
        "Scaling": ("wall_s", lambda row: f"{rows[0]['wall_s'] / row['wall_s']:.2f}x"),
        "TLS/TCP": ("tcp_s", lambda row: f"{row['wall_s'] / row['tcp_s']:.3f}"),
        "Predecessor": ("predecessor_s", lambda row: f"{row['predecessor_s']:.2f} s"),
        "/ideal ": ("predecessor_ratio", lambda row: f"{row['predecessor_ratio']:.2f}"),
    }
    columns = {title: of for title, of in columns.items() if any(of[0] in row for row in rows)}
    caption = "Wall begins after Load."
    if "Predecessor" in columns:
        caption += f" Predecessor includes {predecessor.LOAD_S:g} s to load in every task."
    table = Table(title=f"{rows[0]['records']:,} images", caption=caption)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) if key in row else "-" for key, text in columns.values()))
    console.print(table)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw execution time over the number of boards, and the efficiency of scaling, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    old = [row.get("predecessor_s", np.nan) for row in rows]
    bars = [
        axes.bar(places - 0.2, old, 0.38, label="predecessor", color="#b8b8b8"),
        axes.bar(places + 0.2, [row["wall_s"] for row in rows], 0.38, label="Distributed PYNQ"),
    ]
    axes.plot(places + 0.2, [row["ideal_s"] for row in rows], "k_", markersize=28, label="ideal")
    for container in bars:
        axes.bar_label(container, fmt="%.1f s", padding=2, fontsize=8)
    axes.set_xticks(places, [str(row["boards"]) for row in rows])
    axes.set(xlabel="boards", ylabel="execution time in s")
    axes.set_title(f"{rows[0]['records']:,} images")
    efficiency = [row["ideal_s"] / row["wall_s"] for row in rows]
    other = axes.twinx()
    other.plot(places, efficiency, "o-", color="#2a7f62", label="efficiency")
    other.set(ylim=(0, 1.05), ylabel="ideal / wall")
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
