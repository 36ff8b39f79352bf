"""Every way we know to get it wrong: exit code, and one line that says what is wrong and where."""

import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from typing import NamedTuple

import pytest
from PIL import Image

BIN = bytes(3073)
IDX = struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 784)
LABELS = struct.pack(">2I", 0x801, 2) + bytes(2)
PNG = io.BytesIO()
Image.effect_noise((64, 64), 50).save(PNG, "PNG")
PNG = PNG.getvalue()
NOISE = Image.effect_noise((256, 256), 50).tobytes()


class Case(NamedTuple):
    """Files to make in an empty folder (name/ is a folder), arguments to use there, the answer."""

    name: str
    files: dict[str, bytes]
    arguments: str
    message: str
    code: int = 2


LFC = "--network lfcW1A1"

FILES = [
    Case(
        "CIFAR file with a broken last record",
        {"x.bin": 2 * BIN + b"123"},
        "x.bin",
        r"x\.bin: length 6149 leaves 3 bytes at offset 6146, expected whole records of 3073$",
    ),
    Case("empty CIFAR file", {"x.bin": b""}, "x.bin", r"x\.bin: 0 records, expected at least 3073"),
    Case(
        "packed CIFAR file with a broken last record",
        {"x.bin.gz": gzip.compress(BIN[:-1])},
        "x.bin.gz",
        r"x\.bin\.gz: length 3072 leaves 3072 bytes at offset 0, expected whole records of 3073$",
    ),
    Case(
        "truncated gzip",
        {"x.bin.gz": gzip.compress(NOISE)[:2000]},
        "x.bin.gz",
        r"x\.bin\.gz: truncated gzip, expected more at offset 2000 \(its end\)$",
    ),
    Case(
        "truncated idx gzip",
        {"x-images-idx3-ubyte.gz": gzip.compress(IDX + NOISE)[:1000]},
        f"x-images-idx3-ubyte.gz {LFC}",
        r"x-images-idx3-ubyte\.gz: truncated gzip, expected more at offset 1000 \(its end\)$",
    ),
    Case(
        "gzip with flipped bits",
        {"x.bin.gz": gzip.compress(BIN)[:-8] + bytes(8)},
        "x.bin.gz",
        r"x\.bin\.gz: expected an undamaged gzip from offset 0 on \(CRC",
    ),
    Case(
        "gzip only by name",
        {"x.bin.gz": BIN},
        "x.bin.gz",
        r"x\.bin\.gz: expected an undamaged gzip from offset 0 on \(Not a gzipped file",
    ),
    Case(
        "idx with the magic of labels",
        {"x-images-idx3-ubyte": LABELS},
        f"x-images-idx3-ubyte {LFC}",
        r"idx3-ubyte: offset 0: magic 0x00000801, expected 0x00000803 of idx images",
    ),
    Case(
        "file of an unknown kind",
        {"notes.txt": b"hello, world, this is no image"},
        f"notes.txt {LFC}",
        r"notes\.txt: offset 0: magic 0x68656c6c, expected 0x00000803 of idx images",
    ),
    Case(
        "empty idx file",
        {"x.idx": b""},
        f"x.idx {LFC}",
        r"x\.idx: length 0, expected an idx header of 16 bytes$",
    ),
    Case(
        "idx cut in its header",
        {"x.idx": IDX[:9]},
        f"x.idx {LFC}",
        r"x\.idx: length 9, expected an idx header of 16 bytes$",
    ),
    Case(
        "idx shorter than it says",
        {"x.idx": IDX[:-1]},
        f"x.idx {LFC}",
        r"x\.idx: length 1583, expected 1584 for the 2 images that offset 4 announces$",
    ),
    Case(
        "idx longer than it says",
        {"x.idx": IDX + b"12"},
        f"x.idx {LFC}",
        r"x\.idx: length 1586, expected 1584 for the 2 images that offset 4 announces$",
    ),
    Case(
        "idx of another image size",
        {"x.idx": struct.pack(">4I", 0x803, 4, 14, 28) + bytes(4 * 392)},
        f"x.idx {LFC}",
        r"x\.idx: offset 8: images of 14x28 pixels, expected 28x28$",
    ),
    Case(
        "idx without images",
        {"x.idx": struct.pack(">4I", 0x803, 0, 28, 28)},
        f"x.idx {LFC}",
        r"x\.idx: offset 4: 0 records, expected at least one$",
    ),
    Case(
        "fewer labels than images",
        {"x-images-idx3": IDX, "x-labels-idx1": struct.pack(">2I", 0x801, 1) + bytes(1)},
        f"x-images-idx3 {LFC}",
        r"x-labels-idx1: offset 4: 1 labels, expected one for each of the 2 images of x-images",
    ),
    Case(
        "labels shorter than they say",
        {"x-images-idx3": IDX, "x-labels-idx1": LABELS[:-1]},
        f"x-images-idx3 {LFC}",
        r"x-labels-idx1: length 9, expected 10 for the 2 labels that offset 4 announces$",
    ),
    Case(
        "labels that are images",
        {"x-images-idx3": IDX, "x-labels-idx1": IDX},
        f"x-images-idx3 {LFC}",
        r"x-labels-idx1: offset 0: magic 0x00000803, expected 0x00000801 of idx labels",
    ),
    Case("empty folder", {"photos/": b""}, "photos", r"photos: empty folder, expected \.jpeg, \.j"),
    Case(
        "folder without pictures",
        {"photos/x.bin": BIN},
        "photos",
        r"photos: no picture among its files, expected \.jpeg, \.jpg, \.png$",
    ),
    Case(
        "folder with an unreadable picture",
        {"photos/a.png": PNG, "photos/b.jpg": b"not a picture"},
        "photos",
        r"photos/b\.jpg: unreadable picture, neither PNG nor JPEG at offset 0$",
    ),
    Case(
        "folder with a picture cut short",
        {"photos/a.png": PNG[: len(PNG) // 2]},
        f"photos {LFC}",
        r"photos/a\.png: unreadable picture \(.*truncated",
    ),
    Case(
        "single picture",
        {"a.png": PNG},
        "a.png",
        r"a\.png: a single picture, expected the folder it is in$",
    ),
    Case("device", {}, "/dev/null", r"/dev/null: expected a regular file or a folder of pictures$"),
    Case(
        "unreadable data file",
        {"locked.bin": BIN},
        "locked.bin",
        r"locked\.bin: Permission denied$",
    ),
    Case("unreadable folder", {"locked/a.png": PNG}, "locked", r"locked: Permission denied$"),
    Case("path that is not there", {}, "no/such.bin", r"'no/such\.bin': no such file or folder"),
    Case(
        "misspelt data set",
        {},
        "minst",
        r"'minst': no such file or folder, nor one of .* \(did you mean mnist\?\)$",
    ),
    Case(
        "grey digits for a colour network",
        {},
        "mnist --network cnvW2A2",
        r"mnist: 28x28 grey images are for lfcW1A1, lfcW1A2; cnvW2A2 expects 32x32 colour records",
    ),
    Case(
        "colour pictures for a digit network",
        {},
        f"cifar10 {LFC}",
        r"cifar10: 32x32 colour records are for cnvW1A1, cnvW1A2, cnvW2A2; lfcW1A1 expects 28x28",
    ),
    Case(
        "CIFAR file for a digit network",
        {"x.bin": BIN},
        f"x.bin {LFC}",
        r"x\.bin: 32x32 colour records are for .*; lfcW1A1 expects 28x28 grey images$",
    ),
    Case(
        "idx file for a colour network",
        {"x.idx": IDX},
        "x.idx --network cnvW1A2",
        r"x\.idx: 28x28 grey images are for .*; cnvW1A2 expects 32x32 colour records$",
    ),
    Case(
        "unknown parameter set",
        {},
        "digits --params nope",
        r"'nope': not there for cnvW1A1, expected one of cifar10, digits, road-signs, streetview,",
    ),
    Case(
        "parameter set of another network",
        {},
        f"digits {LFC} --params road-signs",
        r"'road-signs': not there for lfcW1A1, expected one of chars_merged, digits, mnist,",
    ),
    Case(
        "damaged archive of parameter sets",
        {"data/bnn-pynq/params.tar.gz": b"no archive", "x.bin": BIN},
        "x.bin",
        r"data/bnn-pynq/params\.tar\.gz: damaged, expected a whole tar\.gz",
    ),
    Case(
        "data set that is not there, and offline",
        {},
        "cifar10",
        r"https://\S+: no connection .*; put the test_batch\.bin .* into \S+/data/cifar10$",
    ),
    Case(
        "parameter set that is not there, and offline",
        {"x.bin": BIN},
        "x.bin",
        r"https://\S+: no connection .*; put the folders .* into \S+/data/bnn-pynq$",
    ),
    Case(
        "data folder that is a file",
        {"data": b""},
        "cifar10",
        r"data/cifar10: cannot be written \(Not a directory\)",
    ),
]

ARGUMENTS = [
    Case("unknown network", {}, "digits --network nope", r"'nope' is not one of 'cnvW1A1', "),
    Case("no board", {}, "digits --boards 0", r"'--boards': 0 is not in the range 1<="),
    Case("a board in words", {}, "digits --boards two", r"'--boards': 'two' is not a valid int"),
    Case("empty chunks", {}, "digits --chunk 0", r"'--chunk': 0 is not in the range 1<=x<=10000"),
    Case("chunks above bnn's limit", {}, "digits --chunk 20000", r"20000 is not in the range 1<="),
    Case("unknown option", {}, "digits --speed 9", r"No such option:? '?--speed"),
    Case("two data sets", {}, "digits mnist", r"unexpected extra argument"),
    Case("scores of a network without any", {}, f"digits {LFC} --scores", r"--scores.*lfcW1A1"),
    Case("output is a file", {"out": b"mine"}, "digits --output out", r"out: Not a directory$"),
    Case("output is in use", {"out/mine.txt": b""}, "digits --output out", r"out: not empty;"),
    Case(
        "nothing to resume",
        {"old/": b""},
        "--resume old",
        r"--resume old: no unfinished job here, expected a job\.json$",
    ),
    Case("nowhere to resume", {}, "--resume gone", r"--resume gone: no unfinished job here"),
    Case(
        "scheduler without a port",
        {},
        "digits --scheduler nonsense",
        r"--scheduler 'nonsense': expected tls://HOST:PORT$",
    ),
    Case(
        "scheduler without encryption",
        {},
        "digits --scheduler tcp://127.0.0.1:8786",
        r"--scheduler 'tcp://127\.0\.0\.1:8786': expected tls://HOST:PORT$",
    ),
    Case(
        "no certificate to show",
        {},
        "digits --scheduler tls://127.0.0.1:9",
        r"distributed\.comm\.tls\.ca-file in Dask's configuration: no file '\S+/tls\.pem'$",
    ),
    Case(
        "scheduler that is not there",
        {"tls.pem": b""},
        "digits --scheduler tls://127.0.0.1:9",
        r"tls://127\.0\.0\.1:9: no scheduler reachable",
        code=4,
    ),
    Case(
        "boards of two worlds",
        {},
        "digits --scheduler tls://127.0.0.1:9 --boards 2",
        r"--boards: .* do not go with --scheduler$",
    ),
]


CERTIFICATES = [
    f"DASK_DISTRIBUTED__COMM__TLS__{key}" for key in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
]


def classify(case, folder):
    """The finished process of a case: no web, no data but its own, and locks that hold for root."""
    for name, content in case.files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    command = [sys.executable, "-m", "distributed_pynq.cli", "classify", *case.arguments.split()]
    for locked in folder.glob("locked*"):
        locked.chmod(0)
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("root reads every file, and setpriv is not there to prevent it")
            powers = "-dac_override,-dac_read_search"
            command = ["setpriv", f"--bounding-set={powers}", *command]
    environment = {
        **os.environ,
        "DISTRIBUTED_PYNQ_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "",
        **dict.fromkeys(CERTIFICATES, str(folder / "tls.pem")),
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("case", FILES, ids=[case.name for case in FILES])
def test_bad_file(case, tmp_path):
    finished = classify(case, tmp_path)
    assert finished.returncode == case.code, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert re.search(case.message, finished.stderr.rstrip()), finished.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("case", ARGUMENTS, ids=[case.name for case in ARGUMENTS])
def test_bad_argument(case, tmp_path):
    finished = classify(case, tmp_path)
    assert finished.returncode == case.code, finished.stderr
    assert "Traceback" not in finished.stderr
    assert re.search(case.message, finished.stderr.splitlines()[-1]), finished.stderr
