"""Filter that says what is wrong with an inventory, before anything is touched."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

DOCUMENTATION = """
name: inventory_faults
short_description: What is wrong with an inventory
description:
  - Checks what an inventory says of its boards and its scheduler.
options:
  _input:
    description: The variables of each board, by its name.
    type: dict
    required: true
  schedulers:
    description: The variables of each scheduler host, by its name.
    type: dict
    required: true
  profiles:
    description: What is known of each PYNQ image, by its name.
    type: dict
    required: true
  board_types:
    description: What is known of each type of board, by its name.
    type: dict
    required: true
  subnet:
    description: The network of the boards, as 192.168.2.0/24.
    type: str
    required: true
"""

EXAMPLES = """
faults: >-
  {{ boards | distributed_pynq.boards.inventory_faults(schedulers, profiles, types, subnet) }}
"""

RETURN = """
_value:
  description: A line per fault, which names host and field.
  type: list
  elements: str
"""

REQUIRED = ("address", "image", "board")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What an instance of a systemd unit may be called without being escaped.
DEVICE = re.compile(r"[A-Za-z0-9:_.-]+")
# The one image, and the one board, that is no SD card of PYNQ's.
SERVER = "server"
RUNTIMES = ("bnn-pynq", "finn-examples", "none")
HWADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)

Host = dict[str, Any]


def inventory_faults(
    boards: dict[str, Host],
    schedulers: dict[str, Host],
    profiles: dict[str, Any],
    board_types: dict[str, Any],
    subnet: Any,
) -> list[str]:
    """Faults of an inventory, one line each; none is a good sign."""
    faults: list[str] = []
    try:
        network = ipaddress.IPv4Network(str(subnet))
    except ValueError as error:
        return [f"all: subnet: {error}"]
    if not boards:
        faults.append("boards: the group is empty")
    if len(schedulers) != 1:
        faults.append(f"scheduler: the group has {len(schedulers)} hosts, expected one")
    owners: dict[tuple[str, str], str] = {}

    def claim(host: str, field: str, value: Any) -> None:
        owner = owners.setdefault((field, str(value).lower()), host)
        if owner != host:
            faults.append(f"{host}: {field}: {value} is taken by {owner}")

    def check_address(host: str, variables: Host) -> None:
        value = variables["address"]
        try:
            address = ipaddress.IPv4Address(str(value))
        except ValueError:
            faults.append(f"{host}: address: {value!r} is no IPv4 address")
            return
        if address not in network:
            faults.append(f"{host}: address: {value} is outside the subnet {network}")
        elif address in (network.network_address, network.broadcast_address):
            faults.append(f"{host}: address: {value} is no host's address in {network}")
        elif value == variables.get("gateway") and host in boards:
            faults.append(f"{host}: address: {value} is the gateway's")
        claim(host, "address", value)

    for host, variables in schedulers.items():
        if "address" in variables:
            check_address(host, variables)
        else:
            faults.append(f"{host}: address: missing")
    for host, variables in boards.items():
        if not NAME.fullmatch(host):
            faults.append(f"{host}: name: expected a hostname of a-z, 0-9 and -")
        faults.extend(f"{host}: {field}: missing" for field in REQUIRED if field not in variables)
        if "address" in variables:
            check_address(host, variables)
        image, board = variables.get("image"), variables.get("board")
        if image is not None and str(image) not in profiles:
            faults.append(f"{host}: image: {image} is unknown, expected {' or '.join(profiles)}")
        elif None not in (image, board) and (str(image) == SERVER) != (board == SERVER):
            faults.append(f"{host}: image: {image} does not go with board={board}")
        if board is not None and board not in board_types:
            faults.append(f"{host}: board: {board} is unknown, expected {' or '.join(board_types)}")
        if variables.get("runtime", RUNTIMES[0]) not in RUNTIMES:
            faults.append(
                f"{host}: runtime: {variables['runtime']} is unknown, "
                f"expected {' or '.join(RUNTIMES)}"
            )
        devices = variables.get("devices", ["0"])
        if not isinstance(devices, list) or not devices:
            faults.append(f"{host}: devices: {devices!r} is no list, as ['0', '1']")
        elif len({str(device) for device in devices}) < len(devices):
            faults.append(f"{host}: devices: {devices} names one twice")
        elif strange := [device for device in devices if not DEVICE.fullmatch(str(device))]:
            faults.append(f"{host}: devices: {strange[0]!r} is no index, PCIe address or name")
        if board == SERVER and variables.get("ansible_host") != variables.get("address"):
            faults.append(f"{host}: address: a server keeps the one it has, that of ansible_host")
        for field in ("hwaddress", "factory_hwaddress"):
            if field not in variables:
                continue
            if HWADDRESS.fullmatch(str(variables[field])):
                claim(host, field, variables[field])
            else:
                faults.append(
                    f"{host}: {field}: {variables[field]!r} is no MAC address, as 00:0a:35:00:00:01"
                )
    return faults


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """By name."""
        return {"inventory_faults": inventory_faults}
