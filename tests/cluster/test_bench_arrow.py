"""The Arrow benchmark, on a table small enough for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.csv as csv
import pytest

from distributed_pynq.bench import arrow


def bench(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distributed_pynq.cli", "bench", "arrow", *map(str, arguments)],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_prints_and_writes_every_way(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    file = tmp_path / "figures.json"
    run = bench(tmp_path, "--rows", 20_000, "--rounds", 2, "--json", file)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads(file.read_text())
    ways = {way["name"]: way for way in result["ways"]}
    assert {"pandas", "Dask Table", "our Table, direct", arrow.OURS} <= set(ways)
    for name, way in ways.items():
        assert way["bytes"] > 1e6
        assert all(value > 0 for key, value in way.items() if key.endswith("_s"))
        assert name in run.stdout
    assert ways[arrow.OURS]["ratio"] == 1
    assert [*tmp_path.glob("distributed-pynq/*")] == [
        tmp_path / "distributed-pynq" / "sales-0-20000.csv"
    ]


def test_without_pandas_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pandas'] = None\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    run = bench(tmp_path, "--rows", 1, PYTHONPATH=path)
    assert run.returncode == 2
    assert "distributed-pynq[bench]" in run.stderr


def test_another_interpreter_than_the_oldest_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    run = bench(tmp_path, "--rows", 1, "--oldest", sys.executable)
    assert run.returncode == 2
    assert "no Python 3.8" in run.stderr


def test_sales_records_are_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BLOCK", 400)
    monkeypatch.setattr(arrow, "cache_folder", lambda: tmp_path / "one")
    first = arrow.sales(1000)
    table = csv.read_csv(first)
    assert (table.num_rows, table.num_columns) == (1000, 14)
    assert table.column_names[0] == "Region"
    assert table.column_names[13] == "Total Profit"
    monkeypatch.setattr(arrow, "cache_folder", lambda: tmp_path / "two")
    assert arrow.sales(1000).read_bytes() == first.read_bytes()
    assert arrow.sales(1000, seed=1).read_bytes() != first.read_bytes()
