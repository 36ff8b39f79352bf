"""The life of a fleet, while a job of 100,000 records runs on it: upgraded, renewed, made smaller.

The tests are a story: each goes on where the one before ended.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rig
import yaml

from noise import NETWORK, classes_of, noisy_digits

pytestmark = rig.long

BOARDS = 3
RECORDS = 100_000
# Images per second of a board, so few that the job outlasts all that happens to it: 37 minutes.
RATE = 15
PACE = f'"DISTRIBUTED_PYNQ_STANDIN_RATE": "{RATE}", '

# Prints the names of the workers that take records, whenever they change, until nobody listens.
WATCH = """
import json, select, sys, distributed
with distributed.Client("tls://192.168.2.1:8786") as client:
    said = None
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        workers = client.sync(client.scheduler.identity)["workers"].values()
        at_work = (w for w in workers if w["status"] == "running" and "FPGA" in w["resources"])
        here = sorted(w["name"] for w in at_work)
        if here != said:
            print(json.dumps(here), flush=True)
            said = here
"""


def running_versions():
    """The version that the running worker of each board says it is."""
    asked = rig.with_client(
        "from distributed_pynq import worker\n"
        "said = client.run(worker.describe).values()\n"
        "print(json.dumps({board['host']: board['distributed_pynq'] for board in said}))\n"
    )
    return json.loads(asked.stdout)


@contextlib.contextmanager
def watched() -> Iterator[list[list[str]]]:
    """The workers that took records, each time that they changed; filled at the end."""
    seen: list[list[str]] = []
    pipe = subprocess.PIPE
    command = ["docker", "exec", "-i", rig.SCHEDULER, "python3", "-c", WATCH]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as watch:
        seen.append(json.loads(watch.stdout.readline()))
        yield seen
        seen += map(json.loads, watch.communicate()[0].splitlines())
    assert watch.returncode == 0


def upgrade(package: Path, *arguments: str) -> rig.Run:
    return rig.playbook(
        "upgrade.yml", "--extra-vars", f"requirements_package={package}", *arguments
    )


@pytest.fixture(scope="module")
def deployed(factory_fresh):
    """Three boards, slow ones."""
    inventory = rig.stand_ins.INVENTORY
    environment = "board_environment={"
    inventory.write_text(inventory.read_text().replace(environment, environment + PACE))
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]
    return factory_fresh


@pytest.fixture
def fleet(deployed):
    return deployed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "noisy-images-idx3-ubyte"
    return noisy_digits(path, RECORDS)


@pytest.fixture(scope="module")
def job(deployed, dataset, output, tmp_path_factory):
    """A job under way; its chunks are small, for boards this slow."""
    options = ["--network", NETWORK.name, "--params", "digits", "--chunk", 20]
    folder = output / tmp_path_factory.getbasetemp().name / "life"
    job = rig.Job(folder, dataset.name, *options)
    job.await_answers(np.any)
    assert not job.ended, job.wait()
    return job


@pytest.fixture(scope="module")
def upgraded(deployed, job, tmp_path_factory):
    """What the upgrade to a good release did, who was there meanwhile, and that release."""
    package = rig.another_release(tmp_path_factory.mktemp("package"), rig.NEXT)
    with watched() as seen:
        run = upgrade(package)
    assert run.code == 0, run.output[-8000:]
    return run, seen, package


def test_boards_are_upgraded_while_a_job_runs(fleet, upgraded, job):
    assert running_versions() == dict.fromkeys(fleet.names, rig.NEXT)
    assert not job.ended


def test_no_more_than_one_board_is_out_at_a_time(fleet, upgraded):
    _, seen, _ = upgraded
    gone = [set(fleet.names) - set(here) for here in seen]
    assert max(map(len, gone)) == 1
    # One after the other, each once.
    assert [name for names in gone for name in names] == fleet.names


def test_a_second_upgrade_changes_nothing(fleet, upgraded):
    run = upgrade(upgraded[2])
    assert run.code == 0, run.output[-8000:]
    assert run.changed == []


@pytest.mark.parametrize(
    ("what", "file", "old", "new", "said"),
    [
        (
            "wrong",
            "driver/classify.py",
            "np.asarray(result)",
            "(0 * np.asarray(result))",
            "of 100 digits right",
        ),
        (
            "dead",
            "driver/__main__.py",
            "\nimport ",
            '\nraise ImportError("no such overlay")\nimport ',
            "worker z1-01 has not registered",
        ),
    ],
)
def test_a_broken_release_is_rolled_back(fleet, upgraded, tmp_path, what, file, old, new, said):
    package = rig.another_release(tmp_path, f"{rig.NEXT}+{what}", file, old, new)
    with watched() as seen:
        run = upgrade(package, "--extra-vars", "smoke_test_limit=60")
    assert run.code != 0
    outcome = " ".join(run.output.rsplit("TASK [Name it, and end the upgrade]", 1)[1].split())
    assert said in outcome
    assert "z1-01 is back on" in outcome and "and works" in outcome
    assert {name for here in seen for name in set(fleet.names) - set(here)} == {"z1-01"}
    assert running_versions() == dict.fromkeys(fleet.names, rig.NEXT)


def test_another_version_of_dask_is_refused(fleet, upgraded):
    profiles = yaml.safe_load((rig.ANSIBLE / "group_vars/all/profiles.yml").read_text())["profiles"]
    for profile in profiles.values():
        profile["distributed"] = "2099.1.0"
    run = upgrade(upgraded[2], "--extra-vars", json.dumps({"profiles": profiles}))
    assert run.code != 0
    assert "its boards cannot follow one by one" in " ".join(run.output.split())


def certificates(fleet):
    """What tells the certificates of the boards and of the scheduler."""
    there = [fleet.host(name).file("/etc/distributed-pynq/tls/cert.pem") for name in fleet.names]
    scheduler = ["docker", "exec", rig.SCHEDULER, "cat", "/etc/distributed-pynq/cert.pem"]
    return [*(file.content for file in there), subprocess.check_output(scheduler)]


def test_all_certificates_are_renewed_while_the_job_runs(fleet, upgraded, job):
    before = certificates(fleet)
    renew = json.dumps({"certificates_renew_days": 3660, "requirements_package": str(upgraded[2])})
    run = rig.playbook("site.yml", "--extra-vars", renew)
    assert run.code == 0, run.output[-8000:]
    assert not set(before) & set(certificates(fleet))
    assert not job.ended


def test_an_authority_that_ends_soon_is_named_and_nothing_is_touched(fleet, upgraded):
    run = rig.playbook("site.yml", "--extra-vars", "control_authority_days=7400")
    assert run.code != 0
    assert "the certificate authority ends on 20" in " ".join(run.output.split())
    assert run.recap.keys() == {"localhost"}


def remove(name: str, *confirmed: str) -> rig.Run:
    return rig.playbook("remove_board.yml", "--extra-vars", f"remove={name} {' '.join(confirmed)}")


def test_removing_wants_a_board_and_to_be_asked_twice(fleet, upgraded):
    assert "is none of z1-01, z1-02, z1-03" in " ".join(
        remove("z1-04", "confirm=yes").output.split()
    )
    assert remove("z1-03").code != 0
    assert sorted(rig.workers()) == fleet.names


def test_a_board_is_removed_while_the_job_runs(fleet, upgraded, job):
    run = remove("z1-03", "confirm=yes")
    assert run.code == 0, run.output[-8000:]
    assert "z1-03 is clear and forgotten" in " ".join(run.output.split())
    assert sorted(rig.workers()) == ["z1-01", "z1-02"]
    assert not fleet.host("z1-03").file("/opt/distributed-pynq").exists
    for kept in ("ssh/known_hosts", "certificates"):
        assert not (rig.DEPLOYMENT / kept / "z1-03").exists()
        assert (rig.DEPLOYMENT / kept / "z1-02").exists()
    assert not job.ended


def test_the_job_lost_nothing(fleet, upgraded, job, dataset):
    # It has seen enough: let it end soon, with the speed of software.
    for name in ("z1-01", "z1-02"):
        fleet.host(name).check_output(
            "sed -i /STANDIN_RATE/d /etc/distributed-pynq/board.env"
            " && systemctl restart distributed-pynq-worker@0"
        )
    code, printed = job.wait()
    assert code == 0, printed
    summary = job.summary
    assert (summary["lost"], summary["duplicates"], summary["failed"]) == (0, 0, [])
    table = pq.read_table(job.folder / "predictions.parquet")
    assert np.array_equal(table["index"].to_numpy(), np.arange(RECORDS))
    assert np.array_equal(table["class"].to_numpy(), classes_of(dataset))
    print({key: summary[key] for key in ("wall_s", "retries", "faults")})


def test_a_board_that_is_dead_is_removed_too(fleet, upgraded):
    board = fleet.container("z1-02")
    subprocess.run(["docker", "stop", "--time", "1", board], check=True, capture_output=True)
    run = remove("z1-02", "confirm=yes")
    assert run.code == 0, run.output[-8000:]
    said = " ".join(run.output.split())
    assert "could not be cleared (Find the board: no SSH server answers" in said
    assert not (rig.DEPLOYMENT / "certificates/z1-02").exists()


BACKUP = rig.ANSIBLE / "backup.py"


def test_another_control_machine_takes_over(fleet, upgraded, tmp_path):
    # What is left of the fleet, by the inventory that the user has corrected.
    inventory = rig.stand_ins.INVENTORY
    rows = inventory.read_text().replace(PACE, "").splitlines(keepends=True)
    inventory.write_text("".join(row for row in rows if not row.startswith(("z1-02", "z1-03"))))
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]

    subprocess.run([sys.executable, BACKUP, "save", inventory], cwd=tmp_path, check=True)
    [archive] = tmp_path.glob("backup-*.tar.gz")
    assert archive.stat().st_mode & 0o777 == 0o600

    clone = tmp_path / "clone"
    shutil.copytree(
        rig.ROOT, clone, ignore=shutil.ignore_patterns(".*", "results", "inventory.*.ini")
    )
    restore = [sys.executable, clone / "ansible/backup.py", "restore", archive]
    (clone / inventory.name).write_text("[boards]\n")
    refused = subprocess.run(restore, capture_output=True, text=True)
    assert refused.returncode != 0 and f"{inventory.name} is here already" in refused.stderr
    assert not (clone / ".deploy").exists()
    (clone / inventory.name).unlink()
    subprocess.run(restore, check=True)
    shutil.rmtree(rig.DEPLOYMENT)

    there = {"inventory": clone / inventory.name, "ansible": clone / "ansible"}
    run = rig.playbook("site.yml", **there)
    assert run.code == 0, run.output[-8000:]
    assert (run.recap["z1-01"]["changed"], run.recap["host"]["changed"]) == (0, 0)
    key = clone / ".deploy" / inventory.stem / "certificates/z1-01/key.pem"
    journal = fleet.host("z1-01").check_output("journalctl --no-pager")
    assert "NOT_LOGGING_PARAMETER" in journal and key.read_text().split("\n")[1] not in journal
    run = rig.playbook("status.yml", **there)
    assert run.code == 0, run.output[-4000:]
