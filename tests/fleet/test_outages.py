"""A job of 50,000 records on 4 boards while something breaks that takes a network or systemd of its
own: each is classified once, undisturbed. Other faults are in tests/cluster.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest
import rig

from noise import NETWORK, classes_of, noisy_digits

pytestmark = rig.long

BOARDS = 4
RECORDS = 50_000
RATE = 500
OVERLAY = ("--network", NETWORK.name, "--params", "digits")
UNIT = "distributed-pynq-worker@0"


@pytest.fixture(scope="module")
def deployment(factory_fresh):
    """What the deployment of paced boards did."""
    inventory = rig.stand_ins.INVENTORY
    rate = f'"DISTRIBUTED_PYNQ_STANDIN_RATE": {RATE}'
    text = inventory.read_text().replace("board_environment={", f"board_environment={{{rate}, ")
    inventory.write_text(text)
    return rig.playbook("site.yml")


@pytest.fixture
def fleet(factory_fresh, deployment):
    """The fleet with all its boards."""
    assert deployment.code == 0, deployment.output[-8000:]
    rig.wait_until(lambda: sorted(rig.workers()) == factory_fresh.names, 60, "all boards there")
    return factory_fresh


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return noisy_digits(tmp_path_factory.mktemp("records") / "noisy-images-idx3-ubyte", RECORDS)


@pytest.fixture(scope="module")
def expected(dataset):
    return classes_of(dataset)


@pytest.fixture
def survive(output, dataset, expected, tmp_path) -> Callable[[Callable[[], None]], rig.Job]:
    """Run a job, strike, and check that nothing is lost, doubled or changed.

    It has recovered once every record is safe that had been handed out by the blow. What is safe is
    known every 2 s, and records are handed out in order.
    """

    def survive(blow: Callable[[], None]) -> rig.Job:
        job = rig.Job(output / tmp_path.parent.name / tmp_path.name, dataset.name, *OVERLAY)
        job.await_answers(np.any)
        before = np.count_nonzero(job.answered())
        struck = time.monotonic()
        blow()
        job.await_answers(lambda answered: np.count_nonzero(answered) > before)
        handed_out = int(np.flatnonzero(job.answered())[-1])
        job.await_answers(lambda answered: answered[:handed_out].all())
        recovered = time.monotonic() - struck
        code, printed = job.wait()
        assert code == 0, printed
        summary = job.summary
        assert (summary["classified"], summary["lost"], summary["duplicates"]) == (RECORDS, 0, 0)
        assert (summary["resumed"], summary["failed"]) == (0, [])
        table = pq.read_table(job.folder / "predictions.parquet")
        assert np.array_equal(table["index"].to_numpy(), np.arange(RECORDS))
        assert np.array_equal(table["class"].to_numpy(), expected)
        title = blow.__name__.replace("_", " ")
        ideal = RECORDS / RATE / BOARDS
        print(
            f"\n{title}: recovered in {recovered:.1f} s; "
            f"wall {summary['wall_s']:.1f} s, ideal {ideal:.1f} s"
        )
        return job

    return survive


@contextlib.contextmanager
def cable_pulled(address: str) -> Iterator[None]:
    """Nothing gets from here to a board, nor back."""
    ways = [["OUTPUT", "--destination"], ["INPUT", "--source"]]
    rules = [[*way, address, "--jump", "DROP"] for way in ways]
    for rule in rules:
        subprocess.run(["iptables", "--insert", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "--delete", *rule], check=True)


def restarts(fleet: rig.Fleet, name: str) -> int:
    """How often systemd has started a board's worker again."""
    return int(fleet.host(name).check_output(f"systemctl show -P NRestarts {UNIT}"))


def test_a_worker_is_killed(fleet, survive):
    def kill_a_worker() -> None:
        fleet.host("z1-02").check_output(f"systemctl kill -s KILL {UNIT}")

    before = restarts(fleet, "z1-02")
    assert survive(kill_a_worker).summary["retries"] > 0
    assert restarts(fleet, "z1-02") == before + 1


def test_a_worker_takes_more_memory_than_it_may(fleet, survive):
    def let_a_worker_outgrow_its_memory() -> None:
        rig.with_client(
            f"worker = {rig.workers()['z1-03']!r}\n"
            "client.submit(operator.mul, b'x', 2 << 30, workers=[worker]).exception(5)\n"
        )

    before = restarts(fleet, "z1-03")
    survive(let_a_worker_outgrow_its_memory)
    assert restarts(fleet, "z1-03") == before + 1


def test_the_scheduler_is_restarted(fleet, survive):
    def restart_the_scheduler() -> None:
        subprocess.run(["docker", "restart", rig.SCHEDULER], check=True, capture_output=True)

    survive(restart_the_scheduler)


def test_a_board_loses_its_network_for_20_s(fleet, survive):
    with contextlib.ExitStack() as stack:
        back = threading.Timer(20, stack.close)

        def pull_a_cable_for_20_s() -> None:
            stack.enter_context(cable_pulled(fleet.address("z1-04")))
            back.start()

        survive(pull_a_cable_for_20_s)
        back.join()
    rig.wait_until(lambda: "z1-04" in rig.workers(), 60, "z1-04 back in the cluster")


def test_a_board_loses_its_network_for_good(fleet, survive):
    with contextlib.ExitStack() as stack:

        def pull_a_cable_for_good() -> None:
            stack.enter_context(cable_pulled(fleet.address("z1-01")))

        job = survive(pull_a_cable_for_good)
        assert "z1-01" not in rig.workers()
    assert [board["name"] for board in job.summary["boards"] if board["address"]] == fleet.names[1:]
