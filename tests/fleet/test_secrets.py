"""What a deployment shows of a board's private key: nothing, however much it is asked to say."""

import json
import secrets
import sys

import rig


def test_the_key_of_a_worker_is_not_shown(tmp_path):
    key = f"-----BEGIN PRIVATE KEY-----\n{secrets.token_hex(32)}\n-----END PRIVATE KEY-----"
    for path in ("ca/cert.pem", "certificates/z1-01/cert.pem", "certificates/z1-01/key.pem"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(key if path.endswith("key.pem") else "certificate")
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(
        "[boards]\nz1-01 address=192.168.2.11 image=3.0 board=Pynq-Z1\n"
        "[scheduler]\nhost address=192.168.2.1\n[all:vars]\nsubnet=192.168.2.0/24\n"
    )
    # This machine is the board, and check mode keeps it as it is.
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "deployment": str(tmp_path),
        "board_settings": str(tmp_path / "etc"),
        "worker_found": {"units": [], "systemd": 252, "python": "3.10"},
    }
    run = rig.playbook(
        *("site.yml", "--check", "--diff", "-vvv", "--limit", "z1-01"),
        *("--start-at-task", "Write the settings of the workers"),
        *("--extra-vars", json.dumps(variables)),
        inventory=inventory,
    )
    assert run.code == 0, run.output
    assert f"+++ after: {tmp_path}/etc/tls/key.pem (mode 0600)" in run.output
    assert "+certificate" in run.output
    assert key.split("\n")[1] not in run.output
