"""A fleet of stand-in boards in containers, and ansible-playbook in a process of its own."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import testinfra

from distributed_pynq import __version__, datasets, networks
from overlays import classes, parameters, plain

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT / "images"))
import fleet as stand_ins  # noqa: E402

ANSIBLE = ROOT / "ansible"
RELEASE = stand_ins.PLUGINS / "modules" / "release.py"
REQUIREMENTS = ROOT / "app" / "requirements"
DEPLOYMENT = stand_ins.DEPLOYMENT
SCHEDULER = "distributed-pynq-scheduler"
NEXT = f"{__version__}.post1"
PLAYBOOK_LIMIT_S = 1800
ANSWERS_LIMIT_S = 300


@dataclasses.dataclass
class Run:
    """What a playbook did: its exit code, all it printed, and the counts of its recap by host."""

    code: int
    output: str
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> list[str]:
        """The tasks that changed something, each as "TASK: HOST"."""
        tasks = re.split(r"^TASK \[(.+?)\] \**$", self.output, flags=re.MULTILINE)[1:]
        return [
            f"{task}: {host}"
            for task, printed in zip(tasks[::2], tasks[1::2])
            for host in re.findall(r"^changed: \[(\S+)", printed, re.MULTILINE)
        ]

    def invocations(self, address: str) -> int:
        """Programs started over SSH at an address, of a run with -vvv."""
        return self.output.count(f"<{address}> SSH: EXEC")


def playbook(
    name: str | Path,
    *arguments: str,
    inventory: str | Path = stand_ins.INVENTORY,
    ansible: Path = ANSIBLE,
) -> Run:
    """Run a playbook on an inventory; fails with what it said where it does not end."""
    here = Path(sys.executable)
    try:
        process = subprocess.run(
            [here.with_name("ansible-playbook"), "-i", inventory, name, *arguments],
            check=False,
            cwd=ansible,
            # Far from UTC, where a time that has lost its zone is hours off.
            env={**os.environ, "PATH": f"{here.parent}:{os.environ['PATH']}", "TZ": "IST-5:30"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_LIMIT_S,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.output or b"").decode()
        pytest.fail(f"{name}: not done within {PLAYBOOK_LIMIT_S} s\n{said[-8000:]}")
    recap = {
        host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in re.findall(r"^(\S+) +: (ok=.*)$", process.stdout, re.MULTILINE)
    }
    return Run(process.returncode, process.stdout, recap)


def release(folder: Path, lock: Path, **options: object) -> dict[str, Any]:
    """What the module `release` answers, run as Ansible runs it."""
    arguments = {"folder": str(folder), "package": str(ROOT / "app"), "lock": str(lock), **options}
    process = subprocess.run(
        [sys.executable, RELEASE],
        check=False,
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(process.stdout))


def another_release(
    folder: Path, version: str, file: str = "__init__.py", old: str = "", new: str = ""
) -> Path:
    """The package as another version, with a change in one of its files."""
    package = folder / version
    shutil.copytree(ROOT / "app", package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, before, after in (
        ("__init__.py", f'"{__version__}"', f'"{version}"'),
        (file, old, new),
    ):
        target = package / "distributed_pynq" / path
        text = target.read_text()
        assert before in text
        target.write_text(text.replace(before, after, 1))
    return package


class Fleet:
    """The fleet that is up."""

    def __init__(self, boards: int, cards: int, images: Sequence[str]) -> None:
        self.images = stand_ins.images_of(boards, cards, images)
        self.names = list(self.images)

    def profile(self, name: str) -> dict[str, Any]:
        """What is known of a board's image."""
        return dict(stand_ins.PROFILES[self.images[name]])

    def host(self, name: str) -> testinfra.host.Host:
        """A board, to look into past SSH."""
        return testinfra.get_host(f"docker://{self.container(name)}")

    def container(self, name: str) -> str:
        """Name of a board's container."""
        return f"{stand_ins.NETWORK}-{name}"

    def address(self, name: str) -> str:
        """Final address of a board that is no server."""
        return f"192.168.2.{10 + int(name[-2:])}"

    @property
    def complete(self) -> bool:
        """Whether the scheduler has these boards' workers, and no others."""
        return sorted(workers()) == self.names

    def journal(self, name: str) -> str:
        """Last lines of the workers of a board."""
        return self.host(name).run("journalctl -u 'distributed-pynq-worker@*' -n 30 -o cat").stdout


SCHEDULER_ADDRESS = f"tls://{stand_ins.HOST}:8786"


