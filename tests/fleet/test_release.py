"""What a release carries of finn-examples, and how it takes another one's place on a board."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import rig

STANDIN = rig.ROOT / "app" / "standin"
INSTALL = rig.ANSIBLE / "roles/requirements/files/install"
UNITS = "distributed-pynq-worker@0.service distributed-pynq-worker@1.service"
# Says that these units are there, and notes what is asked of it.
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> "$0.asked"
[ "$1" != list-units ] || printf '%s loaded active running worker\\n' {}
"""


@pytest.fixture
def bitfiles(tmp_path: Path) -> Path:
    """Archives of the stand-ins' bitfiles, as the real ones lie at GitHub."""
    rig.stand_ins.pack_finn(tmp_path)
    return tmp_path / "bitfiles"


@pytest.fixture
def source(tmp_path: Path, bitfiles: Path) -> Path:
    """The source of finn-examples as the real one is: with a link in place of bitfiles."""
    return tmp_path / "finn-examples.tar.gz"


@pytest.fixture
def collect(tmp_path: Path):
    """Run the module as Ansible does, for one small wheel and a runtime."""
    lock = (rig.REQUIREMENTS / "test.lock").read_text()
    (tmp_path / "lock").write_text(re.search(r"^iniconfig==.*?\n(?=\w)", lock, re.M | re.S).group())

    def collect(**options: str) -> dict:
        return rig.release(
            tmp_path / "releases",
            tmp_path / "lock",
            python="3.10",
            machine="armv7l",
            glibc="2.35",
            files={"install": str(INSTALL)},
            runtime_lock=str(rig.REQUIREMENTS / "finn-examples.lock"),
            **options,
        )

    return collect


def test_finn_examples_is_installed_offline(tmp_path, source, bitfiles, collect):
    collected = collect(runtime=str(source), bitfiles=str(bitfiles))
    assert collected["changed"], collected
    assert not collect(runtime=str(source), bitfiles=str(bitfiles))["changed"]
    with tarfile.open(collected["path"]) as tar:
        tar.extractall(tmp_path / "board")
    release = tmp_path / "board" / collected["name"]
    # The worker's environment is there already; the interpreter that owns pynq is another one.
    (release / "venv").mkdir()
    (release / "venv" / "installed").touch()
    python = tmp_path / "pynq" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "pynq"], check=True)
    # What it imports and no image has is there before it is.
    bitstring = [python, "-c", "import bitstring"]
    assert subprocess.run(bitstring, capture_output=True).returncode
    (tmp_path / "board.env").write_text("BOARD=Pynq-Z1\n")
    arguments = [tmp_path / "board.env", python, tmp_path / "state", collected["runtime"]]
    subprocess.run([release / "install", "activate", *arguments], check=True)
    assert (tmp_path / "state" / "runtime").read_text().strip() == collected["runtime"]
    site = next((tmp_path / "pynq").glob("lib/python*/site-packages"))
    for platform in (STANDIN / f"{rig.stand_ins.BITFILES}.d").iterdir():
        for file in platform.iterdir():
            installed = site / f"{rig.stand_ins.BITFILES}.d" / platform.name / file.name
            assert installed.read_bytes() == file.read_bytes()
    assert not list(site.rglob("*.link"))
    subprocess.run(bitstring, check=True)


def test_bitfiles_are_checked_on_the_control_machine(source, bitfiles, collect):
    told = collect(runtime=str(source))["msg"]
    assert "no archives, expected some of Pynq-Z1.zip (https://example.org/Pynq-Z1.zip)" in told
    os.rename(bitfiles / "Ultra96.zip", bitfiles / "Ultra97.zip")
    told = collect(runtime=str(source), bitfiles=str(bitfiles))["msg"]
    assert told == f"{bitfiles / 'Ultra97.zip'}: expected one of Pynq-Z1, Ultra96"
    (bitfiles / "Ultra97.zip").rename(bitfiles / "Pynq-Z1.zip")
    told = collect(runtime=str(source), bitfiles=str(bitfiles))["msg"]
    assert f"{bitfiles / 'Pynq-Z1.zip'}: its MD5 sum is " in told


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a systemctl was asked for that has two workers, without what it was only asked about."""
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(SYSTEMCTL.format(UNITS))
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")

    def asked() -> list[str]:
        lines = systemctl.with_name("systemctl.asked").read_text().splitlines()
        return [line for line in lines if not line.startswith("list-units")]

    return asked


@pytest.mark.parametrize(
    ("step", "pynq_python", "done"),
    [
        ("activate", "true", True),
        ("activate", "false", False),
        # It cannot be installed, and the settings of before are not there.
        ("back", "false", False),
        ("back", "true", False),
    ],
)
def test_workers_run_again_whatever_happens(tmp_path, asked, step, pynq_python, done):
    releases = tmp_path / "releases"
    for name in ("before", "after"):
        (releases / name / "runtime").mkdir(parents=True)
        (releases / name / "runtime" / "runtime.whl").touch()
    shutil.copy(INSTALL, releases / "after")
    (releases / "after" / "before").write_text("before\n")
    (releases / "current").symlink_to("before" if step == "activate" else "after")
    (tmp_path / "board.env").touch()
    arguments = [tmp_path / "board.env", pynq_python, tmp_path / "state", "another"]
    run = subprocess.run([releases / "after" / "install", step, *arguments])
    assert (run.returncode == 0) is done
    runs = "before" if step == "activate" and not done else "after"
    assert os.readlink(releases / "current") == runs
    assert asked() == [f"stop {UNITS}", f"start --no-block {UNITS}"]
