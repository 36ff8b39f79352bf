"""The embedded default: a scheduler and stand-in boards as processes of this machine.

They are what a fleet runs, a scheduler and one Dask worker per device with its driver, on loopback
and with mutual TLS, since any local user could reach the ports. Every process ends with the one
that started it, however that ends: each watches its standard input and takes its group along.
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
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from distributed import Client, Security

from .errors import ClusterError
from .job import use_engine_settings

PACKAGE = Path(__file__).resolve().parent
STANDIN = PACKAGE.parent / "standin"
START_LIMIT_S = 60.0


@contextlib.asynccontextmanager
async def cluster(boards: int, parameters: Path) -> AsyncIterator[Any]:
    """Start a scheduler and stand-in boards, and stop them at the end.

    Parameters
    ----------
    boards
        How many stand-in boards; they are called standin-1, standin-2, …
    parameters
        Root folder of the parameter sets that the boards can load.

    Yields
    ------
    distributed.Client
        An asynchronous client of the scheduler.

    Raises
    ------
    ClusterError
        A process did not come up, with the last lines of its log.
    """
    if not STANDIN.is_dir():
        raise ClusterError(f"{STANDIN}: no stand-in boards in this installation; use --scheduler")
    tmpfs = Path("/dev/shm")
    folder = Path(
        tempfile.mkdtemp(prefix="distributed-pynq-", dir=tmpfs if tmpfs.is_dir() else None)
    )
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        tls = _certificates(folder)
        scheduler_file = folder / "scheduler.json"
        shared = {**os.environ, "DASK_CONFIG": str(folder), "DISTRIBUTED_PYNQ_LOCAL": str(folder)}
        processes["scheduler"] = _start(
            ["dask_scheduler", "--host", "tls://127.0.0.1", "--port", "0", "--no-dashboard"],
            scheduler_file,
            folder / "scheduler.log",
            shared,
        )
        for number in range(1, boards + 1):
            name = f"standin-{number}"
            processes[name] = _start(
                [
                    *(
                        "dask_worker",
                        "--host",
                        "tls://127.0.0.1",
                        "--name",
                        name,
                        "--nthreads",
                        "1",
                    ),
                    *("--no-nanny", "--no-dashboard", "--local-directory", str(folder)),
                    *("--preload", "distributed_pynq.worker"),
                ],
                scheduler_file,
                folder / f"{name}.log",
                shared
                | {
                    "BOARD": "Pynq-Z1",
                    "DISTRIBUTED_PYNQ_PARAMS": str(parameters),
                    "DISTRIBUTED_PYNQ_TMPFS": str(folder),
                    "NUMBA_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(
                        filter(None, [str(STANDIN), os.environ.get("PYTHONPATH")])
                    ),
                },
            )
        use_engine_settings()
        address = await _address(scheduler_file, processes, folder)
        async with Client(
            address, security=Security(**tls, require_encryption=True), asynchronous=True
        ) as client:
            await _registered(client, boards, processes, folder)
            yield client
    finally:
        _stop(processes)
        shutil.rmtree(folder, ignore_errors=True)


def dask_setup(server: Any) -> None:
    """Preload of every process of the cluster: end when the process that started it has ended."""
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    while os.read(0, 4096):
        pass
    shutil.rmtree(os.environ["DISTRIBUTED_PYNQ_LOCAL"], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _certificates(folder: Path) -> dict[str, str]:
    temporary = Security.temporary()
    tls: dict[str, str] = {}
    for role in ("ca_file", "client_key", "client_cert"):
        path = folder / f"{role}.pem"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(getattr(temporary, f"tls_{role}"))
        tls[f"tls_{role}"] = str(path)
    own = {"key": tls["tls_client_key"], "cert": tls["tls_client_cert"]}
    roles = {"ca-file": tls["tls_ca_file"], "client": own, "scheduler": own, "worker": own}
    shutil.copy(PACKAGE / "dask.yaml", folder)
    # Dask merges the files of a configuration folder in the order of their names.
    (folder / "tls.yaml").write_text(json.dumps({"distributed": {"comm": {"tls": roles}}}))
    return tls


def _start(
    arguments: list[str], scheduler_file: Path, log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{arguments[0]}", *arguments[1:]]
    command += ["--scheduler-file", str(scheduler_file), "--preload", "distributed_pynq.local"]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def _address(
    scheduler_file: Path, processes: dict[str, subprocess.Popen[bytes]], folder: Path
) -> str:
    async for _ in _until_start_limit("the scheduler", processes, folder):
        # The file is there a moment before its content is.
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(scheduler_file.read_text())["address"])
    raise AssertionError("the loop above returns or raises")


async def _registered(
    client: Any, boards: int, processes: dict[str, subprocess.Popen[bytes]], folder: Path
) -> None:
    async for _ in _until_start_limit("every board", processes, folder):
        if len((await client.scheduler.identity())["workers"]) == boards:
            return


async def _until_start_limit(
    what: str, processes: dict[str, subprocess.Popen[bytes]], folder: Path
) -> AsyncIterator[None]:
    deadline = asyncio.get_running_loop().time() + START_LIMIT_S
    while asyncio.get_running_loop().time() < deadline:
        for name, process in processes.items():
            if process.poll() is not None:
                printed = (folder / f"{name}.log").read_text(errors="replace").strip()
                raise ClusterError(f"{name} did not start: {printed.splitlines()[-1:] or 'silent'}")
        yield
        await asyncio.sleep(0.02)
    raise ClusterError(f"{what} did not come up within {START_LIMIT_S:g} s")


def _stop(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes.values():
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
