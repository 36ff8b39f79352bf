"""A boot.py makes a card its board once, whatever happens to power and board then and later."""

import json
import os
import pwd
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ansible/roles/identity/files/boot.py"
OURS = "ssh-ed25519 OURS distributed-pynq"
FACTORY = "auto eth0\niface eth0 inet dhcp\n"


class PowerCut(BaseException):
    """Nothing more of the script runs."""


class Card:
    """A card in a folder, with a boot.py on it; what a boot does to it is counted."""

    def __init__(self, root):
        self.root = root
        self.boot_file = root / "boot/boot.py"
        for path, text in {
            "etc/ssh/ssh_host_ed25519_key": "factory\n",
            "etc/hostname": "pynq\n",
            "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tpynq\n",
            "etc/machine-id": "0\n",
            "etc/network/interfaces.d/eth0": FACTORY,
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        settings = {
            "name": "z1-01",
            "user": "xilinx",
            "public_key": OURS,
            "host_key": "private\n",
            "host_key_public": "ssh-ed25519 PUBLIC z1-01\n",
            "note": str(root / "var/lib/distributed-pynq/identity"),
            "interface": "eth0",
            "interface_settings": "auto eth0\niface eth0 inet static\naddress 192.168.2.11/24\n",
        }
        text = SCRIPT.read_text().replace("SETTINGS = {}", f"SETTINGS = {json.dumps(settings)}")
        self.boot_file.parent.mkdir()
        self.boot_file.write_text(text.replace('"/etc/', f'"{root}/etc/'))
        self.done = []
        self.last = float("inf")

    def does(self, what):
        """One step of a boot, which may be the last before a power cut."""
        if len(self.done) == self.last:
            raise PowerCut
        self.done.append(what)

    def power_on(self, last=float("inf")):
        """Boot as bootpy does, until so many steps are done; returns whether all were."""
        self.done, self.last = [], last
        try:
            if self.boot_file.exists():
                runpy.run_path(str(self.boot_file), run_name="__main__")
        except PowerCut:
            return False
        return True

    def content(self):
        """Every file but boot.py, by its place."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".py")
        return {str(path.relative_to(self.root)): path.read_text() for path in files}


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Counts what changes files or runs programs, of which only ssh-keygen does something."""
    card = Card(tmp_path)

    def program(arguments):
        card.does(" ".join(arguments))
        if arguments == ["ssh-keygen", "-A"]:
            (tmp_path / "etc/ssh/ssh_host_ecdsa_key").write_text("made\n")
        return 0

    def counted(function):
        def wrapper(*arguments):
            card.does(f"{function.__name__} {' '.join(map(str, arguments))}".strip())
            return function(*arguments)

        return wrapper

    for name in ("call", "check_call"):
        monkeypatch.setattr(subprocess, name, program)
    for name in ("chown", "remove", "replace", "sync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    me = SimpleNamespace(pw_dir=str(tmp_path / "home"), pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(pwd, "getpwnam", lambda user: me)
    return card


def insist_on_a_board(content):
    """The card is the board that it was to be."""
    assert content["etc/ssh/ssh_host_ed25519_key"] == "private\n"
    assert content["etc/ssh/ssh_host_ed25519_key.pub"] == "ssh-ed25519 PUBLIC z1-01\n"
    assert content["etc/ssh/ssh_host_ecdsa_key"] == "made\n"
    assert content["etc/hostname"] == "z1-01\n"
    assert content["etc/hosts"] == "127.0.0.1\tlocalhost\n127.0.1.1\tz1-01\n"
    assert "address 192.168.2.11/24" in content["etc/network/interfaces.d/eth0"]
    assert content["home/.ssh/authorized_keys"] == OURS + "\n"
    assert content["etc/machine-id"] != "0\n"


def test_it_goes_once_all_is_safe_on_the_card(card):
    assert card.power_on()
    insist_on_a_board(card.content())
    assert not card.boot_file.exists()
    assert card.done[-3:] == ["sync", f"remove {card.boot_file}", "sync"]


def test_a_power_cut_has_it_applied_again(tmp_path, card):
    factory = tmp_path.with_name("factory")
    shutil.copytree(tmp_path, factory)
    steps = 0
    while not card.power_on(last=steps):
        assert card.boot_file.exists() or card.done[-1] == f"remove {card.boot_file}"
        assert card.power_on()
        assert not card.done or any("chown" in step for step in card.done)
        insist_on_a_board(card.content())
        shutil.rmtree(tmp_path)
        shutil.copytree(factory, tmp_path)
        steps += 1
    assert steps > 10


def test_what_the_inventory_says_later_stays(card):
    card.power_on()
    settings = card.root / "etc/network/interfaces.d/eth0"
    settings.write_text(settings.read_text().replace("2.11", "2.21"))
    (card.root / "etc/hostname").write_text("z1-21\n")
    before = card.content()
    card.power_on()
    assert card.content() == before


def test_a_board_that_was_cleared_keeps_its_keys_and_lets_us_in_no_more(card):
    card.power_on()
    shutil.rmtree(card.root / "var/lib/distributed-pynq")
    (card.root / "home/.ssh/authorized_keys").write_text("")
    before = card.content()
    card.power_on()
    assert card.content() == before
    assert before["etc/ssh/ssh_host_ed25519_key"] == "private\n"
