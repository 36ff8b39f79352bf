"""How several files are written in one call, and that secret ones are shown nowhere."""

import importlib.util
import json
from pathlib import Path

import pytest

MODULE = (
    Path(__file__).resolve().parents[2]
    / "ansible/collections/ansible_collections/distributed_pynq/boards/plugins/modules/files.py"
)
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nAgEGCCqGSM49AwEHBG0w\n-----END-----\n"


@pytest.fixture
def files(monkeypatch, capsys):
    """Run the module; returns what it answers, and appends what it logs to `files.logged`."""
    basic = pytest.importorskip("ansible.module_utils.basic")
    spec = importlib.util.spec_from_file_location("files", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def files(**arguments):
        given = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", given)
        with pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    files.logged = []
    monkeypatch.setattr(
        basic.AnsibleModule, "log", lambda self, msg, log_args=None: files.logged.append(msg)
    )
    return files


def test_a_secret_is_written_and_shown_nowhere(files, tmp_path):
    key, other = tmp_path / "tls/key.pem", tmp_path / "board.env"
    arguments = {
        "files": [{"path": str(other), "content": "BOARD=Pynq-Z1\n"}],
        "secrets": {str(key): KEY},
    }
    for _ in range(2):
        answer = files(**arguments)
        shown = json.dumps(answer) + "".join(files.logged)
        assert not any(line in shown for line in KEY.split())
    assert key.read_text() == KEY
    assert key.stat().st_mode & 0o777 == 0o600
    # The rest is there for who looks for it.
    assert "BOARD=Pynq-Z1" in "".join(files.logged) and len(files.logged) == 2


def test_what_changes_is_told(files, tmp_path):
    key, other = tmp_path / "key.pem", tmp_path / "board.env"
    other.write_text("BOARD=Pynq-Z2\n")
    wanted = {"path": str(other), "content": "BOARD=Pynq-Z1\n"}
    answer = files(files=[wanted], secrets={str(key): KEY})
    assert answer["paths"] == [str(other), str(key)]
    changes = [(diff["before"], diff["after"]) for diff in answer["diff"]]
    assert changes == [("BOARD=Pynq-Z2\n", "BOARD=Pynq-Z1\n"), ("", "(secret)\n")]
    assert not files(files=[wanted], secrets={str(key): KEY})["changed"]
    assert files(files=[{"path": str(other)}])["changed"] and not other.exists()
