"""Lock what the profiles of ansible/group_vars/all/profiles.yml need, and delete other such locks.

board-PYTHON-DISTRIBUTED.lock  a worker on a board, and the scheduler; beside older boards it runs
                               the distributed of those
job-DISTRIBUTED.lock           the host's side of our package, where a job runs
standin-PYTHON.lock            what a stand-in board has of its own
tools-PYTHON.lock              what a board builds sources with
finn-examples.lock             what finn-examples imports and no image has
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
APP = HERE.parent
FACTS = APP.parent / "ansible" / "group_vars" / "all" / "profiles.yml"

# What the programs of an old distributed need and it does not ask for.
COMPANIONS = {"2021.3.0": ["click<8"]}
# From 4 on it is no longer Python alone, and has no wheel for a Pynq-Z1.
FINN_EXAMPLES = ("bitstring<4",)
# What the doubles of a board's own modules import, and what a board installs bnn with.
STANDIN = ("cffi", "numba", "numpy", "pillow", "pip", "setuptools", "wheel")


def lock(target: str, python: str, *requirements: str, extra: str = "") -> Path:
    """Resolve requirements, and an extra of our package, for a version of Python."""
    sources = ["pyproject.toml", "--extra", extra] if extra else []
    with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
        wanted.write("\n".join(requirements))
        wanted.flush()
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"),
                *("--upgrade", "--generate-hashes", "--python-version", python),
                *("--no-header", "--no-annotate", "--no-emit-index-url"),
                *(*sources, wanted.name, "--output-file", str(HERE / target)),
            ],
            cwd=APP,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return HERE / target


def locks() -> Iterator[Path]:
    """Make every lock once, however many profiles share it."""
    facts = yaml.safe_load(FACTS.read_text())
    profiles = facts["profiles"].values()
    versions = list(dict.fromkeys(p["distributed"] for p in profiles))
    pairs = {
        (p["python"], version)
        for p in profiles
        for version in versions[: versions.index(p["distributed"]) + 1]
    }
    for python, version in sorted(pairs):
        # pip: that of a board may know neither the wheels nor the options that are needed.
        wanted = [
            f"distributed=={version}",
            f"dask=={version}",
            "pip",
            *COMPANIONS.get(version, ()),
        ]
        yield lock(f"board-{python}-{version}.lock", python, *wanted)
    for version in versions:
        wanted = [f"distributed=={version}", f"dask=={version}", "pip"]
        yield lock(f"job-{version}.lock", facts["job_image"]["python"], *wanted, extra="host")
    for python in sorted({p["python"] for p in profiles}):
        yield lock(f"standin-{python}.lock", python, *STANDIN)
        yield lock(f"tools-{python}.lock", python, "setuptools", "wheel")
    oldest = next(p["python"] for p in profiles if p["runtime"] == "finn-examples")
    yield lock("finn-examples.lock", oldest, *FINN_EXAMPLES)


def main() -> None:
    """Lock all profiles."""
    kept = set(locks())
    for kind in ("board", "job", "standin", "tools"):
        for path in set(HERE.glob(f"{kind}-*.lock")) - kept:
            path.unlink()


if __name__ == "__main__":
    main()
