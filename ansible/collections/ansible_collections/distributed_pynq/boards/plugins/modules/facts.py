"""Ask a board everything at once. Runs on boards: Python 3.6."""

import os
import platform
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: facts
short_description: Ask a board everything at once
description:
  - Changes nothing. Needs root for a few of the answers.
options:
  releases:
    description: Folder of releases, in which C(current) is a link to the one that runs.
    type: path
    required: true
  state:
    description: Folder in which the roles note what they did once.
    type: path
    required: true
author:
  - Distributed PYNQ
"""

EXAMPLES = r"""
- name: Ask the board everything
  distributed_pynq.boards.facts:
    releases: /opt/distributed-pynq
    state: /var/lib/distributed-pynq
  register: board
"""

RETURN = r"""
board:
  description: What the board is and has.
  returned: success
  type: dict
  contains:
    python: {description: "Version of Python, as 3.6.", type: str}
    machine: {description: "Machine, as armv7l.", type: str}
    name: {description: Hostname., type: str}
    names: {description: "Names that /etc/hosts has for 127.0.1.1.", type: list}
    board: {description: "Board type, from a login shell's BOARD.", type: str}
    machine_id: {description: Machine id., type: str}
    addresses: {description: "IPv4 addresses, as 192.168.2.11/24.", type: list}
    time: {description: "Seconds since 1970 by the board's clock.", type: float}
    release: {description: "Name of the release that runs, or nothing.", type: str}
    notes: {description: "What roles did once, by name.", type: dict}
    units: {description: "State of each worker unit that systemd knows, by device.", type: dict}
    disk_free: {description: Free bytes of the root file system., type: int}
    disk_size: {description: Size of the root file system in bytes., type: int}
    memory: {description: Memory in bytes., type: int}
    systemd: {description: Version of systemd., type: int}
"""


def run(*command):
    """What a command prints; nothing where it fails or does not exist."""
    try:
        process = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return ""
    return process.stdout.decode("utf-8", "replace").strip()


def read(path):
    """The stripped content of a text file; nothing where there is none."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def notes(folder):
    """Content of each file in a folder, by its name."""
    try:
        return {name: read(os.path.join(folder, name)) for name in os.listdir(folder)}
    except OSError:
        return {}


def units():
    """Properties of the worker's units, by device."""
    wanted = "ActiveState,SubState,NRestarts,MainPID,ActiveEnterTimestamp"
    prefix, suffix = "distributed-pynq-worker@", ".service"
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", prefix + "*")
    found = {}
    for line in listed.splitlines():
        unit = line.split()[0]
        shown = run("systemctl", "show", "--property", wanted, unit)
        found[unit[len(prefix) : -len(suffix)]] = dict(
            pair.split("=", 1) for pair in shown.splitlines()
        )
    return found


def main():
    """The module."""
    module = AnsibleModule(
        {
            "releases": {"type": "path", "required": True},
            "state": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    current = os.path.join(module.params["releases"], "current")
    root = os.statvfs("/")
    module.exit_json(
        changed=False,
        board={
            "python": ".".join(platform.python_version_tuple()[:2]),
            "machine": platform.machine(),
            "name": platform.node(),
            "names": re.findall(r"^127\.0\.1\.1\s+(\S+)", read("/etc/hosts"), re.MULTILINE),
            "board": run("bash", "-lc", 'printf %s "$BOARD"'),
            "machine_id": read("/etc/machine-id"),
            "addresses": re.findall(
                r" inet (\S+)", run("ip", "-4", "-o", "addr", "show", "scope", "global")
            ),
            "time": time.time(),
            "release": os.readlink(current) if os.path.islink(current) else "",
            "notes": notes(module.params["state"]),
            "units": units(),
            "disk_free": root.f_bavail * root.f_frsize,
            "disk_size": root.f_blocks * root.f_frsize,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "systemd": int(run("systemctl", "--version").split()[1]),
        },
    )


if __name__ == "__main__":
    main()
