"""An inventory that cannot work is refused by a line that names host and field."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rig import ROOT, playbook

FILTER = "collections/ansible_collections/distributed_pynq/boards/plugins/filter"
SPEC = importlib.util.spec_from_file_location(
    "inventory_faults", ROOT / "ansible" / FILTER / "inventory_faults.py"
)
assert SPEC and SPEC.loader
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)

KNOWN = yaml.safe_load((ROOT / "ansible/group_vars/all/profiles.yml").read_text())
PROFILES = KNOWN["profiles"]


def board(**changes):
    """A board's variables; None takes one out."""
    variables = {
        "address": "192.168.2.11",
        "image": 3.0,
        "board": "Pynq-Z1",
        **changes,
    }
    return {key: value for key, value in variables.items() if value is not None}


def faults(boards, schedulers=None, subnet="192.168.2.0/24"):
    schedulers = {"host": {"address": "192.168.2.1"}} if schedulers is None else schedulers
    types = KNOWN["board_types"]
    return MODULE.inventory_faults(boards, schedulers, PROFILES, types, subnet)


def test_a_good_inventory_has_no_faults():
    boards = {
        "z1-01": board(),
        "z1-02": board(address="192.168.2.12", devices=["0", "1"]),
        "server": board(
            **dict.fromkeys(("ansible_host", "address"), "192.168.2.91"),
            image="server",
            board="server",
            devices=["0000:01:00.0", "xrt1", 2, "xilinx_u50"],
        ),
    }
    assert faults(boards) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"address": None}, "z1-02: address: missing"),
        ({"image": None}, "z1-02: image: missing"),
        ({"board": None}, "z1-02: board: missing"),
        ({"address": "192.168.2.11"}, "z1-02: address: 192.168.2.11 is taken by z1-01"),
        ({"address": "192.168.2.1"}, "z1-02: address: 192.168.2.1 is taken by host"),
        (
            {"address": "192.168.3.12"},
            "z1-02: address: 192.168.3.12 is outside the subnet",
        ),
        (
            {"address": "192.168.2.255"},
            "z1-02: address: 192.168.2.255 is no host's address",
        ),
        (
            {"address": "192.168.2.300"},
            "z1-02: address: '192.168.2.300' is no IPv4 address",
        ),
        ({"image": 2.2}, "z1-02: image: 2.2 is unknown, expected 2.5 or 2.6 or 2.7 or 3.0"),
        ({"board": "Pynq-Z9"}, "z1-02: board: Pynq-Z9 is unknown, expected Pynq-Z1"),
        ({"devices": "0"}, "z1-02: devices: '0' is no list"),
        ({"devices": ["0", 0]}, "z1-02: devices: ['0', 0] names one twice"),
        ({"devices": ["a b"]}, "z1-02: devices: 'a b' is no index, PCIe address or name"),
        ({"board": "server"}, "z1-02: image: 3.0 does not go with board=server"),
        ({"image": "server"}, "z1-02: image: server does not go with board=Pynq-Z1"),
        (
            {"board": "server", "image": "server", "ansible_host": "192.168.2.13"},
            "z1-02: address: a server keeps the one it has",
        ),
        ({"hwaddress": "00:0a:35"}, "z1-02: hwaddress: '00:0a:35' is no MAC address"),
        ({"factory_hwaddress": 7}, "z1-02: factory_hwaddress: 7 is no MAC address"),
        ({"gateway": "192.168.2.12"}, "z1-02: address: 192.168.2.12 is the gateway's"),
    ],
)
def test_a_fault_names_host_and_field(changes, expected):
    second = board(**dict.fromkeys(("ansible_host", "address"), "192.168.2.12") | changes)
    [fault] = faults({"z1-01": board(), "z1-02": second})
    assert fault.startswith(expected)


def test_two_boards_cannot_have_one_mac_address():
    mac = {"hwaddress": "00:0A:35:00:00:01"}
    other = {"hwaddress": "00:0a:35:00:00:01", "address": "192.168.2.12"}
    [fault] = faults({"z1-01": board(**mac), "z1-02": board(**other)})
    assert fault == "z1-02: hwaddress: 00:0a:35:00:00:01 is taken by z1-01"


def test_a_board_needs_a_name_that_is_a_hostname():
    [fault] = faults({"z1_01": board()})
    assert fault.startswith("z1_01: name: expected a hostname")


@pytest.mark.parametrize(
    ("schedulers", "subnet", "expected"),
    [
        ({}, "192.168.2.0/24", "scheduler: the group has 0 hosts, expected one"),
        ({"host": {}}, "192.168.2.0/24", "host: address: missing"),
        (
            {"host": {"address": "10.0.0.1"}},
            "192.168.2.0/24",
            "host: address: 10.0.0.1 is outside",
        ),
        (None, "192.168.2.0/33", "all: subnet: '33' is not a valid netmask"),
        (None, "missing", "all: subnet: Expected 4 octets in 'missing'"),
    ],
)
def test_scheduler_and_subnet_are_checked_too(schedulers, subnet, expected):
    [fault] = faults({"z1-01": board()}, schedulers, subnet)
    assert fault.startswith(expected)


def test_the_playbook_stops_before_it_touches_anything(tmp_path):
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(
        "[boards]\n"
        "z1-01 ansible_host=192.168.2.99 address=192.168.2.11 image=2.2 board=Pynq-Z1\n"
        "z1-02 ansible_host=192.168.2.99 address=192.168.2.11 image=3.0\n"
        "[scheduler]\nhost ansible_connection=local address=192.168.2.1\n"
        "[all:vars]\nsubnet=192.168.2.0/24\n"
    )
    run = playbook("site.yml", inventory=inventory)
    assert run.code != 0
    assert "z1-01: image: 2.2 is unknown" in run.output
    assert "z1-02: board: missing" in run.output
    assert "z1-02: address: 192.168.2.11 is taken by z1-01" in run.output
    assert list(run.recap) == ["localhost"]


def test_the_example_is_good_with_the_server_that_it_shows(tmp_path):
    example = (ROOT / "inventory.example.ini").read_text()
    assert "\n# u50 " in example
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(example.replace("\n# u50 ", "\nu50 "))
    ansible = Path(sys.executable).with_name("ansible")
    role = ["localhost", "-i", inventory, "-m", "include_role", "-a", "name=inventory"]
    run = subprocess.run([ansible, *role], cwd=ROOT / "ansible", capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "inventory_faults: []" in run.stdout
