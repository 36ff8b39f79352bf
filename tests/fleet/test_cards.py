"""What is said and forgotten of boards, where a script answers in place of their SSH servers."""

import json
import os
import sys

import pytest
import rig

NAMES = ["z1-01", "z1-02"]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Folder with a file per address that answers: its line of ssh-keyscan."""
    folder = tmp_path / "answers"
    folder.mkdir()
    keyscan = tmp_path / "bin" / "ssh-keyscan"
    keyscan.parent.mkdir()
    # The address is its last argument.
    keyscan.write_text(f'#!/bin/sh\nfor address; do :; done\ncat "{folder}/$address"\n')
    keyscan.chmod(0o755)
    monkeypatch.setenv("PATH", f"{keyscan.parent}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def run(tmp_path, answers):
    """Run a playbook on two boards that were met; what it keeps of them is in a folder."""
    inventory = tmp_path / "inventory.ini"
    rows = "".join(f"{name} address=192.168.2.1{n}\n" for n, name in enumerate(NAMES, 1))
    inventory.write_text(
        f"[boards]\n{rows}[boards:vars]\nboard=Pynq-Z1\nimage=3.0\n"
        "[scheduler]\nhost ansible_connection=local address=192.168.2.1\n"
        "[all:vars]\nsubnet=192.168.2.0/24\n"
    )
    (tmp_path / "ssh/known_hosts").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "ssh/known_hosts" / name).write_text(f"{name} ssh-ed25519 {name} own\n")
    # Whoever logs in after all, as Ansible does with --start-at-task, stays on this machine.
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    here |= {"deployment": str(tmp_path), "repository": str(tmp_path)}

    def run(playbook, *options, **extra):
        variables = json.dumps({**here, **extra})
        return rig.playbook(playbook, "--extra-vars", variables, *options, inventory=inventory)

    return run


def test_a_board_that_is_off_is_named_at_the_end(run, answers):
    (answers / "192.168.2.11").write_text("192.168.2.11 ssh-ed25519 z1-01\n")
    enrolled = run("enrol.yml", "--start-at-task", "Leave a server as it is")
    assert enrolled.code == 0, enrolled.output
    said = " ".join(enrolled.output.split())
    assert "z1-01 is enrolled at 192.168.2.11 already" in said
    assert "all boards are through, but z1-02, met before and off now" in said


def test_nothing_secret_is_kept_of_a_board_that_is_removed(run, tmp_path):
    kept = ["ssh/known_hosts/{}", "ssh/host_keys/{}", "ssh/host_keys/{}.pub"]
    kept += ["certificates/{}/key.pem", "boot-files/{}/boot.py"]
    for name in NAMES:
        for path in kept:
            there = tmp_path / path.format(name)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(f"{name} ssh-ed25519 {name} own\n")
    removed = run("remove_board.yml", remove="z1-01", confirm="yes")
    assert removed.code == 0, removed.output
    assert list(tmp_path.rglob("*z1-01*")) == []
    assert all((tmp_path / path.format("z1-02")).exists() for path in kept)
