"""The notebooks, run from top to bottom, and what they show to those who only read them."""

import asyncio
import re

import pytest

import notebooks
from distributed_pynq import local, networks
from notebooks import outputs, result

PATHS = {path.stem: path for path in notebooks.FOLDER.glob("*.ipynb")}
EXPECTED = {
    "cifar10-on-a-cluster": {"images": 599, "classified": 599, "lost": 0, "duplicates": 0},
    "several-devices": {"devices": 4, "sums": 4096**2, "right": 4096**2, "failed": 0},
    "arrow-tables": {"rows": 400_000, "zero-copy": True, "equal": True, "workers": 2},
}
PRIVATE = r"/(?:tmp|home|root|work|Users|dev/shm)\b|\w+://|\b(?:\d+\.){3}\d+|localhost"


@pytest.fixture(autouse=True)
def nothing_outside_the_folder_of_the_test(tmp_path, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("DISTRIBUTED_PYNQ_DATA", raising=False)


def texts(notebook):
    """All that the outputs say in words."""
    for output in outputs(notebook):
        forms = output.get("data", {"text/plain": output.get("text")})
        yield from (text for form, text in forms.items() if form.startswith("text/"))


def figures(notebook):
    """How many pictures the outputs have."""
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_each_has_its_test():
    assert PATHS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_from_top_to_bottom(name, tmp_path):
    executed = notebooks.execute(PATHS[name], tmp_path)
    found = result(executed)
    assert EXPECTED[name].items() <= found.items()
    if name == "cifar10-on-a-cluster":
        assert found["accuracy"] > 0.97
    if name == "arrow-tables":
        assert found["total"] == found["shares"] == found["expected"]
    kept = notebooks.read(PATHS[name])
    assert result(kept) == found
    assert figures(kept) == figures(executed) > 0


@pytest.mark.parametrize("path", PATHS.values(), ids=lambda path: path.stem)
def test_outputs_are_of_one_run_and_of_no_machine_in_particular(path):
    notebook = notebooks.read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert [re.findall(PRIVATE, text) for text in texts(notebook) if re.search(PRIVATE, text)] == []


def test_one_line_points_it_at_a_fleet(tmp_path, monkeypatch):
    async def story():
        parameters = networks.parameter_root("digits", networks.get("cnvW2A2"))
        with local.Cluster(parameters) as cluster:
            for name in ("z1-01", "z1-02", "z1-03"):
                cluster.start_board(name)
            monkeypatch.setenv("DASK_CONFIG", str(cluster.folder))
            async with cluster.client() as client:
                return await asyncio.to_thread(
                    notebooks.execute,
                    PATHS["cifar10-on-a-cluster"],
                    tmp_path,
                    client.scheduler.address,
                )

    notebook = asyncio.run(story())
    assert result(notebook)["classified"] == 599
    printed = "".join(output.text for output in outputs(notebook) if "text" in output)
    assert "z1-01" in printed and "z1-03" in printed and "standin" not in printed
