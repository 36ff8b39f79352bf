"""What the container of a fleet's job sees of this machine."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Knows the scheduler's container, and says how a job's would be run.
DOCKER = """\
#!/bin/sh
[ "$1" = inspect ] && echo job-image && exit
printf '%s\\n' "$@"
"""


@pytest.fixture
def run(tmp_path):
    """Run images/job.sh of a checkout that has deployed a fleet, in a folder of its own."""
    for file, text in {
        "checkout/.deploy/shelf/client/tls.yaml": "scheduler-address: tls://192.168.2.1:8786\n",
        "bin/docker": DOCKER,
        "here/records.bin": "",
        "there/set/weights": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "bin/docker").chmod(0o755)
    (tmp_path / "checkout/images").mkdir()
    script = shutil.copy(ROOT / "images/job.sh", tmp_path / "checkout/images")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, "shelf.ini", "classify", *map(str, arguments)],
            cwd=tmp_path / "here",
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["records.bin"], []),
        (["--params={}/there/set"], ["there/set"]),
        (["--params", "../there/set"], ["there/set"]),
        (["--output", "{}/there/new"], ["there"]),
        (["--output={}/there/new/newer", "--params", "{}/there/set"], ["there", "there/set"]),
    ],
)
def test_a_job_sees_what_its_arguments_name(run, tmp_path, arguments, seen):
    arguments = [argument.format(tmp_path) for argument in arguments]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    volumes = [after for word, after in zip(words, words[1:]) if word == "--volume"]
    always = ["checkout", "here", ".cache/distributed-pynq"]
    assert volumes == [f"{tmp_path / path}:{tmp_path / path}" for path in always + seen]
    assert words[words.index("job-image") :] == [
        *("job-image", "distributed-pynq", "classify", *arguments),
        *("--scheduler", "tls://192.168.2.1:8786"),
    ]


def test_results_that_nobody_would_see_are_refused(run):
    done = run("--output", "/not-there/new")
    assert done.returncode == 2
    assert done.stderr.startswith("/not-there/new: not there")
