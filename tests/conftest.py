"""Fixtures that every room of the tests shares."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distributed
import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDIN = ROOT / "app" / "standin"

# Stand-ins share this machine's cores; waiting for one another, BLAS's threads would take them all.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Overlays are computed here too, to say what a stand-in board should answer.
sys.path.insert(0, str(STANDIN))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, parameter sets and scores of BNN-PYNQ's own runtime."""
    folder = Path(os.environ.get("DISTRIBUTED_PYNQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder}: no reference data here (set DISTRIBUTED_PYNQ_SHARED)")
    return folder


DISTRIBUTED = {"3.6": "2021.3.0", "3.8": "2023.5.0", "3.10": "2026.8.0", "3.13": "2026.8.0"}
"""The newest version of distributed by the version of Python that boards have."""


@pytest.fixture(scope="session")
def board_python() -> Callable[[str], Path]:
    """An interpreter such as boards have, by version ("3.6"): with its distributed, and what bnn
    imports."""
    return functools.lru_cache(None)(_board_python)


@pytest.fixture(scope="session")
def host_python() -> Callable[[str], Path]:
    """The host's interpreter in a cluster of boards with that version of Python."""
    return functools.lru_cache(None)(_host_python)


def _board_python(version: str) -> Path:
    # Dask's command of that time fails with a later click.
    dask = [*_dask(DISTRIBUTED[version]), *(["click<8"] if version == "3.6" else [])]
    return _environment(f"py{version.replace('.', '')}", version, *dask, "numpy", "pillow")


def _host_python(version: str) -> Path:
    wanted = DISTRIBUTED[version]
    if wanted == distributed.__version__:
        return Path(sys.executable)
    package = ["--editable", f"{ROOT / 'app'}[host]"]
    return _environment(f"host-{wanted}", "3.10", *_dask(wanted), *package)


def _dask(version: str) -> list[str]:
    return [f"dask=={version}", f"distributed=={version}"]


def _environment(name: str, version: str, *requirements: str) -> Path:
    """The interpreter of a virtual environment, which is made if it is not there."""
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        found = [*pyenv.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
        interpreter = next(filter(None, found), None)
        if interpreter is None:
            pytest.skip(f"Python {version} is not installed")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", "--without-pip", folder], check=True)
        # The pip of an old Python knows neither the wheels nor the options of today.
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True)
        (folder / "made").touch()
    return python
