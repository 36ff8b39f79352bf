"""What a job has found survives full disks, power cuts and threads that meet."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from distributed_pynq import predictions
from distributed_pynq.errors import InputError
from distributed_pynq.predictions import ROW_GROUP, Predictions


class Unlabelled:
    """As much of a data set as predictions need."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return self.records

    def labels(self, start, stop):
        return None


def begin(folder, records):
    return Predictions(folder, Unlabelled(records), ["zero", "one"])


def put(answers, start, stop, board=("z1-01", "0")):
    answers.put(start, stop, board, np.zeros(stop - start, np.int16), None)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_answers_that_will_not_fit_are_refused_at_once(small_disk):
    for _ in range(2):
        with pytest.raises(InputError, match=f"{small_disk}: No space left on device"):
            begin(small_disk, 1_000_000)
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert begin(small_disk, 1_000_000).answered == 0


@pytest.mark.parametrize("full", ["for the list of boards", "for a row group"])
def test_a_disk_that_fills_meanwhile_costs_nothing(small_disk, full):
    records = ROW_GROUP + 10
    answers = begin(small_disk, records)
    filler = small_disk / "filler"
    put(answers, 0, 10)
    if full == "for a row group":
        answers.commit()
    put(answers, 10, records)
    state = os.statvfs(small_disk)
    # The list of boards takes a page.
    spare = state.f_bsize if full == "for a row group" else 0
    filler.write_bytes(bytes(state.f_bavail * state.f_bsize - spare))
    for _ in range(2):
        with pytest.raises(InputError, match=f"{small_disk}: No space left on device"):
            answers.commit()
    filler.unlink()
    answers.finish()
    assert predictions.count(small_disk / "predictions.parquet", records) == (records, 0)


def test_what_is_put_while_others_commit_is_kept(tmp_path):
    class Switch(tuple):
        """A board at whose comparison the other thread has its turn."""

        __hash__ = None

        def __eq__(self, other):
            answers.commit()
            return tuple(self) == tuple(other)

    answers = begin(tmp_path, 3)
    for index in range(3):
        put(answers, index, index + 1, Switch(("z1-01", "0")))
    answers.finish()
    assert predictions.count(tmp_path / "predictions.parquet", 3) == (3, 0)


@pytest.mark.parametrize("listed", [None, "", "[", "[]", "7", '[["z1-01", "0"]]'])
def test_records_of_boards_that_nobody_knows_are_done_again(tmp_path, listed):
    answers = begin(tmp_path, 10)
    put(answers, 0, 4)
    put(answers, 4, 7, ("z1-02", "0"))
    answers.commit()
    file = tmp_path / "boards.json"
    file.unlink() if listed is None else file.write_text(listed)
    missing = [(4, 10)] if "z1-01" in (listed or "") else [(0, 10)]
    assert list(begin(tmp_path, 10).missing()) == missing
    file.write_text(json.dumps([["z1-03", "0"], ["z1-04", "0"]]))
    assert list(begin(tmp_path, 10).missing()) == missing


def test_boards_are_on_disk_before_the_marks_that_number_them(tmp_path, monkeypatch):
    answers = begin(tmp_path, 10)
    marks = tmp_path / "boards.npy"
    synced = []

    def fsync(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synced.append((name, (tmp_path / "boards.json").exists(), any(np.load(marks))))

    monkeypatch.setattr(os, "fsync", fsync)
    put(answers, 0, 10)
    answers.commit()
    assert synced == [("boards.partial", False, False), (tmp_path.name, True, False)]
    assert all(np.load(marks))
