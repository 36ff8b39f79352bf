"""Releases for a Pynq-Z1, built and run on a machine like it: armv7l, which qemu emulates.

A whole deployment would take hours there. What depends on the machine is what is proved: what the
control machine collects for it, what the first board builds, and what the second runs.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rig

from distributed_pynq import datasets, networks

IMAGE = "distributed-pynq/armhf:bookworm"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON, GLIBC = "3.11", "2.36"
# What the scripts of a release call, what the board's own modules import, what compiles.
PACKAGES = "dash,coreutils,findutils,sed,tar,python3,python3-numpy,python3-pil"
PACKAGES += ",gcc,libc6-dev,libpython3-dev"
LIBRARIES = "/usr/lib/arm-linux-gnueabihf"
HANDLER = Path("/proc/sys/fs/binfmt_misc/qemu-arm")
RELEASES = "/opt/releases"
FILES = rig.ANSIBLE / "roles/requirements/files"
NETWORK, PARAMS, RECORDS = networks.NETWORKS["lfcW1A1"], "digits", 50

pytestmark = pytest.mark.skipif(
    "FLEET_ARMHF" not in os.environ, reason="too long for every run: make test-armhf"
)


@pytest.fixture(scope="module")
def image(docker: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An image for armv7l with what a PYNQ image has, as far as a release needs it."""
    if not HANDLER.exists():
        pytest.skip(f"no {HANDLER}: programs for arm run after apt-get install qemu-user-static")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0:
        return
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is missing: apt-get install mmdebstrap")
    archive = tmp_path_factory.mktemp("armhf") / "debian.tar"
    # Packages are unpacked only: what configures them, emulated, would take longer than the proof.
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=armhf"]
    subprocess.run([*command, f"--include={PACKAGES}", SUITE, archive, MIRROR], check=True)
    # So nothing has chosen who provides BLAS.
    path = f"ENV LD_LIBRARY_PATH={LIBRARIES}/blas:{LIBRARIES}/lapack"
    # By name for the engine's own platform, as which every version of it finds the image again.
    subprocess.run(["docker", "import", "--change", path, archive, IMAGE], check=True)


@contextlib.contextmanager
def board(*options: str) -> Iterator[str]:
    """A container that has no network, and the folders for releases and of the board's modules."""
    command = ["docker", "run", "--detach", "--init", "--network", "none", *options]
    command += ["--volume", f"{rig.ROOT}/app/standin:/standin:ro"]
    container = subprocess.check_output([*command, IMAGE, "sleep", "infinity"], text=True).strip()
    try:
        execute(container, "mkdir", "--parents", RELEASES)
        # A board has systemd, which says here what it says of a board without workers: nothing.
        execute(container, "ln", "-s", "/bin/true", "/usr/bin/systemctl")
        yield container
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)


def execute(container: str, *command: str, given: bytes = b"", **environment: str) -> bytes:
    """What a command in a container prints."""
    settings = [f"--env={name}={value}" for name, value in environment.items()]
    command = ("docker", "exec", "-i", *settings, container, *command)
    return subprocess.run(command, check=True, input=given, stdout=subprocess.PIPE).stdout


def install(container: str, release: dict[str, Any]) -> str:
    """Unpack a release and install it, as the role requirements does; returns its folder there."""
    archive = Path(release["path"]).read_bytes()
    subprocess.run(["docker", "cp", "-", f"{container}:{RELEASES}"], check=True, input=archive)
    folder = f"{RELEASES}/{release['name']}"
    execute(container, f"{folder}/install", "beside", "/etc/environment", "python3", "/var/lib", "")
    return folder


def test_what_the_first_board_builds_the_second_runs(image: None, tmp_path: Path) -> None:
    def collect() -> dict[str, Any]:
        return rig.release(
            tmp_path / "releases",
            rig.REQUIREMENTS / "board-3.10-2026.8.0.lock",
            tools=str(rig.REQUIREMENTS / "tools-3.10.lock"),
            python=PYTHON,
            machine="armv7l",
            glibc=GLIBC,
            files={name: str(FILES / name) for name in ("install", "build")},
            parameters=[str(networks.BUILT_IN)],
        )

    first = collect()
    assert first.get("sources"), first
    with board() as container:
        folder = install(container, first)
        Path(first["built"]).parent.mkdir(parents=True)
        copied = ["docker", "cp", f"{container}:{folder}/built.tar", first["built"]]
        subprocess.run(copied, check=True)
    second = collect()
    assert (second["name"], second["sources"]) == (first["name"], False)

    # Without the programs that it starts gcc compiles nothing.
    with board("--tmpfs", "/usr/lib/gcc") as container:
        with pytest.raises(subprocess.CalledProcessError):
            execute(container, "gcc", "-x", "c", "-c", "/dev/null", "-o", "/dev/null")
        folder = install(container, second)
        python = f"{folder}/venv/bin/python"
        # The first two would do without, at a loss of speed.
        extensions = "import msgpack._cmsgpack, tornado.speedups, psutil, platform"
        machine = execute(container, python, "-c", f"{extensions}; print(platform.machine())")
        assert machine == b"armv7l\n"

        digits = datasets.load("digits", NETWORK)
        answer = execute(
            container,
            *(python, "-c", Path(rig.__file__).with_name("one_board.py").read_text()),
            *(NETWORK.name, PARAMS, str(RECORDS)),
            given=bytes(NETWORK.encode(digits.records(0, RECORDS))),
            BOARD="Pynq-Z1",
            PYTHONPATH="/standin",
            DISTRIBUTED_PYNQ_DRIVER_PYTHON="/usr/bin/python3",
            DISTRIBUTED_PYNQ_PARAMS=f"{folder}/params",
            DASK_CONFIG=f"{folder}/venv/lib/python{PYTHON}/site-packages/distributed_pynq/dask.yaml",
            # TLS is Python's own, no wheel's, and the programs talk inside the container.
            DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION="false",
        )
    expected = rig.expected(digits, NETWORK, PARAMS)[:RECORDS]
    assert np.frombuffer(answer, "<i2").tolist() == expected.tolist()
