"""Which FPGAs there are: those of this machine, or of a fleet."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from rich.table import Table
from rich.text import Text

from . import worker as task
from .errors import ClusterError, InputError
from .job import REACH_S, connect


def show(scheduler: str | None) -> Table:
    """The devices of this machine, or of the fleet of a scheduler, as a table for the terminal.

    Raises
    ------
    InputError
        $DISTRIBUTED_PYNQ_DRIVER_PYTHON is no interpreter.
    ClusterError
        This machine is no board, or the scheduler or a worker does not answer.
    """
    first, found = ("Worker", asyncio.run(_fleet(scheduler))) if scheduler else ("Index", _here())
    view = Table(first, "Device", "Name")
    for place, device, name in found:
        view.add_row(*map(Text, (str(place), device, name)))
    return view


def _here() -> list[tuple[int, str, str]]:
    python = os.environ.get("DISTRIBUTED_PYNQ_DRIVER_PYTHON", sys.executable)
    try:
        run = subprocess.run([python, task.DRIVER, "devices"], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"DISTRIBUTED_PYNQ_DRIVER_PYTHON={python}: {error.strerror}") from None
    if run.returncode:
        told = (run.stderr.splitlines() or [f"exit code {run.returncode}"])[-1]
        raise ClusterError(
            f"{python}: {told}; --scheduler ADDR lists a fleet, DISTRIBUTED_PYNQ_DRIVER_PYTHON "
            "names a board's interpreter that has pynq"
        )
    return [(found["index"], found["device"], found["name"]) for found in json.loads(run.stdout)]


async def _fleet(scheduler: str) -> list[tuple[str, str, str]]:
    async with connect(scheduler) as client:
        return await of_fleet(client)


async def of_fleet(client: Any) -> list[tuple[str, str, str]]:
    """Worker, device (PCIe address or index) and its name, or why it is gone, of every worker.

    Raises
    ------
    ClusterError
        There is none, or one does not answer.
    """
    workers = (await client.scheduler.identity())["workers"]
    boards = {a: str(w["name"]) for a, w in workers.items() if "FPGA" in w["resources"]}
    if not boards:
        raise ClusterError(f"{client.scheduler.address}: no board has joined the cluster")
    asked = client.run(task.describe, workers=list(boards))
    try:
        found: dict[str, Any] = await asyncio.wait_for(asked, REACH_S)
    except asyncio.TimeoutError:
        raise ClusterError(f"{client.scheduler.address}: not every worker answers") from None
    return sorted(
        (boards[a], found[a]["device"], found[a]["fault"] or found[a]["name"]) for a in boards
    )
