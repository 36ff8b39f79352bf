"""The command as users run it, and what it leaves behind: files, and no processes."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

MARK = "DISTRIBUTED_PYNQ_TEST_RUN"


class Classified(NamedTuple):
    """What became of one `distributed-pynq classify`."""

    code: int
    printed: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def columns(self, *names: str) -> list[Any]:
        """Columns of predictions.parquet as numpy arrays."""
        table = pq.read_table(self.folder / "predictions.parquet", columns=list(names))
        return [table[name].to_numpy() for name in names]


class Command:
    """A `distributed-pynq` process under way."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        environment: dict[str, str],
        python: str | Path = sys.executable,
    ) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [python, "-m", "distributed_pynq.cli", *arguments],
            env={**os.environ, **environment, MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self) -> Classified:
        """Wait for the end of the command, and of everything that it started."""
        printed, _ = self.process.communicate(timeout=300)
        deadline = time.monotonic() + 10
        while left := self._processes():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)
        return Classified(self.process.returncode, printed, self.folder)

    def _processes(self) -> list[str]:
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Classified]:
    """Run `distributed-pynq` to its end."""
    return lambda *words, **environment: Command(
        tmp_path, [str(word) for word in words], environment
    ).wait()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Command]:
    """Start `distributed-pynq classify` with an output folder of its own."""

    def start(
        *arguments: object, python: str | Path = sys.executable, **environment: str
    ) -> Command:
        words = ["classify", *map(str, arguments)]
        if "--resume" not in words:
            words += ["--output", str(tmp_path / f"output-{uuid.uuid4().hex[:8]}")]
        folder = next(b for a, b in zip(words, words[1:]) if a in ("--resume", "--output"))
        return Command(Path(folder), words, environment, python)

    return start


@pytest.fixture
def classify(start: Callable[..., Command]) -> Callable[..., Classified]:
    """Run `distributed-pynq classify` to its end."""
    return lambda *arguments, **environment: start(*arguments, **environment).wait()
