"""The embedded default: a scheduler and stand-in boards as processes of this machine.

They are what a fleet runs, a scheduler and one Dask worker per device with its driver, on loopback
and with mutual TLS, since any local user could reach the ports. Every process ends with the one
that started it (tether.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client, Security

from . import tether
from .errors import ClusterError
from .job import RECONNECT_S, connect, use_engine_settings

PACKAGE = Path(__file__).resolve().parent
STANDIN = PACKAGE.parent / "standin"
START_LIMIT_S = 60.0
CARD = "xilinx_u50_gen3x16_xdma_201920_3"

# Without an address Dask's HTTP server listens on all of them, even with --no-dashboard.
LOOPBACK_DASHBOARD = ("--dashboard-address", "127.0.0.1:0")

Answer = TypeVar("Answer")


class Cluster:
    """A scheduler and stand-in boards as processes, from entering the context to leaving it.

    Parameters
    ----------
    parameters
        Root folder of the parameter sets that the boards can load, if any.
    protocol
        "tls", or "tcp" where a benchmark asks what encryption costs.
    python
        Interpreter of scheduler and boards, by default this one. Another one needs the same version
        of distributed, and this package on its path.

    Raises
    ------
    ClusterError
        There are no stand-in boards in this installation, or a process does not come up; with the
        last line of its log.
    """

    def __init__(
        self,
        parameters: Path | None = None,
        protocol: str = "tls",
        python: str | Path = sys.executable,
    ) -> None:
        if not STANDIN.is_dir():
            raise ClusterError(f"{STANDIN}: no stand-in boards in this installation")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._parameters = parameters
        self._host = f"{protocol}://127.0.0.1"
        self._port = 0
        self._python = str(python)

    def __enter__(self) -> Cluster:
        memory = Path("/dev/shm")
        self.folder = Path(
            tempfile.mkdtemp(prefix="distributed-pynq-", dir=memory if memory.is_dir() else None)
        )
        self._tls = _certificates(self.folder, encrypted=self._host.startswith("tls"))
        self.start_scheduler()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_scheduler(self) -> None:
        """Start the scheduler, on the port that it had before, if any."""
        options = ["--host", self._host, "--port", str(self._port), *LOOPBACK_DASHBOARD]
        self._start("scheduler", "dask_scheduler", options, {})

    def start_board(self, name: str, python: str | Path | None = None, **environment: str) -> None:
        """Start one stand-in board's worker, with settings of its own in the environment.

        Its interpreter is the cluster's, unless it has one of its own. The worker of one device of
        several is NAME/DEVICE; the devices of a board share its memory.
        """
        memory = self.folder / name.partition("/")[0]
        memory.mkdir(exist_ok=True)
        options = ["--host", self._host, "--name", name, "--nthreads", "2", "--no-nanny"]
        options += [*LOOPBACK_DASHBOARD, "--local-directory", str(self.folder)]
        options += ["--preload", "distributed_pynq.worker"]
        path = os.pathsep.join(filter(None, [str(STANDIN), os.environ.get("PYTHONPATH")]))
        settings = {
            "BOARD": "Pynq-Z1",
            "DISTRIBUTED_PYNQ_TMPFS": str(memory),
            "NUMBA_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": path,
        }
        if self._parameters is not None:
            settings["DISTRIBUTED_PYNQ_PARAMS"] = str(self._parameters)
        self._start(name, "dask_worker", options, settings | environment, python)

    def start_server(self, name: str, cards: int, **environment: str) -> None:
        """Start the workers of a stand-in server with so many cards of one kind."""
        addresses = [f"0000:{number:02x}:00.0" for number in range(1, cards + 1)]
        settings = {
            "XILINX_XRT": "/opt/xilinx/xrt",
            "DISTRIBUTED_PYNQ_STANDIN_DEVICES": ",".join(f"{CARD}@{a}" for a in addresses),
        }
        for address in addresses:
            self.start_board(f"{name}/{address}", DEVICE=address, **settings | environment)

    def stop(self, name: str) -> None:
        """Kill a process and all that it started."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """Wait until every board has joined, and yield an asynchronous distributed.Client."""
        use_engine_settings()
        address = await self._until_started(self._address, "the scheduler")
        self._port = int(address.rpartition(":")[2])
        tls = self._tls if self._host.startswith("tls") else {"require_encryption": False}
        security = Security(**tls)
        async with Client(
            address, security=security, asynchronous=True, timeout=RECONNECT_S
        ) as client:

            async def joined() -> bool:
                identity = await client.scheduler.identity()
                return len(identity["workers"]) >= len(self.processes) - 1

            await self._until_started(joined, "every board")
            yield client

    async def _address(self) -> str | None:
        # The file is there a moment before its content is.
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self.folder / "scheduler.json").read_text())["address"])
        return None

    async def _until_started(
        self, ask: Callable[[], Awaitable[Answer | None]], what: str
    ) -> Answer:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if answer := await ask():
                return answer
            for name, process in self.processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace").split("\n")
                    told = next((line for line in reversed(log) if line.strip()), "no word")
                    raise ClusterError(f"{name} did not start: {told}")
            await asyncio.sleep(0.02)
        raise ClusterError(f"{what} did not come up within {START_LIMIT_S:g} s")

    def _start(
        self,
        name: str,
        program: str,
        options: list[str],
        environment: dict[str, str],
        python: str | Path | None = None,
    ) -> None:
        command = [str(python or self._python), "-m", f"distributed.cli.{program}", *options]
        command += ["--scheduler-file", str(self.folder / "scheduler.json")]
        command += ["--preload", "distributed_pynq.tether"]
        own = {"DASK_CONFIG": str(self.folder), tether.FOLDER_VARIABLE: str(self.folder)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **own, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextlib.asynccontextmanager
async def client(
    scheduler: str | None, *, boards: int = 0, cards: int = 0, parameters: Path | None = None
) -> AsyncIterator[Any]:
    """Connect to a fleet or, without a scheduler, to stand-ins that live as long as the context.

    Parameters
    ----------
    scheduler
        Address of the fleet's, tls://HOST:PORT, or None.
    boards, cards
        How many stand-in boards, and cards of one stand-in server.
    parameters
        As of `Cluster`.

    Yields
    ------
    distributed.Client
        An asynchronous client.

    Raises
    ------
    InputError, ClusterError
        As `job.connect` and `Cluster` do.
    """
    if scheduler:
        async with connect(scheduler) as fleet:
            yield fleet
        return
    with Cluster(parameters) as cluster:
        for number in range(1, boards + 1):
            cluster.start_board(f"standin-{number}")
        if cards:
            cluster.start_server("server", cards)
        async with cluster.client() as stand_ins:
            yield stand_ins


def _certificates(folder: Path, *, encrypted: bool) -> dict[str, Any]:
    temporary = Security.temporary()
    tls: dict[str, Any] = {"require_encryption": encrypted}
    for role in ("ca_file", "client_key", "client_cert"):
        path = folder / f"{role}.pem"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(getattr(temporary, f"tls_{role}"))
        tls[f"tls_{role}"] = str(path)
    own = {"key": tls["tls_client_key"], "cert": tls["tls_client_cert"]}
    roles = {"ca-file": tls["tls_ca_file"], "client": own, "scheduler": own, "worker": own}
    shutil.copy(PACKAGE / "dask.yaml", folder)
    # Dask merges the files of a configuration folder in the order of their names.
    comm = {"tls": roles, "require-encryption": encrypted}
    (folder / "tls.yaml").write_text(json.dumps({"distributed": {"comm": comm}}))
    return tls
