"""What `make status` says of boards that are not well."""

import importlib.util
from pathlib import Path

import pytest

COLLECTION = (
    Path(__file__).resolve().parents[2]
    / "ansible/collections/ansible_collections/distributed_pynq/boards/plugins"
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FINDINGS = load(COLLECTION / "filter/findings.py").findings
GIB = 2**30


def unit(**changes):
    return {
        "ActiveState": "active",
        "NRestarts": "0",
        "active_s": 3600.0,
        "variables": ["BOARD", "XILINX_XRT"],
        "last": "",
        **changes,
    }


def board(number=1, offset=0.0, failure="", devices=("0",), **facts):
    """The variables of a board that is well, but for these facts."""
    return {
        "board_failure": failure,
        "ansible_host": f"192.168.2.{10 + number}",
        "image": "2.6",
        "board_type": {"sd_card": True},
        "devices": list(devices),
        "contact_offset": offset,
        "contact_board": {
            "machine": "armv7l",
            "machine_id": f"{number:032}",
            "host_key": f"ssh-ed25519 {number}",
            "hwaddress": f"00:0a:35:00:00:{number:02}",
            "rivals": [],
            "release": "0.1.0-aaaa",
            "units": {device: unit() for device in devices},
            "scheduler_failure": "",
            "certificate": {"start": 86400, "end": 2e9},
            "time": 1.8e9 + offset,
            "disk_free": 8 * GIB,
            "disk_size": 16 * GIB,
            "read_only": False,
            "tmpfs_free": GIB // 4,
            "tmpfs_size": GIB // 4,
            "memory": GIB // 2,
            "memory_available": GIB // 4,
            "kernel": {},
            **facts,
        },
    }


def test_boards_that_are_well_give_none():
    boards = {"z1-01": board(1), "z1-02": board(2, devices=("0", "1"))}
    assert FINDINGS(boards, {"z1-01": "", "z1-02/0": "", "z1-02/1": ""}, "") == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"failure": "no SSH server answers"}, "z1-02: no SSH server answers"),
        ({"hwaddress": "00:0a:35:00:00:01"}, "z1-02: has the MAC address of z1-01; give one"),
        ({"machine_id": f"{1:032}"}, "z1-02: has the machine-id of z1-01; its card is a copy"),
        ({"host_key": "ssh-ed25519 1"}, "z1-02: has the SSH host key of z1-01; its card is a copy"),
        ({"rivals": ["02:00:00:00:00:01"]}, "z1-02: another machine, 02:00:00:00:00:01, has its"),
        ({"offset": -1e6}, "z1-02: its clock is -1000000 s off; make deploy sets it"),
        ({"units": {}}, "z1-02: the unit of device 0 is missing; make deploy writes it"),
        (
            {"units": {"0": unit(ActiveState="activating", NRestarts="9", last="no overlay")}},
            "z1-02: the unit of device 0 is activating, restarted 9 times: no overlay; journalctl",
        ),
        (
            {"units": {"0": unit(NRestarts="3", active_s=20.0, last="gone")}},
            "z1-02: the unit of device 0 was restarted 3 times, 20 s ago at last: gone; journalctl",
        ),
        (
            {"units": {"0": unit(variables=["XILINX_XRT"])}},
            "z1-02: the worker of device 0 runs without BOARD; make deploy sets it",
        ),
        (
            {"scheduler_failure": "192.168.2.1:8786 (timed out)"},
            "z1-02: cannot reach the scheduler: 192.168.2.1:8786 (timed out); open the port",
        ),
        ({"release": "0.0.9-bbbb"}, "z1-02: runs release 0.0.9-bbbb, but z1-01 runs 0.1.0-aaaa"),
        (
            {"certificate": {"start": 86400, "end": 1.8e9 + 10 * 86400}},
            "z1-02: its certificate ends in 10 days; make deploy renews it",
        ),
        (
            {"certificate": {"start": 86400, "end": 1.8e9 - 3 * 86400}},
            "z1-02: its certificate ended 3 days ago; make deploy renews it",
        ),
        ({"read_only": True}, "z1-02: its card is mounted read-only"),
        ({"disk_free": 2**20}, "z1-02: its card is full: 1 MiB free"),
        ({"tmpfs_free": 0}, "z1-02: its /dev/shm is full"),
        ({"memory_available": 2**20}, "z1-02: its memory is full: 1 MiB available"),
        (
            {"kernel": {"power": "low"}},
            "z1-02: its power supply is too weak, says the kernel (low)",
        ),
        ({"kernel": {"card": "bad"}}, "z1-02: its SD card fails, says the kernel (bad)"),
    ],
)
def test_a_finding_names_the_board_and_what_to_do(changes, expected):
    boards = {"z1-01": board(1), "z1-02": board(2, **changes), "z1-03": board(3)}
    [finding] = FINDINGS(boards, {"z1-01": "", "z1-02": "", "z1-03": ""}, "")
    assert finding.startswith(expected)


def test_a_server_is_no_pynq_board():
    server = {
        **board(units={"0": unit(variables=["XILINX_XRT"])}),
        "board_type": {"sd_card": False},
    }
    assert FINDINGS({"u50": server}, {"u50": ""}, "") == []


def test_a_board_that_woke_in_1970_has_no_certificate_yet():
    boards = {"z1-01": board(1, offset=3600 - 1.8e9)}
    clock, certificate = FINDINGS(boards, {}, "")
    assert "its clock is" in clock
    assert certificate.startswith("z1-01: its certificate is not valid yet by its clock")


def test_what_the_scheduler_says_is_passed_on_unless_its_cause_is_known():
    workers = {"z1-01": "worker z1-01 has not registered", "z1-02": "runs distributed 1"}
    boards = {"z1-01": board(1, units={"0": unit(ActiveState="failed")}), "z1-02": board(2)}
    down, old = FINDINGS(boards, workers, "")
    assert down.startswith("z1-01: the unit of device 0 is failed;")
    assert old == "z1-02: runs distributed 1"


def test_a_scheduler_that_is_down_is_said_once():
    boards = {n: board(i, scheduler_failure="refused") for i, n in enumerate(["z1-01", "z1-02"])}
    assert FINDINGS(boards, {}, "it is down") == ["scheduler: it is down; make deploy starts it"]


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        ("[   12.345678] Under-voltage detected! (0x00050005)", "power"),
        ("[ 9.1] EXT4-fs error (device mmcblk0p2): ext4_find_entry:1455: inode #2", "card"),
        ("[ 9.2] EXT4-fs (mmcblk0p2): Remounting filesystem read-only", "card"),
        ("[ 9.3] blk_update_request: I/O error, dev mmcblk0, sector 12", "card"),
        ("[ 9.4] mmc0: error -110 whilst initialising SD card", "card"),
        ("[ 3.0] mmcblk0: mmc0:aaaa SC16G 14.8 GiB", None),
        ("[ 3.1] EXT4-fs (mmcblk0p2): re-mounted. Opts: errors=remount-ro", None),
        ("[ 3.1] EXT4-fs (mmcblk0p2): mounted filesystem with ordered data mode", None),
    ],
)
def test_the_kernel_s_log_tells_power_and_card(line, trouble):
    pytest.importorskip("ansible")
    troubles = load(COLLECTION / "modules/facts.py").troubles
    expected = {trouble: line.split("] ", 1)[1]} if trouble else {}
    assert troubles(f"{line}\n[ 10.0] usb 1-1: new device") == expected
