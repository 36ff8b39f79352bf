"""A server with four FPGA cards, two of one kind: a worker for each, three once one is pulled.

The tests are a story: each goes on where the one before ended.
"""

import json
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
import rig

from noise import NETWORK, classes_of, noisy_digits

BOARDS, CARDS = 0, 4
RATE = 1_000
OVERLAY = ("--network", NETWORK.name, "--params", "digits")
ADDRESSES = [rig.stand_ins.card_address(number) for number in range(1, CARDS + 1)]
# In each way that a card can be named.
DEVICES = [ADDRESSES[0], "1", "xrt2", "xilinx_u280"]
WORKERS = [f"server/{device}" for device in DEVICES]


@pytest.fixture(scope="module")
def deployment(factory_fresh):
    """What the first deployment did."""
    inventory = rig.stand_ins.INVENTORY
    text = inventory.read_text().replace(json.dumps(ADDRESSES), json.dumps(DEVICES))
    rate = f'"DISTRIBUTED_PYNQ_STANDIN_RATE": {RATE}'
    inventory.write_text(text.replace("board_environment={", f"board_environment={{{rate}, "))
    return rig.playbook("site.yml")


@pytest.fixture
def fleet(factory_fresh, deployment):
    assert deployment.code == 0, deployment.output[-8000:]
    return factory_fresh


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return noisy_digits(tmp_path_factory.mktemp("records") / "noisy-images-idx3-ubyte", 40_000)


@pytest.fixture(scope="module")
def expected(dataset):
    return classes_of(dataset)


def said(*words):
    """What a command of `distributed-pynq` prints that uses the fleet as a user does."""
    command = [rig.ROOT / "images/job.sh", rig.stand_ins.INVENTORY, *words]
    run = subprocess.run(command, cwd=rig.ROOT, check=True, capture_output=True, text=True)
    return run.stdout


def test_each_card_has_a_unit_and_a_worker(fleet):
    server = fleet.host("server")
    for device in DEVICES:
        unit = f"distributed-pynq-worker@{device}"
        assert server.service(unit).is_running and server.service(unit).is_enabled
        pid = server.check_output(f"systemctl show -P MainPID {unit}")
        environment = server.file(f"/proc/{pid}/environ").content_string.split("\0")
        assert {f"DEVICE={device}", "XILINX_XRT=/opt/xilinx/xrt"} <= set(environment)
        driver = server.check_output(f"pgrep --parent {pid}")
        command = server.file(f"/proc/{driver}/cmdline").content_string
        assert command.split("\0")[0] == rig.stand_ins.SERVER_PYTHON
        assert not any(line.startswith("PYNQ_JUPYTER_NOTEBOOKS") for line in environment)
    assert sorted(rig.workers()) == sorted(WORKERS)


def test_a_server_keeps_its_name_and_its_address(fleet):
    server = fleet.host("server")
    assert server.check_output("hostname") == "pynq"
    assert rig.stand_ins.SERVER_ADDRESS in server.interface("eth0").addresses


def test_a_second_deployment_changes_nothing(fleet):
    run = rig.playbook("site.yml")
    assert run.code == 0, run.output[-8000:]
    assert run.changed == []


def test_a_healthy_server_has_a_good_status(fleet):
    run = rig.playbook("status.yml")
    assert run.code == 0, run.output[-4000:]
    shown = " ".join(run.output.split())
    for device in DEVICES:
        assert f"worker {device} active" in shown


def test_a_device_that_is_not_there_is_named(fleet, tmp_path):
    changes = {
        "devices": [*DEVICES, "xrt9"],
        "requirements_package": str(rig.another_release(tmp_path, rig.NEXT)),
    }
    run = rig.playbook("site.yml", "--extra-vars", json.dumps(changes))
    assert run.code != 0
    outcome = " ".join(run.output.split())
    assert "Insist on the devices: devices: DEVICE=xrt9: no such device here, only" in outcome
    assert f" 0 {ADDRESSES[0]} xilinx_u50; 1 {ADDRESSES[1]} xilinx_u50; 2 {ADDRESSES[2]}" in outcome
    assert "worker server/xrt9 has not registered" in outcome
    # The others have the release, and may have records.
    assert sorted(rig.workers()) == sorted(WORKERS)
    asked = rig.with_client(
        "from distributed_pynq import worker\n"
        "said = client.run(worker.describe).values()\n"
        "print(json.dumps([[card['distributed_pynq'], card['proven']] for card in said]))\n"
    )
    assert json.loads(asked.stdout) == [[rig.NEXT, True]] * CARDS
    assert rig.playbook("site.yml").code == 0


def test_a_job_uses_all_four(fleet, output, dataset, expected, tmp_path):
    job = rig.Job(output / tmp_path.parent.name / "four", dataset.name, *OVERLAY)
    code, printed = job.wait()
    assert code == 0, printed
    boards = {board["device"]: board for board in job.summary["boards"]}
    assert sorted(boards) == ADDRESSES
    assert all(board["name"] == "server" and board["images"] for board in boards.values())
    for address in ADDRESSES:
        assert address in printed
    table = pq.read_table(job.folder / "predictions.parquet")
    np.testing.assert_array_equal(table["class"].to_numpy(), expected)
    assert set(table["device"].to_pylist()) == set(ADDRESSES)


def test_the_cards_are_listed_and_add_vectors(fleet):
    listed = said("devices")
    added = said("vadd", "--rows", "1001", "--columns", "777", "--quiet")
    for worker, address in zip(WORKERS, ADDRESSES):
        assert worker in listed
        assert address in listed and address in added
    assert "777,777 sums equal numpy's; 0 rows failed" in added


def test_a_pulled_card_is_named_and_three_go_on(fleet, output, dataset, expected, tmp_path):
    job = rig.Job(output / tmp_path.parent.name / "three", dataset.name, *OVERLAY)
    job.await_answers(np.any)
    pulled = f"{rig.stand_ins.PULLED}/{ADDRESSES[0]}"
    fleet.host("server").check_output(f"mkdir -p {rig.stand_ins.PULLED} && touch {pulled}")
    code, printed = job.wait()
    assert code == 0, printed
    assert f"{WORKERS[0]} failed: " in printed
    assert {fault["board"] for fault in job.summary["faults"]} == {WORKERS[0]}
    assert job.summary["lost"] == job.summary["duplicates"] == 0
    table = pq.read_table(job.folder / "predictions.parquet")
    np.testing.assert_array_equal(table["class"].to_numpy(), expected)
    last = set(table["device"].to_pylist()[-len(table) // 4 :])
    assert last == set(ADDRESSES[1:])


def test_status_names_the_pulled_card(fleet):
    run = rig.playbook("status.yml")
    assert run.code != 0
    outcome = " ".join(run.output.split())
    gone = f"DEVICE={ADDRESSES[0]}: no such device here, only 0 {ADDRESSES[1]} xilinx_u50"
    assert f"server: worker {WORKERS[0]} has no device: " in outcome and gone in outcome
    assert not any(f"worker {worker} has" in outcome for worker in WORKERS[1:])
    assert "no such device" in said("devices")


def test_a_card_that_is_back_works_again(fleet):
    fleet.host("server").check_output(f"rm {rig.stand_ins.PULLED}/{ADDRESSES[0]}")
    assert ADDRESSES[0] in said("vadd", "--rows", "1001", "--columns", "777", "--quiet")
    assert rig.playbook("status.yml").code == 0
