"""The benchmark of the overlays: its ways agree, and its rows say what they should."""

import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("numba")

STANDIN = Path(__file__).resolve().parents[2] / "app" / "standin"
sys.path[:0] = [str(STANDIN), str(Path(__file__).parent)]

from distributed_pynq.bench import overlay  # noqa: E402
from overlay_fuzz import random_folder  # noqa: E402
from overlays import parameters  # noqa: E402


@pytest.mark.parametrize("network", ["cnvW2A2", "lfcW1A1"])
def test_a_row(tmp_path, network):
    random_folder(tmp_path / network, network, np.random.default_rng(0))
    row = overlay.measure(str(tmp_path / network), batch=2, seconds=0.01)
    assert row["network"] == network
    assert set(row["images_per_s"]) == set(overlay.WAYS) - set(row["absent"])
    assert all(rate > 0 for rate in row["images_per_s"].values())
    assert row["bound_fraction"] == row["images_per_s"]["fast"] / row["bound_images_per_s"]
    console = Console(width=120, record=True)
    overlay.show([row], console)
    assert network in console.export_text()


@pytest.mark.parametrize(
    ("network", "images_per_s"), [("cnvW1A1", 18_900), ("cnvW2A2", 10_100), ("lfcW1A1", 418_000)]
)
def test_the_bound_at_the_clock_it_is_known_for(tmp_path, network, images_per_s):
    random_folder(tmp_path / network, network, np.random.default_rng(0))
    cycles = overlay.bound_cycles(parameters.read(tmp_path / network))
    assert 3.7e9 / cycles == pytest.approx(images_per_s, rel=0.01)


def test_a_way_that_answers_otherwise_is_not_timed(tmp_path, monkeypatch):
    network = "lfcW1A1"
    random_folder(tmp_path / network, network, np.random.default_rng(0))
    wrong = {**overlay.WAYS, "wrong": lambda _: lambda images: np.zeros(len(images), np.uint64)}
    monkeypatch.setattr(overlay, "WAYS", wrong)
    with pytest.raises(ArithmeticError, match="lfcW1A1: wrong differs from numpy"):
        overlay.measure(str(tmp_path / network), batch=20, seconds=0.01)
