"""The fleets that tests share: one with boards that are all well, one with faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the journal of the workers where a test of a fleet fails."""
    report = (yield).get_result()
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and fleet is not None:
        for name in fleet.names:
            report.sections.append((f"journal of {name}", fleet.journal(name)))


@pytest.fixture(scope="session")
def docker() -> None:
    """A Docker engine, without which there is no fleet."""
    rig.require_docker()


@pytest.fixture(scope="module")
def factory_fresh(docker: None, request: pytest.FixtureRequest) -> Iterator[rig.Fleet]:
    """Boards that nobody has touched; the module says which, as BOARDS, CARDS and IMAGE."""
    cards = getattr(request.module, "CARDS", 0)
    image = getattr(request.module, "IMAGE", rig.stand_ins.IMAGE)
    with rig.fresh_fleet(request.module.BOARDS, cards, [image]) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def output() -> Path:
    """Folder for the results of jobs, which their container can see."""
    folder = rig.ROOT / "results" / "tests-fleet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
