"""--limit picks boards; what it leaves out is neither half done nor spoken of."""

import pytest
import rig
import yaml

INVENTORY = """\
[boards]
z1-01 ansible_host=127.0.0.11 address=127.0.0.11
z1-02 ansible_host=127.0.0.12 address=127.0.0.12
[boards:vars]
board=Pynq-Z1
image=3.0
[scheduler]
host ansible_connection=local address=127.0.0.1
[all:vars]
subnet=127.0.0.0/8
"""
PLAYBOOKS = {path.name: yaml.safe_load(path.read_text()) for path in rig.ANSIBLE.glob("*.yml")}
PARTS = {play.get("ansible.builtin.import_playbook") for b in PLAYBOOKS.values() for play in b}


@pytest.fixture
def status(tmp_path, monkeypatch):
    """Ask for the status of boards that are off, beside a scheduler that is."""
    (tmp_path / "inventory.ini").write_text(INVENTORY)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")

    def status(limit):
        run = rig.playbook("status.yml", "--limit", limit, inventory=tmp_path / "inventory.ini")
        return run.code, " ".join(run.output.split())

    return status


@pytest.mark.parametrize("name", sorted(PLAYBOOKS.keys() - PARTS))
def test_every_playbook_looks_at_the_limit_first(name):
    assert PLAYBOOKS[name][0].get("ansible.builtin.import_playbook") == "limit.yml"


@pytest.mark.parametrize(
    ("limit", "left_out"),
    [("z1-01", "localhost and host"), ("z1-01,localhost", "host"), ("all", "localhost")],
)
def test_a_limit_that_leaves_out_half_is_refused(status, limit, left_out):
    code, said = status(limit)
    assert code != 0
    assert f"--limit {limit} leaves out {left_out}; " in said
    assert "as in --limit BOARD,localhost,host" in said
    assert "Ask" not in said


def test_boards_are_made_ready_without_a_scheduler(tmp_path):
    (tmp_path / "inventory.ini").write_text(INVENTORY)
    run = rig.playbook("boot-files.yml", "--limit", "z1-01", inventory=tmp_path / "inventory.ini")
    assert run.code != 0
    assert "leaves out localhost; " in " ".join(run.output.split())


def test_a_board_that_is_left_out_has_no_part_in_the_status(status):
    code, said = status("z1-01,localhost,host")
    assert code != 0
    assert "could not be asked" in said and "z1-01: " in said
    assert "z1-02" not in said
