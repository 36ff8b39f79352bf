"""A table of sales to a worker: as pandas, as Dask sends Arrow, as we do, and as plain bytes.

Over tcp on loopback, without TLS, which would cost more than the rest of every way and so hide what
is compared. All ways take turns in one process with one worker; ratios are medians over the rounds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..storage import cache_folder, place, track, workspace

APP = Path(__file__).resolve().parents[2]
OURS = "our RecordBatch, direct"
OLDEST = (
    "distributed==2021.3.0",
    "dask==2021.3.0",
    "pandas==1.2.3",
    "pyarrow==3.0.0",
    "numpy==1.19.5",
    "click<8",
)
"""The oldest profile's versions, which have wheels for Python 3.8."""

BLOCK = 400_000
"""Rows of the CSV file that are made at a time."""

COUNTRIES = {
    "Asia": ["Japan", "Mongolia", "Sri Lanka", "Uzbekistan", "Vietnam"],
    "Australia and Oceania": ["Fiji", "New Zealand", "Papua New Guinea", "Tuvalu"],
    "Central America and the Caribbean": ["Belize", "Costa Rica", "Trinidad and Tobago"],
    "Europe": ["Austria", "Bosnia and Herzegovina", "Iceland", "The Netherlands", "Ukraine"],
    "Middle East and North Africa": ["Algeria", "Lebanon", "Oman", "Tunisia"],
    "North America": ["Canada", "Greenland", "Mexico", "United States of America"],
    "Sub-Saharan Africa": ["Chad", "Democratic Republic of the Congo", "Ghana", "Sao Tome"],
}
ITEMS = {
    "Baby Food": (255.28, 159.42),
    "Beverages": (47.45, 31.79),
    "Cereal": (205.70, 117.11),
    "Clothes": (109.28, 35.84),
    "Cosmetics": (437.20, 263.33),
    "Fruits": (9.33, 6.92),
    "Household": (668.27, 502.54),
    "Office Supplies": (651.21, 524.96),
    "Vegetables": (154.06, 90.93),
}
"""Price and cost of a unit."""


def arrow(rows: int, rounds: int, oldest: Path | None = None) -> list[dict[str, Any]]:
    """Measure with the versions installed here and, with a Python 3.8, with the oldest profile's.

    Returns
    -------
    list of dict
        One per set of versions: rows, csv_bytes, what scatter.measure returns, and of each way
        ratio (how many times as long as OURS its scatter takes) and copy_ratio (as its copy).

    Raises
    ------
    InputError
        pandas is not installed, or `oldest` is not a Python 3.8 that can install packages.
    """
    if not importlib.util.find_spec("pandas"):
        raise InputError("bench arrow needs pandas: pip install 'distributed-pynq[bench]'")
    pythons = [Path(sys.executable), *([_oldest(oldest)] if oldest else [])]
    path = sales(rows)
    results = []
    for python in pythons:
        run = subprocess.run(
            [python, "-m", "distributed_pynq.bench.scatter", path, str(rounds)],
            env={**os.environ, "PYTHONPATH": str(APP)},
            stdout=subprocess.PIPE,
            check=True,
        )
        result = {"rows": rows, "csv_bytes": path.stat().st_size, **json.loads(run.stdout)}
        for way in result["ways"]:
            name = way["name"]
            turns = result["rounds"]
            way["ratio"] = statistics.median(turn[name] / turn[OURS] for turn in turns)
            way["copy_ratio"] = way["scatter_s"] / way["copy_s"]
        results.append(result)
    return results


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for each set of versions."""
    for result in results:
        versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        read = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["read_s"].items())
        table = Table(
            title=f"{result['rows']:,} rows, a CSV file of {result['csv_bytes'] / 1e6:.0f} MB\n"
            f"{versions}\nRead: {read}",
            caption="Median seconds: to scatter, as pandas and Dask do by themselves or with\n"
            "direct=True, hash=False; of both processors; to copy as many bytes over\n"
            f"loopback; to serialise and deserialise. Ratio: scatter, {OURS} = 1.",
        )
        table.add_column("Way", no_wrap=True)
        for column in ("MB", "Scatter", "CPU", "Copy", "(De)ser.", "Ratio"):
            table.add_column(column, justify="right")
        for way in result["ways"]:
            seconds = [way[f"{key}_s"] for key in ("scatter", "cpu", "copy", "round_trip")]
            table.add_row(
                way["name"],
                f"{way['bytes'] / 1e6:.0f}",
                *(f"{number:.3f}" for number in seconds),
                f"{way['ratio']:.2f}",
            )
        console.print(table)


def sales(rows: int, seed: int = 0) -> Path:
    """The predecessor's mock sales records as a CSV file in the cache folder, made if missing."""
    path = cache_folder() / f"sales-{seed}-{rows}.csv"
    if not path.exists():
        dice = np.random.default_rng(seed)
        starts = range(0, rows, BLOCK)
        plain = csv.WriteOptions(quoting_style="none")
        with workspace(path.parent) as folder:
            unfinished = folder / path.name
            schema = _sales(dice, 0).schema
            with csv.CSVWriter(unfinished, schema, write_options=plain) as writer:
                for start in track(starts, "making the sales records"):
                    writer.write_table(_sales(dice, min(BLOCK, rows - start)))
            place(unfinished, path)
    return path


def _sales(dice: np.random.Generator, rows: int) -> pa.Table:
    places = [(region, country) for region, names in COUNTRIES.items() for country in names]
    days = np.arange("2010-01-01", "2020-07-28", dtype="datetime64[D]").tolist()
    dates = pa.array([f"{day.month}/{day.day}/{day.year}" for day in days])
    place, item = dice.integers(len(places), size=rows), dice.integers(len(ITEMS), size=rows)
    ordered = dice.integers(len(days) - 50, size=rows)
    units = dice.integers(1, 10_001, rows)
    price, cost = np.array(list(ITEMS.values()))[item].T

    def words(values: Sequence[str], index: Any) -> pa.Array:
        return pa.array(values).take(pa.array(index))

    def money(values: Any) -> Any:
        return np.round(values, 2)

    return pa.table(
        {
            "Region": words([region for region, _ in places], place),
            "Country": words([country for _, country in places], place),
            "Item Type": words(list(ITEMS), item),
            "Sales Channel": words(["Offline", "Online"], dice.integers(2, size=rows)),
            "Order Priority": words(["C", "H", "L", "M"], dice.integers(4, size=rows)),
            "Order Date": dates.take(pa.array(ordered)),
            "Order ID": dice.integers(10**8, 10**9, rows),
            "Ship Date": dates.take(pa.array(ordered + dice.integers(50, size=rows))),
            "Units Sold": units,
            "Unit Price": price,
            "Unit Cost": cost,
            "Total Revenue": money(units * price),
            "Total Cost": money(units * cost),
            "Total Profit": money(units * (price - cost)),
        }
    )


def _oldest(python: Path) -> Path:
    """The interpreter of a virtual environment with the oldest profile's versions."""
    name = hashlib.sha256("\n".join(OLDEST).encode()).hexdigest()[:8]
    folder = cache_folder() / f"oldest-{name}"
    interpreter, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        steps: list[list[str | Path]] = [
            [python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 8))"],
            [python, "-m", "venv", "--clear", folder],
            [interpreter, "-m", "pip", "install", "-q", *OLDEST],
        ]
        for step in steps:
            try:
                subprocess.run(step, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise InputError(f"{python}: no Python 3.8 with venv and pip ({error})") from error
        complete.touch()
    return interpreter
