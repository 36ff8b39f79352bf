"""Fixtures that every room of the tests shares."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distributed
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
STANDIN = ROOT / "app" / "standin"
LOCKS = ROOT / "app" / "requirements"

# Stand-ins share this machine's cores; waiting for one another, BLAS's threads would take them all.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and with it all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Overlays are computed here too, to say what a stand-in board should answer.
sys.path.insert(0, str(STANDIN))


class Rooms(LoadScopeScheduling):
    """Fleets, of which there is one at a time, and beside them (`make test`) all else."""

    def _split_scope(self, nodeid: str) -> str:
        return "fleet" if "fleet/" in nodeid.partition("::")[0] else "processes"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Rooms:
    return Rooms(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, parameter sets and scores of BNN-PYNQ's own runtime."""
    folder = Path(os.environ.get("DISTRIBUTED_PYNQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder}: no reference data here (set DISTRIBUTED_PYNQ_SHARED)")
    return folder


@pytest.fixture(scope="session")
def board_python() -> Callable[..., Path]:
    """An interpreter such as boards have, by version ("3.6"), with what worker and bnn import.

    Its distributed is the newest of its image's, or another locked one.
    """
    return functools.lru_cache(None)(_board_python)


@pytest.fixture(scope="session")
def host_python() -> Callable[[str], Path]:
    """The host's interpreter in a cluster whose oldest boards have that version of Python."""
    return functools.lru_cache(None)(_host_python)


def _board_python(version: str, dask: str = "") -> Path:
    lock = LOCKS / f"board-{version}-{dask}.lock" if dask else _board_lock(version)
    wanted = ["-r", lock] if lock else [f"distributed=={distributed.__version__}"]
    name = f"py{version.replace('.', '')}{dask and '-'}{dask}"
    # The last is for the double of finn-examples.
    return _environment(name, version, *wanted, "numpy", "pillow", "bitstring<4")


def _host_python(version: str) -> Path:
    lock = _board_lock(version)
    wanted = _dask(lock) if lock else distributed.__version__
    if wanted == distributed.__version__:
        return Path(sys.executable)
    job = LOCKS / f"job-{wanted}.lock"
    return _environment(f"host-{wanted}", "3.10", "-r", job, "--editable", ROOT / "app")


def _board_lock(version: str) -> Path | None:
    """Newest locked requirements of boards with that Python; no image has the newest yet."""
    locks = LOCKS.glob(f"board-{version}-*.lock")
    return max(locks, key=lambda lock: [*map(int, _dask(lock).split("."))], default=None)


def _dask(lock: Path) -> str:
    return lock.stem.rpartition("-")[2]


def _environment(name: str, version: str, *requirements: str | Path) -> Path:
    """The interpreter of a virtual environment, which is made if it is not there as wanted."""
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    made, wanted = folder / "made", "\n".join(map(str, requirements))
    if not made.exists() or made.read_text() != wanted:
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
        made.write_text(wanted)
    return python
