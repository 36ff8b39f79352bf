"""Boards that cannot be deployed are named, and stop nobody else.

The one that can is given what few boards need: another MAC address, and a time server.
"""

import re
import subprocess

import pytest
import rig

BOARDS = 5
MAC = "02:00:c0:a8:02:0b"
TAKEN, UNREACHABLE = "192.168.2.50", "192.168.2.60"


@pytest.fixture(scope="module")
def run(factory_fresh):
    """One deployment: z1-01 is well, each other board has a trouble of its own."""
    inventory = rig.stand_ins.INVENTORY
    text = inventory.read_text()
    # z1-02 shall take an address that another machine has.
    text = text.replace("address=192.168.2.12\n", f"address={TAKEN}\n")
    # z1-05 shall take one at which it cannot be reached from here.
    text = text.replace("address=192.168.2.15\n", f"address={UNREACHABLE}\n")
    text = text.replace("address=192.168.2.11\n", f"address=192.168.2.11 hwaddress={MAC}\n")
    inventory.write_text(text + "ntp_server=192.168.2.1\n")
    stranger = rig.stand_ins.docker(
        *(
            "run",
            "--detach",
            "--label",
            rig.stand_ins.LABEL,
            "--network",
            rig.stand_ins.NETWORK,
        ),
        *("--ip", TAKEN, "--entrypoint", "sleep"),
        *(rig.stand_ins.tag(rig.stand_ins.IMAGE), "infinity"),
    )
    # z1-03 has another password, z1-04 is off.
    factory_fresh.host("z1-03").check_output("echo xilinx:other | chpasswd")
    subprocess.run(
        ["docker", "stop", "--time", "1", factory_fresh.container("z1-04")],
        check=True,
        capture_output=True,
    )
    rule = ["OUTPUT", "--destination", UNREACHABLE, "--jump", "DROP"]
    subprocess.run(["iptables", "--insert", *rule], check=True)
    try:
        yield rig.playbook("site.yml")
    finally:
        subprocess.run(["iptables", "--delete", *rule], check=True)
        subprocess.run(["docker", "rm", "--force", stranger], check=True, capture_output=True)


@pytest.fixture
def fleet(factory_fresh):
    return factory_fresh


def said(run, name):
    """What the last task says of a board, in one line."""
    outcome = run.output.rsplit("TASK [Name a board that failed]", 1)[1]
    words = outcome.split(f"fatal: [{name}]: FAILED!", 1)[1].split()
    return re.split(r"fatal: \[|PLAY RECAP", " ".join(words))[0]


def test_the_run_fails_for_the_boards_that_failed(run, fleet):
    assert run.code != 0
    failed = {name: run.recap[name]["failed"] for name in fleet.names}
    assert failed == {"z1-01": 0, "z1-02": 1, "z1-03": 1, "z1-04": 1, "z1-05": 1}


def test_the_others_are_deployed(run, fleet):
    assert list(rig.workers()) == ["z1-01"]
    assert fleet.host("z1-01").service("distributed-pynq-worker@0").is_running


def test_a_board_keeps_its_address_where_the_new_one_is_taken(run, fleet):
    assert f"address: {TAKEN} is taken by another machine" in said(run, "z1-02")
    assert "192.168.2.102" in fleet.host("z1-02").interface("eth0").addresses


def test_a_wrong_password_is_named(run):
    assert "the password for xilinx at 192.168.2.103 is wrong" in said(run, "z1-03")


def test_a_board_that_is_off_is_named(run):
    assert "no SSH server answers at 192.168.2.104" in said(run, "z1-04")


def test_a_board_that_cannot_be_reached_any_more_goes_back(run, fleet):
    assert f"could not be reached at {UNREACHABLE} and is back at 192.168.2.105" in said(
        run, "z1-05"
    )
    assert "192.168.2.105" in fleet.host("z1-05").interface("eth0").addresses
    assert UNREACHABLE not in fleet.host("z1-05").interface("eth0").addresses


def test_a_board_takes_the_mac_address_it_is_given(run, fleet):
    assert fleet.host("z1-01").check_output("cat /sys/class/net/eth0/address") == MAC


def test_a_board_takes_its_time_from_the_server_it_is_given(run, fleet):
    settings = fleet.host("z1-01").file("/etc/systemd/timesyncd.conf.d/distributed-pynq.conf")
    assert "NTP=192.168.2.1\n" in settings.content_string


def test_a_board_with_another_host_key_is_refused(run, fleet):
    fleet.host("z1-01").check_output(
        "rm /etc/ssh/ssh_host_ed25519_key* && ssh-keygen -A && systemctl reload ssh"
    )
    status = rig.playbook("status.yml")
    assert status.code != 0
    outcome = " ".join(status.output.split())
    assert "192.168.2.11 answers, but not with the host key recorded for z1-01" in outcome
