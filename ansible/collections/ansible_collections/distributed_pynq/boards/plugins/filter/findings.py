"""Filter that says what is wrong with a fleet, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

DOCUMENTATION = """
name: findings
short_description: What is wrong with a fleet, and what to do
description:
  - Judges what boards and scheduler answered.
options:
  _input:
    description: >-
      The variables of each board, by its name; among them contact_board, contact_offset and
      board_failure, a reason why the board could not be asked.
    type: dict
    required: true
  workers:
    description: What the scheduler says is wrong with each worker, by its name.
    type: dict
    required: true
  scheduler_failure:
    description: Why the scheduler could not be asked, or nothing.
    type: str
    required: true
"""

EXAMPLES = """
findings: "{{ boards | distributed_pynq.boards.findings(workers, '') }}"
"""

RETURN = """
_value:
  description: A line per finding, which names the board.
  type: list
  elements: str
"""

CLOCK_TOLERANCE_S = 10
SCARCE = 0.05  # of what there is
RESTARTS = 3
SETTLED_S = 300
CERTIFICATE_DAYS = 30

KERNEL = {
    "power": "its power supply is too weak, says the kernel ({}); a USB port is not enough",
    "card": "its SD card fails, says the kernel ({}); save what matters and write a new card",
}

COPY = (
    "its card is a copy: write it anew, then make enrol, which says how to forget the one of before"
)

# What only one board may have: field of the facts, its name, and what to do.
UNIQUE = (
    (
        "hwaddress",
        "MAC address",
        "give one of them another with hwaddress= in the inventory, then make deploy",
    ),
    ("machine_id", "machine-id", COPY),
    ("host_key", "SSH host key", COPY),
)

Board = dict[str, Any]


def findings(
    boards: dict[str, Board], workers: dict[str, str], scheduler_failure: str
) -> list[str]:
    """What is wrong with a fleet, one line each; none is a good sign."""
    lines = [f"scheduler: {scheduler_failure}; make deploy starts it"] if scheduler_failure else []
    answering = {name: board for name, board in boards.items() if not board["board_failure"]}
    owners = {field: _owners(answering, field) for field, _, _ in UNIQUE}
    releases: dict[tuple[str, str], str] = {}
    for name, board in boards.items():
        if board["board_failure"]:
            lines.append(f"{name}: {board['board_failure']}")
            continue
        facts = board["contact_board"]
        reasons = list(_work(name, board, workers, scheduler_failure))
        for field, what, remedy in UNIQUE:
            owner = owners[field].get(facts[field], name)
            if owner != name:
                reasons.append(f"has the {what} of {owner}; {remedy}")
        first = releases.setdefault((str(board["image"]), facts["machine"]), name)
        release = answering[first]["contact_board"]["release"]
        if facts["release"] and release and facts["release"] != release:
            reasons.append(
                f"runs release {facts['release']}, but {first} runs {release}; make deploy"
            )
        for check in CHECKS:
            reasons.extend(check(board, facts))
        lines.extend(f"{name}: {reason}" for reason in reasons)
    return lines


def _owners(boards: dict[str, Board], field: str) -> dict[str, str]:
    """First board that has each value."""
    owners: dict[str, str] = {}
    for name, board in boards.items():
        value = board["contact_board"][field]
        if value:
            owners.setdefault(value, name)
    return owners


def _work(
    name: str, board: Board, workers: dict[str, str], scheduler_failure: str
) -> Iterator[str]:
    """Its workers, from the units to the scheduler: a cause is said, its consequences are not."""
    facts = board["contact_board"]
    variables = ["BOARD", "XILINX_XRT"] if board["board_type"]["sd_card"] else ["XILINX_XRT"]
    causes = [
        cause
        for device in map(str, board.get("devices", ["0"]))
        for cause in _unit(device, facts["units"].get(device), variables)
    ]
    if facts["scheduler_failure"] and not scheduler_failure:
        causes.append(
            f"cannot reach the scheduler: {facts['scheduler_failure']}; open the port in the "
            "host's firewall, and look whether the host has the address that the inventory names"
        )
    yield from causes
    if not causes:
        for worker, finding in workers.items():
            if finding and worker.split("/")[0] == name:
                yield finding


def _unit(device: str, unit: dict[str, Any] | None, variables: list[str]) -> Iterator[str]:
    if unit is None:
        yield f"the unit of device {device} is missing; make deploy writes it"
        return
    state, restarts = unit["ActiveState"], int(unit.get("NRestarts") or 0)
    more = f"; journalctl --unit=distributed-pynq-worker@{device} says more"
    last = f": {unit['last']}" if unit["last"] else ""
    if state != "active":
        again = f", restarted {restarts} times" if restarts else ""
        yield f"the unit of device {device} is {state}{again}{last}{more}"
    elif restarts >= RESTARTS and unit["active_s"] < SETTLED_S:
        yield (
            f"the unit of device {device} was restarted {restarts} times, "
            f"{unit['active_s']:.0f} s ago at last{last}{more}"
        )
    else:
        for variable in variables:
            if variable not in unit["variables"]:
                yield (
                    f"the worker of device {device} runs without {variable}; make deploy sets it, "
                    "and restarts the worker"
                )


def _address(board: Board, facts: Board) -> Iterator[str]:
    if facts["rivals"]:
        yield (
            f"another machine, {' and '.join(facts['rivals'])}, has its address "
            f"{board['ansible_host']} too; switch that off, or give it another"
        )


def _clock(board: Board, facts: Board) -> Iterator[str]:
    offset = float(board["contact_offset"])
    if abs(offset) > CLOCK_TOLERANCE_S:
        yield (
            f"its clock is {offset:.0f} s off; make deploy sets it, and ntp_server= in the "
            "inventory keeps it right"
        )


def _certificate(board: Board, facts: Board) -> Iterator[str]:
    certificate = facts["certificate"]
    if not certificate:
        return
    if facts["time"] < certificate["start"]:
        yield "its certificate is not valid yet by its clock; make deploy sets the clock"
    days = (certificate["end"] - (facts["time"] - float(board["contact_offset"]))) / 86400
    if days < CERTIFICATE_DAYS:
        when = f"ends in {days:.0f} days" if days > 0 else f"ended {-days:.0f} days ago"
        yield f"its certificate {when}; make deploy renews it"


def _storage(board: Board, facts: Board) -> Iterator[str]:
    if facts["read_only"]:
        yield (
            "its card is mounted read-only, as after an error of the file system; restart it, and "
            "if that does not help write the card anew"
        )
    if facts["disk_free"] < SCARCE * facts["disk_size"]:
        yield (
            f"its card is full: {facts['disk_free'] / 2**20:.0f} MiB free; "
            "du -xh / | sort -h | tail says what takes the room"
        )
    if facts["tmpfs_free"] < SCARCE * facts["tmpfs_size"]:
        yield (
            f"its /dev/shm is full, where images are handed to the FPGA: "
            f"{facts['tmpfs_free'] / 2**20:.0f} MiB free; delete what lies there"
        )


def _memory(board: Board, facts: Board) -> Iterator[str]:
    if facts["memory_available"] < SCARCE * facts["memory"]:
        yield (
            f"its memory is full: {facts['memory_available'] / 2**20:.0f} MiB available; "
            "stop what else runs there, as notebooks of Jupyter"
        )


def _kernel(board: Board, facts: Board) -> Iterator[str]:
    for trouble, line in facts["kernel"].items():
        yield KERNEL[trouble].format(line)


CHECKS: tuple[Callable[[Board, Board], Iterator[str]], ...] = (
    _address,
    _clock,
    _certificate,
    _storage,
    _memory,
    _kernel,
)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """By name."""
        return {"findings": findings}
