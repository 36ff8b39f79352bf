"""Stand-in boards in containers: factory-fresh, on a network of their own, with an inventory.

usage: fleet.py up [--boards N] [--cards N] [--image 3.0] [--off] | down
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = ROOT / "inventory.fleet.ini"
STATE = ROOT / ".fleet"
DEPLOYMENT = ROOT / ".deploy" / INVENTORY.stem

PLUGINS = ROOT / "ansible/collections/ansible_collections/distributed_pynq/boards/plugins"
sys.path.insert(0, str(PLUGINS / "modules"))
import release  # noqa: E402

PROFILES = yaml.safe_load((ROOT / "ansible/group_vars/all/profiles.yml").read_text())["profiles"]
IMAGE = "3.0"
LABEL = "distributed-pynq.fleet"
NETWORK = "distributed-pynq-fleet"
SUBNET = "192.168.2.0/24"
HOST = "192.168.2.1"
BOOT_LIMIT_S = 60.0

# A server with FPGA cards, of which the first two are of one kind, as in many a real one.
SERVER = "server"
SERVER_ADDRESS = "192.168.2.91"
SHELLS = ["xilinx_u50", "xilinx_u50", "xilinx_u200", "xilinx_u280"]
PULLED = "/run/standin/pulled"

# systemd as a container's first process asks for these, and for no more.
SYSTEMD = [
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--shm-size", "256m"),
]
CGROUPS = {
    "1": ["--cgroupns", "private"],
    "2": ["--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"],
}

BNN_SETUP = """\
from setuptools import find_packages, setup

setup(name="bnn-pynq", version="0.1", packages=find_packages(), include_package_data=True)
"""


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    """Run a docker command; returns what it prints, raises CalledProcessError."""
    command = ["docker", *arguments]
    printed = subprocess.run(command, check=True, input=stdin, stdout=subprocess.PIPE).stdout
    return printed.decode().strip()


def up(boards: int, cards: int = 0, image: str = IMAGE, off: bool = False) -> None:
    """Start a fresh fleet of a PYNQ image and write its inventory, in place of the fleet there is.

    With cards there is a server with so many beside the boards. Machines that are off are made, but
    not started, and get no lease: switched on with docker start, a board comes up at the address
    that every card has.

    Raises SystemExit where there is no Docker engine or a board does not boot.
    """
    down()
    build_image(image)
    docker("network", "create", "--internal", "--subnet", SUBNET, "--gateway", HOST, NETWORK)
    machines = {name(n): (bootstrap_address(n), "Pynq-Z1") for n in range(1, boards + 1)}
    if cards:
        machines[SERVER] = SERVER_ADDRESS, "server"
    for machine, (address, kind) in machines.items():
        start(machine, address, kind, image, off)
    if not off:
        for machine, (address, _) in machines.items():
            await_ssh(machine, address)
    pack_bnn(STATE / "bnn-pynq.tar.gz")
    INVENTORY.write_text(inventory(boards, cards, image, off))
    print(
        f"{', '.join(machines)}: {'off' if off else 'up'}, with image {image}, see {INVENTORY.name}"
    )


def down() -> None:
    """Remove the fleet's containers, network, inventory and what deploying remembers of it."""
    try:
        containers = docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
    except (OSError, subprocess.CalledProcessError):
        sys.exit("fleet: no Docker engine answers; start one, or see `docker info`")
    if containers:
        docker("rm", "--force", "--volumes", *containers)
    if docker("network", "ls", "--quiet", "--filter", f"name=^{NETWORK}$"):
        docker("network", "rm", NETWORK)
    INVENTORY.unlink(missing_ok=True)
    shutil.rmtree(DEPLOYMENT, ignore_errors=True)


def name(number: int) -> str:
    """Inventory name of a board."""
    return f"z1-{number:02}"


def bootstrap_address(number: int) -> str:
    """Address that a factory-fresh board gets, as if from DHCP."""
    return f"192.168.2.{100 + number}"


def card_address(number: int) -> str:
    """PCIe address of a card of the server."""
    return f"0000:{number:02x}:00.0"


def tag(image: str) -> str:
    """Name of the stand-in's container image."""
    return f"distributed-pynq/board:{image}"


def build_image(image: str) -> None:
    """Build the container image of a PYNQ image's stand-in, or find it built."""
    profile = PROFILES[image]
    python, ubuntu = profile["python"], profile["ubuntu"]
    base = f"distributed-pynq/board-base:{ubuntu}"
    registry = os.environ.get("BOARD_BASE", f"ubuntu:{ubuntu}")
    packages = (ROOT / "images/board/packages").read_text().split()
    script = ROOT / "images/base.sh"
    subprocess.run([script, base, registry, python, "/usr", *packages], check=True)
    lock = ROOT / f"app/requirements/standin-{python}.lock"
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for folder in ("images/board", "app/standin"):
            tar.add(ROOT / folder, folder, filter=_source)
        tar.add(lock, "requirements.txt", filter=_source)
        tar.add(wheels(lock, profile), "wheels", filter=_source)
    owner = Path(profile["pynq_python"]).parents[1]
    arguments = {
        "BASE": base,
        "UBUNTU": ubuntu,
        "PYTHON": python,
        "PYNQ_PYTHON": profile["pynq_python"],
        "SITE": f"/usr/local/lib/python{python}/dist-packages"
        if owner == Path("/usr")
        else f"{owner}/lib/python{python}/site-packages",
    }
    docker(
        *("build", "--quiet", "--tag", tag(image), "--file", "images/board/Dockerfile"),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        "-",
        stdin=context.getvalue(),
    )


