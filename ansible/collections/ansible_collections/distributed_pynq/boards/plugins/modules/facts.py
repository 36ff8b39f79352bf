"""Ask a board everything at once. Runs on boards: Python 3.6."""

import os
import platform
import re
import socket
import ssl
import struct
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
  address:
    description: The address that the board was reached at.
    type: str
    required: true
  settings:
    description: Folder of the settings of the workers.
    type: path
    required: true
  scheduler:
    description: Where the board should reach the scheduler, as 192.168.2.1:8786.
    type: str
    required: true
author:
  - Distributed PYNQ
"""

EXAMPLES = r"""
- name: Ask the board everything
  distributed_pynq.boards.facts:
    releases: /opt/distributed-pynq
    state: /var/lib/distributed-pynq
    address: 192.168.2.11
    settings: /etc/distributed-pynq
    scheduler: 192.168.2.1:8786
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
    host_key: {description: Public host key of the SSH server., type: str}
    addresses: {description: "IPv4 addresses, as 192.168.2.11/24.", type: list}
    hwaddress: {description: "MAC address of the interface that has O(address).", type: str}
    rivals: {description: "MAC addresses of other machines that have O(address) too.", type: list}
    time: {description: "Seconds since 1970 by the board's clock.", type: float}
    time_service: {description: "Service that follows an NTP server, where it has one.", type: str}
    release: {description: "Name of the release that runs, or nothing.", type: str}
    notes: {description: "What roles did once, by name.", type: dict}
    units:
      description: >-
        State of each worker unit that systemd knows, by device: a few of its properties,
        C(active_s), the seconds since it is active, C(variables), the names of those of its
        process, and C(last), the last line of one that is not well.
      type: dict
    scheduler_failure:
      description: Why the scheduler cannot be reached from the board, or nothing.
      type: str
    certificate:
      description: When the certificate of the workers begins and ends, in seconds since 1970.
      type: dict
    disk_free: {description: Free bytes of the root file system., type: int}
    disk_size: {description: Size of the root file system in bytes., type: int}
    read_only: {description: Whether nothing can be written to it., type: bool}
    tmpfs_free: {description: Free bytes of /dev/shm., type: int}
    tmpfs_size: {description: Size of /dev/shm in bytes., type: int}
    memory: {description: Memory in bytes., type: int}
    memory_available: {description: Memory that a process can still get in bytes., type: int}
    kernel: {description: "Last line of the kernel's log of each trouble, by its name.", type: dict}
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


class Question:
    """Asks the network who else has an address of ours, and takes the answers in later."""

    ANSWER_S = 0.5

    def __init__(self, address):
        """Ask; needs root, without which nobody answers."""
        self.address = socket.inet_aton(address)
        self.hwaddress, self.socket, self.siblings = "", None, set()
        self.deadline = time.monotonic() + self.ANSWER_S
        shown = run("ip", "-4", "-o", "addr", "show", "to", address).split()
        if len(shown) < 2:
            return
        interfaces = {
            name: read(f"/sys/class/net/{name}/address") for name in os.listdir("/sys/class/net")
        }
        self.hwaddress = interfaces.pop(shown[1], "")
        # Any of our interfaces answers for any of our addresses.
        self.siblings = set(interfaces.values())
        sender = bytes.fromhex(self.hwaddress.replace(":", ""))
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
            self.socket.bind((shown[1], 0x0806))
            # Without a sender's address the question leaves the neighbours' tables as they are.
            asked = struct.pack(
                "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, sender, b"", b"", self.address
            )
            self.socket.send(b"\xff" * 6 + sender + b"\x08\x06" + asked)
        except OSError:
            self.socket = None

    def answers(self):
        """MAC addresses of the others."""
        found = set()
        while self.socket:
            self.socket.settimeout(max(0.01, self.deadline - time.monotonic()))
            try:
                packet, source = self.socket.recvfrom(64)
            except OSError:
                break
            if source[2] == socket.PACKET_OUTGOING or len(packet) < 42:
                continue
            operation, sender, address = struct.unpack("!H6s4s", packet[20:32])
            if operation == 2 and address == self.address:
                found.add(":".join(f"{byte:02x}" for byte in sender))
        return sorted(found - self.siblings)


TROUBLES = {
    "power": re.compile("under-?voltage", re.IGNORECASE),
    "card": re.compile(
        r"EXT4-fs error|Remounting filesystem read-only|I/O error, dev mmcblk|"
        r"mmcblk\d+: .*error|mmc\d: .*(error|timeout)",
        re.IGNORECASE,
    ),
}


