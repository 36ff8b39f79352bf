"""Fixtures that every room of the tests shares."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDIN = ROOT / "app" / "standin"

# Overlays are computed here too, to say what a stand-in board should answer.
sys.path.insert(0, str(STANDIN))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, parameter sets and scores of BNN-PYNQ's own runtime."""
    folder = Path(os.environ.get("DISTRIBUTED_PYNQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder}: no reference data here (set DISTRIBUTED_PYNQ_SHARED)")
    return folder


@pytest.fixture(scope="session")
def board_python() -> Callable[[str], Path]:
    """An interpreter such as boards have, by version ("3.6"), with what bnn imports installed."""
    return functools.lru_cache(None)(_board_python)


def _board_python(version: str) -> Path:
    python = ROOT / f".venv-py{version.replace('.', '')}" / "bin" / "python"
    ready = [python, "-c", "import numpy, PIL"]
    if python.exists() and subprocess.run(ready, capture_output=True).returncode == 0:
        return python
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [*pyenv.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
    interpreter = next(filter(None, found), None)
    if interpreter is None:
        pytest.skip(f"Python {version} is not installed")
    subprocess.run([interpreter, "-m", "venv", python.parents[1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pillow"], check=True)
    return python
