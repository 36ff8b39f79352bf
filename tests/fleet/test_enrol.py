"""Cards that all come up at one address become boards of their own, switched on one by one.

The tests are a story: each goes on where the one before ended.
"""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import rig

pytestmark = rig.long

NAMES = ["z1-01", "z1-02", "z1-03"]
STRANGER = "z1-04"
LIMIT_S = 300.0
# A busy machine shall not make a board go back before somebody could say that all is well.
PATIENT = ("--extra-vars", '{"identity_rollback_after": 300}')


@pytest.fixture(scope="module")
def fleet(docker):
    """Four cards that are off; the inventory knows three, and the MAC address of z1-02."""
    with rig.fresh_fleet(4, off=True) as fleet:
        inventory = rig.stand_ins.INVENTORY
        lines = [line for line in inventory.read_text().splitlines() if STRANGER not in line]
        noted = f"z1-02 factory_hwaddress={hwaddress(2)}"
        inventory.write_text("\n".join(lines).replace("z1-02", noted) + "\n")
        yield fleet
    shutil.rmtree(rig.ROOT / "boot-files", ignore_errors=True)


def hwaddress(number):
    """MAC address that Docker gives a board."""
    return f"02:42:c0:a8:02:{100 + number:02x}"


def switch(fleet, on, *names):
    """Plug boards in or out."""
    for name in names:
        command = ["start"] if on else ["kill"]
        rig.stand_ins.docker(*command, fleet.container(name))
    # What the host remembers of the card before ages within a minute, or now.
    subprocess.run(["ip", "neighbour", "flush", "to", "192.168.2.99"], check=True)


