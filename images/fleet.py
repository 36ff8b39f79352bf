"""Stand-in boards in containers: factory-fresh, on a network of their own, with an inventory.

usage: fleet.py up [--boards N] [--cards N] [--images 2.5,3.0] [--off] | down
"""

from __future__ import annotations

import argparse
import hashlib
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
import zipfile
from collections.abc import Callable, Sequence
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
SERVER_PYTHON = "/opt/pynq/bin/python"  # has pynq, in a virtual environment of its owner's
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
# As the real one, it runs neither here nor with image 2.7.
FINN_SETUP = """\
from pynqutils.setup_utils import build_py
from setuptools import find_packages, setup

setup(
    name="finn_examples",
    use_scm_version=True,
    packages=find_packages(),
    setup_requires=["pynq>=2.5.1", "setuptools_scm"],
    cmdclass={"build_py": build_py},
)
"""
BITFILES = "finn_examples/bitfiles/bitfiles.zip"


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    """Run a docker command; returns what it prints, raises CalledProcessError."""
    command = ["docker", *arguments]
    printed = subprocess.run(command, check=True, input=stdin, stdout=subprocess.PIPE).stdout
    return printed.decode().strip()


def up(boards: int, cards: int = 0, images: Sequence[str] = (IMAGE,), off: bool = False) -> None:
    """Start a fresh fleet and write its inventory, in place of the fleet there is.

    Boards take the PYNQ images in turn. With cards there is a server with so many beside them.
    Machines that are off are made, but not started, and get no lease: switched on with docker
    start, a board comes up at the address that every card has.

    Raises SystemExit where there is no Docker engine or a board does not boot.
    """
    down()
    given = images_of(boards, cards, images)
    kinds = list(dict.fromkeys(given.values()))
    for image in kinds:
        build_image(image)
    docker("network", "create", "--internal", "--subnet", SUBNET, "--gateway", HOST, NETWORK)
    machines = {name(n): (bootstrap_address(n), "Pynq-Z1") for n in range(1, boards + 1)}
    if cards:
        machines[SERVER] = SERVER_ADDRESS, "server"
    for machine, (address, kind) in machines.items():
        start(machine, address, kind, given[machine], off)
    if not off:
        for machine, (address, _) in machines.items():
            await_ssh(machine, address)
    STATE.mkdir(exist_ok=True)
    pack_bnn(STATE)
    pack_finn(STATE)
    INVENTORY.write_text(inventory(boards, cards, given, off))
    print(
        f"{', '.join(machines)}: {'off' if off else 'up'}, with image {' and '.join(kinds)}, "
        f"see {INVENTORY.name}"
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


def images_of(boards: int, cards: int, images: Sequence[str]) -> dict[str, str]:
    """Image of each machine, by its name; a server has none of PYNQ's."""
    given = {name(n): images[(n - 1) % len(images)] for n in range(1, boards + 1)}
    return given | ({SERVER: SERVER} if cards else {})


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
    """Build the container image of a PYNQ image's stand-in, or of a server, or find it built."""
    profile = PROFILES[image]
    pynq_python = SERVER_PYTHON if image == SERVER else profile["pynq_python"]
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
    owner = Path(pynq_python).parents[1]
    arguments = {
        "BASE": base,
        "UBUNTU": ubuntu,
        "PYTHON": python,
        "PYNQ_PYTHON": pynq_python,
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


def pack_bnn(folder: Path) -> None:
    """Pack the double of BNN-PYNQ as a source archive, with its parameter sets if they are here."""
    with tarfile.open(folder / "bnn-pynq.tar.gz", "w:gz") as tar:
        _add_text(tar, "bnn-pynq/setup.py", BNN_SETUP)
        _add_text(tar, "bnn-pynq/MANIFEST.in", "graft bnn\n")
        tar.add(ROOT / "app/standin/bnn", "bnn-pynq/bnn", filter=_source)
        _add_parameters(tar, "bnn-pynq/bnn/params", lambda path: True)


def pack_finn(folder: Path) -> None:
    """Pack the double of finn-examples as the real one is: its source, bitstreams apart from it.

    The source has a link to them in their place, and what the double computes with, where that is
    at hand.
    """
    standin = ROOT / "app" / "standin"
    archives = folder / "bitfiles"
    archives.mkdir(exist_ok=True)
    linked = {}
    for board in (standin / f"{BITFILES}.d").iterdir():
        archive = archives / f"{board.name}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for bitfile in board.iterdir():
                packed.write(bitfile, bitfile.name)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        linked[board.name] = {"url": f"https://example.org/{archive.name}", "md5sum": md5}
    with tarfile.open(folder / "finn-examples.tar.gz", "w:gz") as tar:
        _add_text(tar, "finn-examples/setup.py", FINN_SETUP)
        _add_text(tar, f"finn-examples/{BITFILES}.link", json.dumps(linked))
        for module in (standin / "finn_examples").glob("*.py"):
            tar.add(module, f"finn-examples/finn_examples/{module.name}", filter=_source)
        cifar10 = "finn-examples/finn_examples/params"
        _add_parameters(tar, cifar10, lambda path: path.parts[:1] == ("cifar10",))


def inventory(boards: int, cards: int, given: dict[str, str], off: bool) -> str:
    """The inventory of a fleet with the image of each machine, as inventory.example.ini has it."""
    rows = "\n".join(
        f"{name(n)} image={given[name(n)]} {current}address=192.168.2.{10 + n}"
        for n in range(1, boards + 1)
        for current in ["" if off else f"ansible_host={bootstrap_address(n)} "]
    )
    return f"""\
# Written by `make fleet`.
[boards]
{rows}

[boards:vars]
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
finn_source={STATE.name}/finn-examples.tar.gz
finn_bitfiles={STATE.name}/bitfiles
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
image={SERVER}
board=server
pynq_python={SERVER_PYTHON}
devices={json.dumps(addresses)}
board_environment={json.dumps(environment)}

"""


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    cache = ("__pycache__", ".ruff_cache", ".mypy_cache")
    member.mtime = 0
    return None if Path(member.name).name in cache else member


def _add_parameters(tar: tarfile.TarFile, folder: str, wanted: Callable[[Path], bool]) -> None:
    """Add those of BNN-PYNQ's parameter sets that are wanted, by their SET/NETWORK/FILE."""
    sets = Path(os.environ.get("DISTRIBUTED_PYNQ_DATA", ""), "bnn-pynq", "params.tar.gz")
    if "DISTRIBUTED_PYNQ_DATA" not in os.environ or not sets.is_file():
        return
    with tarfile.open(sets) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            if wanted(Path(member.name)):
                content = archive.extractfile(member)
                member.name = f"{folder}/{Path(member.name)}"
                tar.addfile(member, content)


def _add_text(tar: tarfile.TarFile, path: str, text: str) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def _images(words: str) -> list[str]:
    images = words.split(",")
    for image in set(images) - set(PROFILES):
        raise argparse.ArgumentTypeError(f"{image!r} is none of {', '.join(PROFILES)}")
    return images


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up")
    starting.add_argument("--boards", type=int, default=3)
    starting.add_argument("--cards", type=int, default=0, help="of a server beside them")
    starting.add_argument("--images", type=_images, default=IMAGE, help="as 2.5,3.0: in turn")
    starting.add_argument("--off", action="store_true", help="to be switched on one by one")
    commands.add_parser("down")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            up(arguments.boards, arguments.cards, arguments.images, arguments.off)
        else:
            down()
    except subprocess.CalledProcessError as error:
        sys.exit(f"fleet: {error.cmd[0]} failed, see above")


if __name__ == "__main__":
    main()
