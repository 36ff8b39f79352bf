"""The essentials of test_deploy.py on boards with other PYNQ images.

FLEET_IMAGES names them, by default 3.0 alone: each takes minutes. `make test-images` takes those
that nothing else does, and boards of two images in one cluster. The tests are a story, once per
image: each goes on where the one before ended.
"""

import json
import os
import subprocess

import distributed
import pytest
import rig

import notebooks

BOARDS = 2

# Nothing in these depends on the image but what the others check; one image has them in every run.
again = pytest.mark.skipif(
    "FLEET_IMAGES" not in os.environ, reason="as in test_deploy.py: make test-images"
)


@pytest.fixture(scope="module", params=os.environ.get("FLEET_IMAGES", "3.0").split())
def images(request):
    """The PYNQ images that boards take in turn."""
    return request.param.split(",")


@pytest.fixture(scope="module")
def deployed(docker, images):
    """A fleet of boards with those images, and what deploying it did."""
    with rig.fresh_fleet(BOARDS, images=images) as fleet:
        yield fleet, rig.playbook("site.yml")


@pytest.fixture
def fleet(deployed):
    """The fleet after its deployment."""
    fleet, run = deployed
    assert run.code == 0, run.output[-8000:]
    return fleet


@pytest.fixture
def dask(images):
    """Version of distributed in the cluster: the newest that its oldest board can run."""
    return next(
        profile["distributed"]
        for image, profile in rig.stand_ins.PROFILES.items()
        if image in images
    )


def test_worker_and_driver_run_in_the_image_s_interpreters(fleet, dask):
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    venv = "/opt/distributed-pynq/current/venv/bin/python"
    for name in fleet.names:
        board, profile = fleet.host(name), fleet.profile(name)
        for python in ("python3", venv, profile["pynq_python"]):
            assert board.check_output(f'{python} -c "{version}"') == profile["python"]
        assert board.run("bash -lc 'python3 -c \"import pynq\"'").rc == 0
        main = board.check_output("systemctl show -P MainPID distributed-pynq-worker@0")
        driver = board.check_output(f"pgrep --parent {main}")
        command = board.file(f"/proc/{driver}/cmdline").content_string
        assert command.split("\0")[0] == profile["pynq_python"]
        show = "import distributed; print(distributed.__version__)"
        found = board.check_output(f'{venv} -c "{show}"')
        assert [int(n) for n in found.split(".")] == [int(n) for n in dask.split(".")]


def test_the_scheduler_has_exactly_these_workers(fleet):
    assert fleet.complete


def test_the_fleet_classifies_our_digits(fleet, output, images, tmp_path):
    folder = output / f"{tmp_path.parent.name}-{'-'.join(images)}"
    rig.classify(fleet, folder, "digits", "cnvW1A1", "digits")


def test_a_notebook_runs_on_the_fleet(fleet, dask, tmp_path, monkeypatch):
    if distributed.__version__ != dask:
        pytest.skip(f"the fleet runs distributed {dask}, here is {distributed.__version__}")
    monkeypatch.setenv("DASK_CONFIG", str(rig.DEPLOYMENT / "client"))
    notebook = notebooks.execute(
        notebooks.FOLDER / "cifar10-on-a-cluster.ipynb", tmp_path, rig.SCHEDULER_ADDRESS
    )
    found = notebooks.result(notebook)
    assert (found["images"], found["classified"], found["lost"]) == (599, 599, 0)
    printed = "".join(cell_output.get("text", "") for cell_output in notebooks.outputs(notebook))
    assert all(name in printed for name in fleet.names)


def test_boards_classify_cifar10_with_what_their_images_want(
    fleet, images, output, shared, tmp_path, monkeypatch
):
    finn = {name for name in fleet.names if fleet.profile(name)["runtime"] == "finn-examples"}
    if not finn:
        pytest.skip(f"images {', '.join(images)} want BNN-PYNQ, as test_deploy.py has it")
    inventory = rig.stand_ins.INVENTORY
    inventory.write_text(inventory.read_text().replace("runtime=bnn-pynq\n", ""))
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]

    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(shared / "data"))
    folder = output / f"{tmp_path.parent.name}-{'-'.join(images)}-cifar10"
    pictures = rig.cifar10(shared, 500, tmp_path / "first500.bin")
    rig.classify(fleet, folder, pictures, "cnvW1A1", "cifar10", "--chunk", 50)

    # Whose networks know CIFAR-10 only: those say so, and the others do what there is to do.
    job = rig.Job(folder.with_name(f"{folder.name}-digits"), "digits", "--network", "cnvW1A1")
    code, printed = job.wait()
    if finn == set(fleet.names):
        assert code == 2
    else:
        assert code == 0, printed
        assert {board["name"] for board in job.summary["boards"] if board["images"]} == (
            set(fleet.names) - finn
        )
        printed += json.dumps(job.summary["faults"])
    assert "only cifar10, which finn-examples has" in printed


@again
def test_a_second_deployment_changes_nothing(fleet):
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]
    assert run.changed == []


def test_workers_come_back_to_a_restarted_scheduler(fleet):
    subprocess.run(["docker", "restart", rig.SCHEDULER], check=True, capture_output=True)
    rig.wait_until(lambda: fleet.complete, 60, "all workers back at the scheduler")


@again
def test_a_fleet_that_was_reset_can_be_deployed_again(fleet):
    run = rig.playbook("reset.yml", "--extra-vars", "confirm=yes")
    assert run.code == 0, run.output[-4000:]
    assert not rig.scheduler_exists()
    for name in fleet.names:
        assert not fleet.host(name).file("/opt/distributed-pynq").exists
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]
    assert fleet.complete
