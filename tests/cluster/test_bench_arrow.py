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
    printed = " ".join(run.stdout.split())
    assert all(name in printed for name in [*ways, *result["read_s"]])
    assert [turn.keys() for turn in result["rounds"]] == [ways.keys()] * 2
    # Dask's own writes one buffer and sends that; ours a skeleton and the columns' own buffers:
    # their values, and the offsets of the seven columns of text.
    assert ways["Dask Table, direct"]["frames"] == 1
    assert ways["Dask RecordBatch, direct"]["frames"] == 1
    assert ways[arrow.OURS]["frames"] == 1 + 14 + 7
    table = csv.read_csv(tmp_path / "distributed-pynq" / "sales-0-20000.csv").combine_chunks()
    skeleton = ways[arrow.OURS]["bytes"] - table.nbytes
    assert 0 < skeleton < 5000
    assert [*tmp_path.glob("distributed-pynq/*")] == [
        tmp_path / "distributed-pynq" / "sales-0-20000.csv"
    ]


def test_ratios_are_medians_over_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    rounds = [{arrow.OURS: 1, "other": 8}, {arrow.OURS: 2, "other": 6}, {arrow.OURS: 4, "other": 8}]
    ways = [{"name": "other", "scatter_s": 8, "copy_s": 2}]
    measured = json.dumps({"ways": ways, "rounds": rounds}).encode()
    monkeypatch.setattr(arrow, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, measured)
    )
    (way,) = arrow.arrow(10, 3)[0]["ways"]
    assert (way["ratio"], way["copy_ratio"]) == (3, 4)


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
