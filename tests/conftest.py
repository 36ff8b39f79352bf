"""Fixtures that every room of the tests shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, parameter sets and scores of BNN-PYNQ's own runtime."""
    folder = Path(os.environ.get("DISTRIBUTED_PYNQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder}: no reference data here (set DISTRIBUTED_PYNQ_SHARED)")
    return folder
