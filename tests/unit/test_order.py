"""What a job keeps of its order, and what it says on the way."""

import asyncio
import io
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console

from distributed_pynq import devices, local, networks, progress, vadd
from distributed_pynq.errors import ClusterError, InputError
from distributed_pynq.order import Order

NO_WISHES = dict.fromkeys(["output", "dataset", "network", "params", "scores"])
ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder with a parameter set "mine", and a way out of it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    root = networks.parameter_root("digits", networks.get("cnvW1A1"))
    shutil.copytree(root / "digits", tmp_path / "work" / "mine")
    monkeypatch.chdir(tmp_path / "work")
    return lambda: monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("params", ["./mine", "mine", "mine/", "../work/mine"])
def test_own_parameter_set_is_found_from_anywhere(tmp_path, elsewhere, params):
    with Order.new(dataset="digits", params=params, output=tmp_path / "job")._under_way():
        pass
    wishes = {**NO_WISHES, "resume": tmp_path / "job"}
    again = Order.resumed(**{**wishes, "params": params})
    elsewhere()
    assert Order.resumed(**wishes).params == again.params
    root = networks.parameter_root(again.params, again.network)
    assert root.resolve() == tmp_path / "work"
    Order.resumed(**{**wishes, "params": again.params})
    with pytest.raises(InputError, match="its params is"):
        Order.resumed(**{**wishes, "params": "digits"})


def test_named_parameter_set_stays_a_name(tmp_path, elsewhere):
    order = Order.new(dataset="digits", params="digits", output=tmp_path / "job")
    assert order.params == "digits"


def test_name_that_is_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{ODD}.bin").write_bytes(bytes(3073))
    order = Order.new(dataset=f"{ODD}.bin")
    assert order.folder.name.startswith("caf\ufffd-cnvW1A1-")
    with order._under_way():
        pass
    assert json.loads((order.folder / "job.json").read_text())["dataset"].endswith(f"/{ODD}.bin")
    assert len(Order.resumed(**{**NO_WISHES, "resume": order.folder}).dataset) == 1
    with pytest.raises(InputError, match=r"--output .*: expected a path in UTF-8"):
        Order.new(dataset=f"{ODD}.bin", output=tmp_path / ODD)


@pytest.mark.parametrize(
    "words", ["cannot open [/dev/xocl]", "out[a]/x", "out:a:/x", "[red]x[/red]", r"\[a]"]
)
def test_paths_and_reasons_are_printed_as_they_are(monkeypatch, words):
    monkeypatch.setattr(devices, "_here", lambda: [(0, words, words)])
    console = progress.console()
    console.file = io.StringIO()
    console.print(words)
    assert console.file.getvalue() == words + "\n"
    plain = Console(file=io.StringIO(), width=100)
    plain.print(devices.show(None))
    assert plain.file.getvalue().count(words) == 2


def test_names_of_boards_are_shown_as_they_are_beside_the_bar():
    job = SimpleNamespace(
        boards={"tls://z1": SimpleNamespace(state="failed", worker="z1[/a]")},
        title="job",
        total=1,
        unit="images",
        rate=0.0,
        answers=SimpleNamespace(answered=0),
    )
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)

    async def story():
        async with progress.shown(job, terminal, quiet=False):
            await asyncio.sleep(0)

    asyncio.run(story())
    assert "1 failed (z1[/a])" in terminal.file.getvalue()


def test_scheduler_is_shown_as_it_is_while_it_is_asked(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(progress, "console", lambda: terminal)

    def unreachable(*_, **__):
        raise ClusterError("nobody there")

    monkeypatch.setattr(local, "client", unreachable)
    with pytest.raises(ClusterError, match="nobody there"):
        vadd.add_random(1, 1, "intro.xclbin", "tls://[fe80::1]:8786", 1, quiet=False)
    assert "connecting to tls://[fe80::1]:8786" in terminal.file.getvalue()