class Walk:
    """`make enrol` as it runs, and what it says."""

    def __init__(self, *arguments, prefix=()):
        self.process = subprocess.Popen(
            [
                *prefix,
                *(Path(sys.executable).with_name("ansible-playbook"), "enrol.yml"),
                *("-i", rig.stand_ins.INVENTORY, *PATIENT, *arguments),
            ],
            cwd=rig.ANSIBLE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines = queue.Queue()
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def hears(self, words):
        """Read on until a line has these words; fails where none comes."""
        deadline = time.monotonic() + LIMIT_S
        with contextlib.suppress(queue.Empty):
            while (line := self.lines.get(timeout=max(0, deadline - time.monotonic()))) is not None:
                self.output += line
                if words in line:
                    return
        pytest.fail(f"make enrol did not say {words!r}:\n{self.output[-6000:]}")

    def ends(self):
        """Exit code, once it has ended."""
        while (line := self.lines.get(timeout=LIMIT_S)) is not None:
            self.output += line
        return self.process.wait(LIMIT_S)

    def interrupt(self):
        """Ctrl-C, which reaches every process of the terminal."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.ends() != 0


@pytest.fixture
def walk():
    """A `make enrol` that ends with its test."""
    walks = []
    yield lambda *arguments, **options: walks.append(Walk(*arguments, **options)) or walks[-1]
    for each in walks:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)


def test_no_card_is_taken_for_several_boards(fleet):
    switch(fleet, True, "z1-01")
    rig.stand_ins.await_ssh("z1-01", "192.168.2.99")
    run = rig.playbook("status.yml")
    assert run.code != 0
    said = " ".join(run.output.split())
    assert re.search(r"the machine at 192\.168\.2\.99 cannot be z1-0\d", said)
    assert not (rig.DEPLOYMENT / "ssh/known_hosts").exists()


def test_a_host_outside_the_network_of_new_cards_is_told(fleet, walk):
    run = walk(prefix=["unshare", "--net"])
    assert run.ends() != 0
    assert "this machine has no address in the network of 192.168.2.99" in run.output


def test_a_card_becomes_the_board_that_was_asked_for(fleet, walk):
    run = walk()
    run.hears("power on z1-01, waiting for 192.168.2.99")
    run.hears("z1-01 is enrolled at 192.168.2.11")
    run.hears("power on z1-02")
    switch(fleet, True, "z1-03")
    run.hears(f"the card at 192.168.2.99 has the MAC address {hwaddress(3)}, not {hwaddress(2)}")
    assert fleet.host("z1-03").check_output("hostname") == "pynq"
    assert not fleet.host("z1-03").file("/home/xilinx/.ssh").exists
    switch(fleet, False, "z1-03")
    switch(fleet, True, "z1-02")
    # Its new host key exists, and nobody has noted it yet.
    run.hears("Record it beside the old one")
    run.interrupt()


def test_it_goes_on_where_it_was_interrupted(fleet, walk):
    run = walk()
    run.hears("z1-01 is enrolled at 192.168.2.11 already")
    run.hears("z1-02 is enrolled at 192.168.2.12")
    assert (rig.DEPLOYMENT / "ssh/known_hosts/z1-02").read_text().count("\n") == 1
    run.hears("power on z1-03")
    switch(fleet, True, "z1-03", STRANGER)
    assert run.ends() != 0
    said = " ".join(run.output.split())
    assert "too: switch one of them off" in said
    assert hwaddress(3) in said and hwaddress(4) in said
    for name in ("z1-03", STRANGER):
        assert fleet.host(name).check_output("hostname") == "pynq"


def test_the_last_board_is_enrolled(fleet, walk):
    switch(fleet, False, STRANGER)
    run = walk()
    assert run.ends() == 0, run.output[-6000:]
    for number, name in enumerate(NAMES, 1):
        board = fleet.host(name)
        assert board.check_output("hostname") == name
        assert board.interface("eth0").addresses == [fleet.address(name)]
        assert f"z1-{number:02} is enrolled at {fleet.address(name)}" in run.output
    boards = [fleet.host(name) for name in NAMES]
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        assert len({board.file(path).content for board in boards}) == len(boards)


def test_a_board_that_is_off_holds_up_nobody(fleet, walk):
    switch(fleet, False, "z1-02")
    run = walk()
    assert run.ends() == 0, run.output[-6000:]
    assert "z1-02 was met before and does not answer now: left out" in run.output
    assert "all boards are through, but z1-02, met before" in " ".join(run.output.split())
    assert "power on" not in run.output
    switch(fleet, True, "z1-02")
    rig.stand_ins.await_ssh("z1-02", fleet.address("z1-02"))


def test_who_waits_too_long_says_so(fleet, walk):
    (rig.DEPLOYMENT / "ssh/known_hosts/z1-03").rename(rig.DEPLOYMENT / "z1-03")
    run = walk("--extra-vars", "enrol_limit=1")
    assert run.ends() != 0
    assert "z1-03 did not come up at 192.168.2.99 within 1 s" in run.output
    (rig.DEPLOYMENT / "z1-03").rename(rig.DEPLOYMENT / "ssh/known_hosts/z1-03")


def test_a_boot_file_makes_a_card_its_board(fleet):
    inventory = rig.stand_ins.INVENTORY
    text = inventory.read_text()
    inventory.write_text(
        text.replace("[boards]\n", f"[boards]\n{STRANGER} image=3.0 address=192.168.2.14\n")
    )
    run = rig.playbook("boot-files.yml", "--limit", f"localhost,{STRANGER}")
    assert run.code == 0, run.output[-6000:]
    boot_file = rig.ROOT / "boot-files" / STRANGER / "boot.py"
    assert boot_file.stat().st_mode & 0o077 == 0
    secret = (rig.DEPLOYMENT / "ssh/host_keys" / STRANGER).read_text().splitlines()[2]
    assert secret in boot_file.read_text()
    rig.stand_ins.docker("cp", str(boot_file), f"{fleet.container(STRANGER)}:/boot/boot.py")
    switch(fleet, True, STRANGER)
    rig.stand_ins.await_ssh(STRANGER, fleet.address(STRANGER))
    board = fleet.host(STRANGER)
    assert board.check_output("hostname") == STRANGER
    assert board.interface("eth0").addresses == [fleet.address(STRANGER)]
    rig.wait_until(lambda: not board.file("/boot/boot.py").exists, 60, "boot.py is gone")
    key = board.file("/etc/ssh/ssh_host_ed25519_key.pub").content_string.split()[1]
    assert key in (rig.DEPLOYMENT / "ssh/known_hosts" / STRANGER).read_text()
    other = fleet.host("z1-01").file("/etc/machine-id").content
    assert board.file("/etc/machine-id").content != other


def test_a_boot_file_that_is_put_back_changes_nothing(fleet):
    board = fleet.host(STRANGER)
    boot_file = rig.ROOT / "boot-files" / STRANGER / "boot.py"
    watched = "/boot /etc /home/xilinx/.ssh /var/lib/distributed-pynq"
    listing = f"find {watched} -type f -printf '%p %T@ %m %u\n'"
    before = board.check_output(listing)
    rig.stand_ins.docker("cp", str(boot_file), f"{fleet.container(STRANGER)}:/boot/boot.py")
    board.check_output("/usr/local/bin/bootpy.sh")
    assert board.check_output(listing) == before


def test_a_boot_file_for_a_board_that_was_met_is_refused(fleet):
    run = rig.playbook("boot-files.yml", "--limit", "localhost,z1-01")
    assert run.code != 0
    assert "z1-01 was met before and has a host key of its own" in " ".join(run.output.split())
    assert not (rig.ROOT / "boot-files/z1-01").exists()


def test_boards_of_their_own_are_deployed_as_they_are(fleet):
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]
    assert sorted(rig.workers()) == [*NAMES, STRANGER]
    changed = " ".join(run.changed)
    assert "identity" not in changed and "contact" not in changed
