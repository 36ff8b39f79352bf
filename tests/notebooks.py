"""Execute the notebooks; as a program, those named, to keep their outputs."""

import ast
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default

FOLDER = Path(__file__).resolve().parents[1] / "app" / "notebooks"
LIMIT_S = 300


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel of the interpreter that runs this, whatever kernels are installed."""

    @default("kernel_spec_manager")
    def _no_installed_ones(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook as it is in the repository."""
    return nbformat.read(path, as_version=4)


def execute(path: Path, folder: Path, scheduler: str | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`, on the fleet of a scheduler if given."""
    notebook = read(path)
    if scheduler:
        settings = next(cell for cell in notebook.cells if cell.id == "settings")
        line, *others = settings.source.splitlines()
        assert line.startswith("SCHEDULER = None")
        settings.source = "\n".join([f"SCHEDULER = {scheduler!r}", *others])
    NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(folder)}},
        timeout=LIMIT_S,
        record_timing=False,
    ).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    """What all cells have put out."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def result(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """What the notebook's last cell, its result, shows."""
    assert notebook.cells[-1].id == "result"
    [output] = notebook.cells[-1].outputs
    return dict(ast.literal_eval(output.data["text/plain"]))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            executed = execute(Path(name), Path(scratch))
        # What depends on the interpreter that happened to run it.
        executed.metadata.language_info = {"name": "python"}
        nbformat.write(executed, name)
