"""Two arrays added on the four cards of a stand-in server, one worker each."""

import asyncio
import io
from contextlib import asynccontextmanager

import numpy as np
import pytest
from rich.console import Console

from distributed_pynq import devices, local, progress, vadd
from distributed_pynq.errors import ClusterError, InputError

ADDRESSES = [f"0000:{bus}:00.0" for bus in ("01", "02", "41", "42")]
# Two are of one kind.
NAMES = ["xilinx_u50", "xilinx_u50", "xilinx_u200", "xilinx_u280"]
WORKERS = [f"server/{address}" for address in ADDRESSES]


@asynccontextmanager
async def server(names=NAMES, **environment):
    """A client of a cluster of this server alone, its cards each named in another way."""
    cards = ",".join(f"{name}@{address}" for name, address in zip(names, ADDRESSES))
    settings = {"XILINX_XRT": "/opt/xilinx/xrt", "DISTRIBUTED_PYNQ_STANDIN_DEVICES": cards}
    with local.Cluster() as cluster:
        for worker, device in zip(WORKERS, ("0", "xrt1", ADDRESSES[2], names[3])):
            cluster.start_board(worker, DEVICE=device, **settings, **environment)
        async with cluster.client() as client:
            yield client


def operands(rows, columns):
    return np.random.default_rng(1).integers(0, 2**32, (2, rows, columns), np.uint32)


def test_equals_numpy_on_every_device():
    async def story():
        async with server() as client:
            for shape in [(4096, 4096), (1003, 777), (5, 1_000_003), (3, 1), (1, 1)]:
                first, second = operands(*shape)
                job = vadd.Addition(client, first, second, "intro.xclbin")
                assert np.array_equal(await job.add(), first + second)
                figures = job.figures()
                assert figures["images"] == shape[0]
                assert (figures["failed"], figures["faults"], figures["retries"]) == ([], [], 0)
                boards = figures["boards"]
                assert [(b["name"], b["device"]) for b in boards] == [
                    ("server", address) for address in ADDRESSES
                ]
                assert sum(board["images"] for board in boards) == shape[0]
                assert all(board["chunks"] for board in boards) or shape[0] < len(ADDRESSES)

    asyncio.run(story())


def test_one_card_is_pulled(tmp_path):
    async def story():
        async with server(DISTRIBUTED_PYNQ_STANDIN_PULLED=str(tmp_path)) as client:
            first, second = operands(4096, 1024)
            job = vadd.Addition(client, first, second, "intro.xclbin", chunk=8)
            await job.prepare()
            adding = asyncio.create_task(job.run(vadd.Sums(first.shape)))
            while not job.boards[WORKERS[1]].chunks:
                await asyncio.sleep(0.001)
            (tmp_path / ADDRESSES[1]).touch()
            await adding
            return job, first + second, await devices.of_fleet(client)

    job, expected, listed = asyncio.run(story())
    assert np.array_equal(job.answers.values, expected)
    states = {board.worker: board.state for board in job.boards.values()}
    assert [worker for worker, state in states.items() if state == "failed"] == [WORKERS[1]]
    figures = job.figures()
    assert {fault["board"] for fault in figures["faults"]} == {WORKERS[1]}
    reasons = [fault["reason"] for fault in figures["faults"]]
    assert "the card failed: " in reasons[0]
    gone = f"no such device here, only 0 {ADDRESSES[0]} {NAMES[0]}; 1 {ADDRESSES[2]}"
    assert gone in reasons[-1]
    assert not any("while idle" in reason for reason in reasons)
    names = [name for _, _, name in listed]
    assert gone in names[1]
    assert names[:1] + names[2:] == NAMES[:1] + NAMES[2:]


