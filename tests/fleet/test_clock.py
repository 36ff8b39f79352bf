"""A board's clock is compared with the control machine's, and set from it."""

import sys
import time

import rig

# This machine is the board, as far as telling the time goes.
PROGRAMS = {
    "ssh-keyscan": "echo 127.0.0.1 ssh-ed25519 key",
    "systemctl": '[ "$1" != --version ] || echo systemd 252',
    "date": 'echo "$@" >> "$TOLD"',
    "fake-hwclock": "true",
}
PLAY = f"""\
- hosts: all
  connection: local
  gather_facts: false
  vars:
    ansible_become: false
    ansible_python_interpreter: {sys.executable}
    contact_current: 127.0.0.1
    contact_address: 127.0.0.1
    contact_known_hosts: /nowhere
    contact_public_key: /nowhere
    contact_python: "{sys.version_info[0]}.{sys.version_info[1]}"
    contact_board_type: ""
    contact_releases: /nowhere
    contact_state: /nowhere
    contact_hwaddresses: []
    contact_settings: /nowhere
    contact_scheduler: 127.0.0.1:1
  tasks:
    - ansible.builtin.import_role: {{name: contact, tasks_from: meet}}
    # It is right; then as if it were not.
    - ansible.builtin.import_role: {{name: clock}}
    - ansible.builtin.import_role: {{name: clock}}
      vars: {{clock_offset: 3600}}
"""


def test_a_clock_is_set_from_the_control_machine_where_it_is_wrong(tmp_path, monkeypatch):
    play, told = tmp_path / "play.yml", tmp_path / "told"
    play.write_text(PLAY)
    for name, script in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TOLD", str(told))

    before = int(time.time())
    run = rig.playbook(play, inventory="z1-01,")
    assert run.code == 0, run.output
    [line] = told.read_text().splitlines()
    assert line.startswith("-u -s @")
    assert before <= int(line.partition("@")[2]) <= time.time()
