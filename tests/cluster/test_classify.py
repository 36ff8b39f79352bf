"""One command classifies real images on stand-in boards, each a real worker with a real driver."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import overlays
import overlays.classes
import overlays.parameters
import overlays.plain
from distributed_pynq import cli, datasets, networks, order, predictions
from distributed_pynq.errors import InputError

CNV = "cnvW1A1", "cnvW1A2", "cnvW2A2"
GOLDEN_CIFAR10 = {"cnvW1A1": 100, "cnvW1A2": 50, "cnvW2A2": 50}
RIGHT_OF_JPEG_1500 = {"cnvW1A1": 0.758, "cnvW1A2": 0.800, "cnvW2A2": 0.794}
FILES = {"predictions.parquet", "summary.json", "report.html", "performance.png"}


def test_digits_by_default(classify):
    done = classify()
    assert done.code == 0, done.printed
    assert {file.name for file in done.folder.iterdir()} == FILES
    summary = done.summary
    assert (summary["images"], summary["classified"]) == (599, 599)
    assert (summary["lost"], summary["duplicates"], summary["failed"]) == (0, 0, [])
    assert summary["accuracy"] >= 0.96
    assert f"{summary['accuracy']:.2%} right" in done.printed
    assert [board["name"] for board in summary["boards"]] == ["standin-1", "standin-2"]
    assert sum(board["images"] for board in summary["boards"]) == 599


@pytest.mark.parametrize("network", CNV)
def test_cifar10_as_on_the_real_runtime(classify, shared, network):
    done = classify(
        "cifar10", "--network", network, "--scores", DISTRIBUTED_PYNQ_DATA=str(shared / "data")
    )
    assert done.code == 0, done.printed
    assert done.summary["classified"] == done.summary["images"] == 10_846
    index, label, given, scores = done.columns("index", "label", "class", "scores")
    assert np.array_equal(index, np.arange(10_846))
    golden = np.load(shared / "golden" / f"cifar10-{network}-first{GOLDEN_CIFAR10[network]}.npy")
    assert np.array_equal(np.stack(scores[: len(golden)]), golden)
    assert np.array_equal(given[: len(golden)], golden.argmax(axis=1))
    if network == "cnvW1A1":
        assert np.count_nonzero(given[:846] == label[:846]) == 678
    jpeg = slice(846, 846 + 1500)
    assert round(np.mean(given[jpeg] == label[jpeg]), 3) == RIGHT_OF_JPEG_1500[network]


def test_cifar10_through_finn_examples(classify, shared, monkeypatch):
    monkeypatch.setenv("DISTRIBUTED_PYNQ_RUNTIME", "finn-examples")
    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(shared / "data"))
    records = shared / "data" / "cifar10" / "test_first846.bin"
    done = classify(records, "--network", "cnvW1A2")
    assert done.code == 0, done.printed
    assert (done.summary["classified"], done.summary["retries"]) == (846, 0)
    root = networks.parameter_root("cifar10", networks.NETWORKS["cnvW1A2"])
    overlay = overlays.load(root / "cifar10" / "cnvW1A2")
    scores = overlay.scores(np.fromfile(records, np.uint8).reshape(-1, 3073))
    assert np.array_equal(done.columns("class")[0], scores[:, :10].argmax(axis=1))
    refused = classify(records, "--network", "cnvW1A2", "--scores")
    assert refused.code == 2 and "gives classes only" in refused.printed


@pytest.mark.parametrize(("network", "right"), [("lfcW1A1", 9_840), ("lfcW1A2", 9_849)])
def test_mnist_as_published(classify, shared, network, right):
    done = classify("mnist", "--network", network, DISTRIBUTED_PYNQ_DATA=str(shared / "data"))
    assert done.code == 0, done.printed
    label, given = done.columns("label", "class")
    assert (len(given), np.count_nonzero(given == label)) == (10_000, right)


def test_pictures_have_no_labels(classify, tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "blue"), ("c.png", "white")):
        Image.new("RGB", (40, 50), colour).save(tmp_path / "pictures" / name)
    done = classify(tmp_path / "pictures", "--params", "digits")
    assert done.code == 0, done.printed
    assert done.summary["accuracy"] is None
    table = pq.read_table(done.folder / "predictions.parquet")
    assert table["label"].null_count == 3


def test_a_name_need_not_be_utf_8(classify, tmp_path):
    records = tmp_path / os.fsdecode(b"caf\xe9.bin")
    records.write_bytes(bytes(3073 * 3))
    done = classify(records, "--params", "digits")
    assert done.code == 0, done.printed
    assert {file.name for file in done.folder.iterdir()} == FILES
    assert done.summary["dataset"] == f"{tmp_path}/caf\ufffd.bin"


def test_every_network_gives_the_plain_path_its_classes(classify):
    for network in networks.NETWORKS.values():
        done = classify("digits", "--network", network.name, "--boards", 1)
        assert done.code == 0, done.printed
        records = datasets.load("digits", network).records(0, 599)
        folder = networks.parameter_root("digits", network) / "digits" / network.name
        plain = overlays.plain.Overlay(overlays.parameters.read(folder, network.name))
        if network.kind == "cnv":
            expected = overlays.classes.cnv_many(plain.scores(records), 10)
        else:
            expected = overlays.classes.lfc_many(plain.words(records), 10)
        (given,) = done.columns("class")
        assert np.array_equal(given, expected), network.name


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_then_resumed(classify, start, shared, blow):
    data = {"DISTRIBUTED_PYNQ_DATA": str(shared / "data")}
    job = ("cifar10", "--network", "cnvW1A1")
    undisturbed = classify(*job, **data)
    command = start(*job, "--boards", 2, DISTRIBUTED_PYNQ_STANDIN_RATE="1000", **data)
    deadline = time.monotonic() + 60
    while not (command.folder / "boards.json").exists():
        assert time.monotonic() < deadline and command.process.poll() is None
        time.sleep(0.05)
    command.process.send_signal(blow)
    interrupted = command.wait()
    assert interrupted.code == (130 if blow == signal.SIGINT else -blow)
    assert not (command.folder / "predictions.parquet").exists()
    resumed = classify("--resume", command.folder, **data)
    assert resumed.code == 0, resumed.printed
    assert 0 < resumed.summary["resumed"] < 10_846
    names = ("index", "label", "class", "class_name")
    tables = [
        pq.read_table(folder / "predictions.parquet", columns=list(names))
        for folder in (undisturbed.folder, command.folder)
    ]
    assert tables[0].equals(tables[1])


def test_an_output_folder_has_one_job_at_a_time(classify, start):
    command = start("digits", "--boards", 1, DISTRIBUTED_PYNQ_STANDIN_RATE="100")
    deadline = time.monotonic() + 60
    while not (command.folder / "boards.json").exists():
        assert time.monotonic() < deadline and command.process.poll() is None
        time.sleep(0.05)
    refused = classify("--resume", command.folder)
    assert refused.code == 2
    assert refused.printed == f"distributed-pynq: {command.folder}: a job is under way here\n"
    done = command.wait()
    assert (done.code, done.summary["classified"]) == (0, 599), done.printed


def test_an_order_leaves_a_finished_job_alone(tmp_path):
    folder = tmp_path / "output"
    late = order.Order.new(output=folder)
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="not empty; a job's results need a new folder"):
        asyncio.run(late.carry_out())
    assert [file.name for file in folder.iterdir()] == ["summary.json"]


def test_what_is_lost_can_be_had_by_resuming(classify, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "output"
    monkeypatch.setattr(sys, "argv", ["", "classify", "--boards", "1", "--output", str(folder)])
    monkeypatch.setattr(predictions, "count", lambda path, records: (records - 1, 0))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert f"unfinished: continue with --resume {folder}" in capsys.readouterr().out
    resumed = classify("--resume", folder)
    assert resumed.code == 0, resumed.printed
    assert (resumed.summary["resumed"], resumed.summary["lost"]) == (599, 0)
    assert {file.name for file in folder.iterdir()} == FILES


@pytest.mark.parametrize("size", ["8k", "64k"])
def test_a_full_disk_is_told_in_a_line(classify, command, tmp_path, size):
    """It has no room for the answers, or none for the report."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    folder = disk / "output"
    try:
        full = command("classify", "--boards", 1, "--output", folder)
        assert full.code == 2, full.printed
        told = f"distributed-pynq: {folder}: No space left on device"
        assert full.printed.splitlines()[-1] == told
        assert "Traceback" not in full.printed
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        resumed = classify("--resume", folder)
        assert resumed.code == 0, resumed.printed
        assert (resumed.summary["classified"], resumed.summary["lost"]) == (599, 0)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