def test_a_worker_says_why_it_has_no_device():
    async def story():
        async with server(["a", "b", "twin", "twin"]):
            pytest.fail("a name that two cards share was taken")

    with pytest.raises(ClusterError) as refused:
        asyncio.run(story())
    assert str(refused.value).startswith(
        f"{WORKERS[3]} did not start: distributed-pynq: driver died during 'start' (exit code 1): "
        "DEVICE=twin: 2 devices have that name; choose by index or address: "
    )


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.uint32), "not int64 of shape (2, 3)"),
        (np.zeros((2, 3), np.uint32), np.zeros((2, 3)), "not float64 of shape (2, 3)"),
        (np.zeros(6, np.uint32), np.zeros(6, np.uint32), "not uint32 of shape (6,)"),
        (np.zeros((0, 3), np.uint32), np.zeros((0, 3), np.uint32), "not uint32 of shape (0, 3)"),
        (np.zeros((2, 3), np.uint32), np.zeros((3, 2), np.uint32), "not (2, 3) and (3, 2)"),
    ],
)
def test_wrong_arrays_are_named(first, second, told):
    with pytest.raises(InputError) as refused:
        vadd.Addition(None, first, second, "intro.xclbin")
    assert str(refused.value).startswith("vadd: expected arrays of ")
    assert str(refused.value).endswith(told)


def test_a_terminal_sees_it_get_on(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    assert vadd.add_random(401, 333, "intro.xclbin", None, 2, quiet=False)
    assert "401/401" in terminal.file.getvalue()


def test_what_cannot_be_shown_is_told_and_does_no_harm(caplog):
    async def story():
        async with progress.shown(object(), Console(force_terminal=True), quiet=False):
            await asyncio.sleep(0)

    asyncio.run(story())
    assert "AttributeError" in caplog.text


def test_the_command(command):
    done = command("vadd", "--rows", 401, "--columns", 333, "--overlay", "intro.xclbin")
    assert done.code == 0, done.printed
    assert "133,533 sums equal numpy's; 0 rows failed" in done.printed
    for number in range(1, 5):
        assert f"0000:{number:02}:00.0" in done.printed


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--rows", 0], 2, "Invalid value for '--rows'"),
        (["--columns", "1e3"], 2, "Invalid value for '--columns'"),
        (["--rows", 10**6, "--columns", 10**9], 2, "--columns 1000000000: Unable to allocate"),
        (["--rows", 4, "--columns", 4, "--overlay", "x.xclbin"], 2, "x.xclbin does not exist."),
        (["--devices", 1, "--scheduler", "tls://127.0.0.1:1"], 2, "--devices: stand-in cards"),
    ],
)
def test_a_wrong_command_is_one_line(command, words, code, told):
    done = command("vadd", *words)
    assert done.code == code
    assert told in done.printed.splitlines()[-1]


def test_devices_of_this_machine(command):
    cards = f"{NAMES[0]}@{ADDRESSES[0]},{NAMES[2]}@{ADDRESSES[2]}"
    server = {"XILINX_XRT": "/", "DISTRIBUTED_PYNQ_STANDIN_DEVICES": cards}
    done = command("devices", PYTHONPATH=str(local.STANDIN), **server)
    assert done.code == 0, done.printed
    lines = [line for line in done.printed.splitlines() if "xilinx" in line]
    assert ADDRESSES[0] in lines[0] and ADDRESSES[2] in lines[1]
    no_board = command("devices")
    assert no_board.code == 4
    assert "No module named 'pynq'" in no_board.printed
    no_python = command("devices", DISTRIBUTED_PYNQ_DRIVER_PYTHON="/no/python")
    assert no_python.code == 2
    told = "DISTRIBUTED_PYNQ_DRIVER_PYTHON=/no/python: No such file or directory"
    assert no_python.printed == f"distributed-pynq: {told}\n"


def test_devices_of_a_fleet():
    async def story():
        async with server() as client:
            assert await devices.of_fleet(client) == list(zip(WORKERS, ADDRESSES, NAMES))

    asyncio.run(story())