def with_client(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python code beside the scheduler, with a `client` of the cluster."""
    head = "import json, operator, distributed\n"
    head += f"client = distributed.Client({SCHEDULER_ADDRESS!r}, timeout=10)\n"
    command = ["docker", "exec", "-i", SCHEDULER, "python3", "-"]
    return subprocess.run(
        command, check=False, input=head + script, capture_output=True, text=True, timeout=120
    )


def workers() -> dict[str, str]:
    """Addresses of the workers that the scheduler has, by name."""
    process = with_client(
        "workers = client.sync(client.scheduler.identity)['workers']\n"
        "print(json.dumps({worker['name']: address for address, worker in workers.items()}))\n"
    )
    return dict(json.loads(process.stdout)) if process.returncode == 0 else {}


class Job:
    """`distributed-pynq classify` under way on the fleet, in the container that matches it."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        command = [ROOT / "images/job.sh", stand_ins.INVENTORY, "classify", "--quiet"]
        self._process = subprocess.Popen(
            [*command, *map(str, arguments), "--output", folder],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._marks: np.ndarray | None = None

    @property
    def ended(self) -> bool:
        """Whether it has, well or not."""
        return self._process.poll() is not None

    def answered(self) -> np.ndarray:
        """Which records are safe on disk, bool (records,); of length 0 before the first."""
        # Once open, the file is there even after the job has deleted it.
        if self._marks is None:
            with contextlib.suppress(OSError, ValueError):
                self._marks = np.load(self.folder / "boards.npy", mmap_mode="r")
        return np.zeros(0, bool) if self._marks is None else self._marks != 0

    def await_answers(self, enough: Callable[[np.ndarray], bool]) -> None:
        """Wait until those that are safe are enough, or the job has ended."""
        wait_until(
            lambda: self.ended or enough(self.answered()), ANSWERS_LIMIT_S, "enough safe answers"
        )

    def wait(self) -> tuple[int, str]:
        """Its exit code and all it printed."""
        printed, _ = self._process.communicate(timeout=300)
        return self._process.returncode, printed

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return dict(json.loads((self.folder / "summary.json").read_text()))


def classify(
    fleet: Fleet, output: Path, dataset: str, network: str, params: str, *arguments: object
) -> None:
    """Run a job in which every board takes part, and all classes are the plain path's."""
    job = Job(output, dataset, "--network", network, "--params", params, *arguments)
    code, printed = job.wait()
    assert code == 0, printed
    assert job.summary["lost"] == 0 and job.summary["classified"] == job.summary["images"]
    assert sorted(board["name"] for board in job.summary["boards"]) == fleet.names
    found = pq.read_table(job.folder / "predictions.parquet")["class"].to_numpy()
    chosen = networks.get(network)
    np.testing.assert_array_equal(found, expected(datasets.load(dataset, chosen), chosen, params))


def cifar10(shared: Path, number: int, file: Path) -> str:
    """The first pictures of CIFAR-10 in a file of their own; returns its name."""
    with (shared / "data/cifar10/test_jpeg.bin").open("rb") as whole:
        file.write_bytes(whole.read(number * 3073))
    return str(file)


def expected(dataset: datasets.Dataset, network: networks.Network, params: str) -> np.ndarray:
    """Classes by the plain path, in this process."""
    root = networks.parameter_root(params, network)
    overlay = plain.Overlay(parameters.read(str(root / params / network.name), network.name))
    records = np.ascontiguousarray(dataset.records(0, len(dataset)))
    number = len((root / params / network.name / "classes.txt").read_text().split())
    if network.kind == "cnv":
        return classes.cnv_many(overlay.scores(records), number)
    return classes.lfc_many(overlay.words(records), number)


def scheduler_exists() -> bool:
    """Whether there is a container of a scheduler, running or not."""
    command = ["docker", "inspect", SCHEDULER]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Fail unless a condition holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def tls_without_certificate(address: str, port: int) -> bytes:
    """What a server says to somebody who has no certificate; raises OSError where it refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((address, port), 10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        # With TLS 1.3 a client learns only now that the server wanted a certificate.
        return connection.recv(1)


long = pytest.mark.skipif(
    "FLEET_LONG" not in os.environ, reason="too long for every run: make test-long"
)


def require_docker() -> None:
    """Skip where no Docker engine answers."""
    try:
        subprocess.run(["docker", "info"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no Docker engine answers here: stand-in boards need one")


@contextlib.contextmanager
def fresh_fleet(
    boards: int, cards: int = 0, images: Sequence[str] = (stand_ins.IMAGE,), off: bool = False
) -> Iterator[Fleet]:
    """Factory-fresh boards with PYNQ images, on or off, and nothing that remembers others."""
    subprocess.run(["docker", "rm", "--force", SCHEDULER], check=False, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        # BNN-PYNQ comes with its parameter sets; its double does where they are at hand.
        shared = Path(os.environ.get("DISTRIBUTED_PYNQ_SHARED", ROOT.parent / "shared"))
        patch.setenv("DISTRIBUTED_PYNQ_DATA", str(shared / "data"))
        stand_ins.up(boards, cards, images, off)
    yield Fleet(boards, cards, images)
    subprocess.run(["docker", "rm", "--force", SCHEDULER], check=False, capture_output=True)
    stand_ins.down()