def wheels(lock: Path, profile: dict[str, str]) -> Path:
    """Folder with the wheels of a lock, downloaded once."""
    folder = STATE / lock.stem
    if not (folder / lock.name).is_file() or (folder / lock.name).read_text() != lock.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        tags = release.platforms(platform.machine(), profile["glibc"])
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [
                *(*pip, "download", "--dest", folder, "--no-deps", "--only-binary=:all:"),
                *("--require-hashes", "--requirement", lock),
                *("--python-version", profile["python"]),
                *(f"--platform={tag}" for tag in tags),
            ],
            check=True,
        )
        shutil.copy(lock, folder)
    return folder


def start(machine: str, address: str, kind: str, image: str, off: bool) -> None:
    """Make the container of a board or server, and start it unless it is off."""
    docker(
        *(("create",) if off else ("run", "--detach")),
        *("--name", f"{NETWORK}-{machine}", "--label", LABEL),
        *("--network", NETWORK, "--ip", address, "--env", f"STANDIN_BOARD={kind}"),
        *("--env", f"STANDIN_LEASES={'no' if off else 'yes'}"),
        *SYSTEMD,
        *CGROUPS[docker("info", "--format", "{{.CgroupVersion}}")],
        tag(image),
    )


def await_ssh(board: str, address: str) -> None:
    """Wait until a board lets somebody log in."""
    deadline = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, 22), 1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.2)
    print(docker("exec", f"{NETWORK}-{board}", "systemctl", "--failed", "--no-pager"))
    sys.exit(f"fleet: {board} does not answer at {address} after {BOOT_LIMIT_S:.0f} s")


def pack_bnn(archive: Path) -> None:
    """Pack the double of BNN-PYNQ as a source archive, with its parameter sets if they are here."""
    archive.parent.mkdir(exist_ok=True)
    data = os.environ.get("DISTRIBUTED_PYNQ_DATA")
    parameters = Path(data or "", "bnn-pynq", "params.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        _add_text(tar, "bnn-pynq/setup.py", BNN_SETUP)
        _add_text(tar, "bnn-pynq/MANIFEST.in", "graft bnn\n")
        tar.add(ROOT / "app/standin/bnn", "bnn-pynq/bnn", filter=_source)
        if data and parameters.is_file():
            with tarfile.open(parameters) as sets:
                for member in filter(tarfile.TarInfo.isfile, sets):
                    content = sets.extractfile(member)
                    member.name = f"bnn-pynq/bnn/params/{Path(member.name)}"
                    tar.addfile(member, content)


def inventory(boards: int, cards: int, image: str, off: bool) -> str:
    """The inventory of a fleet, as inventory.example.ini explains it."""
    rows = "\n".join(
        f"{name(n)} {current}address=192.168.2.{10 + n}"
        for n in range(1, boards + 1)
        for current in ["" if off else f"ansible_host={bootstrap_address(n)} "]
    )
    return f"""\
# Written by `make fleet`.
[boards]
{rows}

[boards:vars]
image={image}
board=Pynq-Z1
# The double of BNN-PYNQ, whatever the image: finn-examples has no networks for our digits.
runtime=bnn-pynq
# What computes on a stand-in, in place of an FPGA, needs more memory than a driver does.
memory_max=1G
board_environment={{"NUMBA_NUM_THREADS": "1", "NUMBA_CACHE_DIR": "/dev/shm/numba"}}

{server(cards) if cards else ""}[scheduler]
host ansible_connection=local address={HOST} dashboard=127.0.0.1:8788

[all:vars]
subnet={SUBNET}
bnn_source={STATE.name}/bnn-pynq.tar.gz
"""


def server(cards: int) -> str:
    """The part of the inventory that describes the server."""
    addresses = [card_address(number) for number in range(1, cards + 1)]
    shells = [SHELLS[number % len(SHELLS)] for number in range(cards)]
    environment = {
        # BNN-PYNQ's double computes here too, as on a board; real cards have no BNN-PYNQ.
        "BOARD": "Pynq-Z1",
        "NUMBA_NUM_THREADS": "1",
        "NUMBA_CACHE_DIR": "/dev/shm/numba",
        "DISTRIBUTED_PYNQ_STANDIN_DEVICES": ",".join(map("@".join, zip(shells, addresses))),
        "DISTRIBUTED_PYNQ_STANDIN_PULLED": PULLED,
    }
    return f"""\
[boards:children]
servers

[servers]
{SERVER} ansible_host={SERVER_ADDRESS} address={SERVER_ADDRESS}

[servers:vars]
board=server
devices={json.dumps(addresses)}
board_environment={json.dumps(environment)}

"""


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    cache = ("__pycache__", ".ruff_cache", ".mypy_cache")
    member.mtime = 0
    return None if Path(member.name).name in cache else member


def _add_text(tar: tarfile.TarFile, path: str, text: str) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up")
    starting.add_argument("--boards", type=int, default=3)
    starting.add_argument("--cards", type=int, default=0, help="of a server beside them")
    starting.add_argument("--image", choices=list(PROFILES), default=IMAGE)
    starting.add_argument("--off", action="store_true", help="to be switched on one by one")
    commands.add_parser("down")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            up(arguments.boards, arguments.cards, arguments.image, arguments.off)
        else:
            down()
    except subprocess.CalledProcessError as error:
        sys.exit(f"fleet: {error.cmd[0]} failed, see above")


if __name__ == "__main__":
    main()