def troubles(log):
    """Last line of a kernel's log of each trouble, by its name."""
    found = {}
    for line in log.splitlines():
        for trouble, pattern in TROUBLES.items():
            if pattern.search(line):
                found[trouble] = re.sub(r"^\[[ .\d]+\] ", "", line)
    return found


def certificate(path):
    """When a certificate begins and ends; nothing where there is none."""
    shown = run("openssl", "x509", "-noout", "-startdate", "-enddate", "-in", path)
    dates = dict(line.split("=", 1) for line in shown.splitlines())
    return {
        "start" if name == "notBefore" else "end": ssl.cert_time_to_seconds(date)
        for name, date in dates.items()
    }


def unreachable(server):
    """Why a TCP server cannot be reached; nothing where it can."""
    host, port = server.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError as error:
        return f"{server} ({error})"
    return ""


def available():
    """Memory that a process can still get in bytes."""
    return 1024 * int(re.search(r"^MemAvailable:\s+(\d+)", read("/proc/meminfo"), re.M).group(1))


def condition(unit, shown):
    """Properties of a unit, and what else tells how it is."""
    since = int(shown.pop("ActiveEnterTimestampMonotonic", 0)) / 1e6
    environment = read("/proc/{}/environ".format(shown["MainPID"])).split("\0")
    ill = shown["ActiveState"] != "active" or shown.get("NRestarts", "0") != "0"
    # Its own words: systemd's say only that it ended.
    said = run("journalctl", "--quiet", "--lines=1", "--output=cat", "_SYSTEMD_UNIT=" + unit)
    shown.update(
        active_s=time.monotonic() - since,
        variables=[pair.split("=", 1)[0] for pair in environment],
        last=said if ill else "",
    )
    return shown


def units():
    """Condition of the worker's units, by device."""
    wanted = "ActiveState,SubState,NRestarts,MainPID,ActiveEnterTimestampMonotonic"
    prefix, suffix = "distributed-pynq-worker@", ".service"
    listed = run("systemctl", "list-units", "--all", "--plain", "--no-legend", prefix + "*")
    found = {}
    for line in listed.splitlines():
        unit = line.split()[0]
        shown = run("systemctl", "show", "--property", wanted, unit)
        properties = dict(pair.split("=", 1) for pair in shown.splitlines())
        found[unit[len(prefix) : -len(suffix)]] = condition(unit, properties)
    return found


def main():
    """The module."""
    module = AnsibleModule(
        {
            "releases": {"type": "path", "required": True},
            "state": {"type": "path", "required": True},
            "address": {"type": "str", "required": True},
            "settings": {"type": "path", "required": True},
            "scheduler": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    question = Question(module.params["address"])
    current = os.path.join(module.params["releases"], "current")
    root, tmpfs = os.statvfs("/"), os.statvfs("/dev/shm")
    module.exit_json(
        changed=False,
        board={
            "python": ".".join(platform.python_version_tuple()[:2]),
            "machine": platform.machine(),
            "name": platform.node(),
            "names": re.findall(r"^127\.0\.1\.1\s+(\S+)", read("/etc/hosts"), re.MULTILINE),
            "board": run("bash", "-lc", 'printf %s "$BOARD"'),
            "machine_id": read("/etc/machine-id"),
            "host_key": read("/etc/ssh/ssh_host_ed25519_key.pub"),
            "addresses": re.findall(
                r" inet (\S+)", run("ip", "-4", "-o", "addr", "show", "scope", "global")
            ),
            "hwaddress": question.hwaddress,
            "time": time.time(),
            # Where there is an ntpd, Ubuntu's systemd-timesyncd leaves the time to it.
            "time_service": "ntp" if os.access("/usr/sbin/ntpd", os.X_OK) else "systemd-timesyncd",
            "release": os.readlink(current) if os.path.islink(current) else "",
            "notes": notes(module.params["state"]),
            "units": units(),
            "scheduler_failure": unreachable(module.params["scheduler"]),
            "certificate": certificate(os.path.join(module.params["settings"], "tls/cert.pem")),
            "disk_free": root.f_bavail * root.f_frsize,
            "disk_size": root.f_blocks * root.f_frsize,
            "read_only": bool(root.f_flag & os.ST_RDONLY),
            "tmpfs_free": tmpfs.f_bavail * tmpfs.f_frsize,
            "tmpfs_size": tmpfs.f_blocks * tmpfs.f_frsize,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "memory_available": available(),
            "kernel": troubles(run("dmesg")),
            "systemd": int(run("systemctl", "--version").split()[1]),
            "rivals": question.answers(),
        },
    )


if __name__ == "__main__":
    main()
