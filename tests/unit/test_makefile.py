"""What make says before it starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("missing", ["ssh-keyscan", "sshpass", ""])
def test_what_a_control_machine_lacks_is_named(tmp_path, missing):
    for tool in {"ssh-keyscan", "sshpass"} - {missing}:
        (tmp_path / tool).touch(0o755)
    make = shutil.which("make")
    run = subprocess.run(
        [make, "--directory", ROOT, "tools", "INVENTORY=any.ini", "SHELL=/bin/sh"],
        env={**os.environ, "PATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == (2 if missing else 0), run.stderr
    assert (f"there is no {missing} on this machine" in run.stderr) == bool(missing)
