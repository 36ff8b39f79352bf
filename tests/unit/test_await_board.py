"""Which cards `make enrol` takes for a board, and what it says of others."""

import sys
from pathlib import Path

import pytest

FACTORY, FINAL, MAC = "192.168.2.99", "192.168.2.11", "00:0a:35:00:00:01"


@pytest.fixture
def plugin(monkeypatch):
    pytest.importorskip("ansible")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.syspath_prepend(root / "ansible/collections")
    from ansible_collections.distributed_pynq.boards.plugins.action import await_board

    yield await_board
    for name in [name for name in sys.modules if name.startswith("ansible_collections")]:
        del sys.modules[name]


@pytest.fixture
def state(plugin, tmp_path, monkeypatch, capsys):
    """Asks for z1-01, where keys answer at addresses, and keys of boards are recorded."""

    def state(answers, recorded, hwaddresses=()):
        for name, key in recorded.items():
            (tmp_path / name).write_text(f"{name} ssh-ed25519 {key}\n")
        monkeypatch.setattr(
            plugin.host_keys, "scan", lambda host, limit: {*answers.get(host, "").split()}
        )
        monkeypatch.setattr(plugin, "_hwaddress", lambda address: MAC)
        return plugin.ActionModule._await(
            None, "z1-01", FACTORY, FINAL, str(tmp_path / "z1-01"), [*hwaddresses], limit=5
        )

    return state


def test_a_new_card_is_the_board_that_nobody_met(state):
    assert state({FACTORY: "factory"}, {"z1-02": "two own"}) == "new"


@pytest.mark.parametrize("recorded", ["factory", "one own"])
def test_a_board_that_was_interrupted_goes_on(state, recorded):
    assert state({FACTORY: recorded.split()[0]}, {"z1-01": recorded}) == "new"


def test_a_board_is_known_at_its_own_address_whatever_else_is_up(state):
    assert state({FINAL: "one", FACTORY: "factory"}, {"z1-01": "one own"}) == "enrolled"


def test_another_card_is_not_taken_for_a_board_that_was_met(state, plugin, tmp_path):
    with pytest.raises(plugin.NoBoard) as refusal:
        state({FACTORY: "factory"}, {"z1-01": "one own"})
    assert f"rm {tmp_path / 'z1-01'}, then make enrol" in str(refusal.value)
    (tmp_path / "z1-01").unlink()
    assert state({FACTORY: "factory"}, {}) == "new"


@pytest.mark.parametrize(
    ("answers", "hwaddresses"),
    [({}, []), ({FACTORY: "two"}, []), ({FACTORY: "factory"}, ["00:0a:35:00:00:02"])],
    ids=["nobody", "another board", "another MAC address"],
)
def test_a_board_that_is_off_holds_up_nobody(state, answers, hwaddresses):
    recorded = {"z1-01": "one own", "z1-02": "two own"}
    assert state(answers, recorded, hwaddresses) == "away"
