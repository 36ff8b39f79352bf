"""The essentials of test_deploy.py on boards with other PYNQ images.

FLEET_IMAGES names them, by default 3.0 alone: each takes minutes. `make test-images` takes those
that nothing else does. The tests are a story, once per image: each goes on where the one before
ended.
"""

import os
import subprocess

import distributed
import numpy as np
import pytest
import rig

import notebooks
from distributed_pynq import datasets, networks

BOARDS = 2

# Nothing in these depends on the image but what the others check; one image has them in every run.
again = pytest.mark.skipif(
    "FLEET_IMAGES" not in os.environ, reason="as in test_deploy.py: make test-images"
)


@pytest.fixture(scope="module", params=os.environ.get("FLEET_IMAGES", "3.0").split())
def image(request):
    """A PYNQ image."""
    return request.param


@pytest.fixture(scope="module")
def deployed(docker, image):
    """A fleet of boards with that image, and what deploying it did."""
    with rig.fresh_fleet(BOARDS, image=image) as fleet:
        yield fleet, rig.playbook("site.yml")


@pytest.fixture
def fleet(deployed):
    """The fleet after its deployment."""
    fleet, run = deployed
    assert run.code == 0, run.output[-8000:]
    return fleet


def test_worker_and_driver_run_in_the_image_s_interpreters(fleet, image):
    profile = rig.stand_ins.PROFILES[image]
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    venv = "/opt/distributed-pynq/current/venv/bin/python"
    for name in fleet.names:
        board = fleet.host(name)
        for python in ("python3", venv, profile["pynq_python"]):
            assert board.check_output(f'{python} -c "{version}"') == profile["python"]
        assert board.run("bash -lc 'python3 -c \"import pynq\"'").rc == 0
        main = board.check_output("systemctl show -P MainPID distributed-pynq-worker@0")
        driver = board.check_output(f"pgrep --parent {main}")
        command = board.file(f"/proc/{driver}/cmdline").content_string
        assert command.split("\0")[0] == profile["pynq_python"]
    dask = "import distributed; print(distributed.__version__)"
    found = board.check_output(f'{venv} -c "{dask}"')
    assert [int(n) for n in found.split(".")] == [int(n) for n in profile["distributed"].split(".")]


def test_the_scheduler_has_exactly_these_workers(fleet):
    assert fleet.complete


def test_the_fleet_classifies_our_digits(fleet, output, image, tmp_path):
    found = rig.classify(
        fleet, output / f"{tmp_path.parent.name}-{image}", "digits", "--network", "cnvW1A1"
    )
    network = networks.get("cnvW1A1")
    np.testing.assert_array_equal(
        found, rig.expected(datasets.load("digits", network), network, "digits")
    )


def test_a_notebook_runs_on_the_fleet(fleet, image, tmp_path, monkeypatch):
    dask = rig.stand_ins.PROFILES[image]["distributed"]
    if distributed.__version__ != dask:
        pytest.skip(f"image {image} runs distributed {dask}, here is {distributed.__version__}")
    monkeypatch.setenv("DASK_CONFIG", str(rig.DEPLOYMENT / "client"))
    notebook = notebooks.execute(
        notebooks.FOLDER / "cifar10-on-a-cluster.ipynb", tmp_path, rig.SCHEDULER_ADDRESS
    )
    found = notebooks.result(notebook)
    assert (found["images"], found["classified"], found["lost"]) == (599, 599, 0)
    printed = "".join(cell_output.get("text", "") for cell_output in notebooks.outputs(notebook))
    assert all(name in printed for name in fleet.names)


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
