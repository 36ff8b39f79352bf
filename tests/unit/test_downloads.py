"""What is missing is downloaded once, checked, and never left half-done."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from distributed_pynq import datasets, networks, storage
from distributed_pynq.errors import InputError

CNV = networks.get("cnvW1A1")
LFC = networks.get("lfcW1A1")


class Site:
    """Files by their path on a web server of this machine, and the paths that were asked for."""

    def __init__(self):
        self.files = {}
        self.asked = []
        self.breaks_off = False


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if site.breaks_off else content)

        def log_message(self, *message):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in storage.SITES:
        monkeypatch.setitem(storage.SITES, name, f"http://127.0.0.1:{server.server_port}/{name}")
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def tar(files):
    """A .tar.gz of files by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


RECORDS = np.random.default_rng(0).integers(0, 256, (40, 3073), np.uint8)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 784), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 10
SET = {
    "classes.txt": b"0\r\n1",
    "0-0-weights.bin": bytes(range(64)),
    "0-0-thres.bin": bytes(16),
}


@pytest.fixture
def offer(site, monkeypatch):
    """Small files on the site, with checksums to match."""
    archive = tar({"cifar-10-batches-bin/test_batch.bin": RECORDS.tobytes()})
    site.files["/cifar10/cifar-10-binary.tar.gz"] = archive
    md5 = f"md5:{hashlib.md5(archive).hexdigest()}"
    monkeypatch.setattr(datasets, "CIFAR10_ARCHIVE", ("cifar-10-binary.tar.gz", md5))

    idx = {
        "t10k-images-idx3-ubyte.gz": struct.pack(">4I", 0x803, 30, 28, 28) + IMAGES.tobytes(),
        "t10k-labels-idx1-ubyte.gz": struct.pack(">2I", 0x801, 30) + LABELS.tobytes(),
    }
    for name, content in idx.items():
        packed = gzip.compress(content)
        site.files[f"/mnist/{name}"] = packed
        monkeypatch.setitem(datasets.MNIST_FILES, name, hashlib.sha256(packed).hexdigest())

    prefix = "BNN-PYNQ-d39c1c7/bnn/params/tiny/lfcW1A1"
    sources = {"BNN-PYNQ-d39c1c7/bnn/src/network/lfcW1A1/hw/top.cpp": b"int main;"}
    site.files[f"/bnn-pynq/{networks.BNN_PYNQ_ARCHIVE}"] = tar(
        {**sources, **{f"{prefix}/{name}": content for name, content in SET.items()}}
    )
    digest = hashlib.sha256()
    for name in sorted(SET):
        digest.update(f"{name} {len(SET[name])}\n".encode() + SET[name])
    monkeypatch.setattr(networks, "BNN_PYNQ_SETS", {"tiny/lfcW1A1": digest.hexdigest()})


def get_cifar10():
    dataset = datasets.load("cifar10", CNV)
    assert np.array_equal(dataset.records(0, 40), RECORDS)


def get_mnist():
    dataset = datasets.load("mnist", LFC)
    assert np.array_equal(dataset.records(0, 30), IMAGES)
    assert np.array_equal(dataset.labels(0, 30), LABELS)


def get_params():
    folder = networks.parameter_root("tiny", LFC) / "tiny" / "lfcW1A1"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == SET


GETS = [get_cifar10, get_mnist, get_params]
BY_HAND = {
    get_cifar10: r"put the test_batch\.bin that is in it into \S*/data/cifar10$",
    get_mnist: r"put t10k-images-idx3-ubyte\.gz and t10k-labels-idx1-ubyte\.gz into \S*/mnist$",
    get_params: r"put the folders that are in its bnn/params/ into \S*/data/bnn-pynq$",
}


def refusal(get, reason, tmp_path):
    """The refusal of `get`: one line with URL, reason and remedy, and nothing left behind."""
    with pytest.raises(InputError) as caught:
        get()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("http://127.0.0.1:")
    assert reason in message
    assert caught.match(BY_HAND[get])
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("get", GETS)
def test_downloads_once(site, offer, tmp_path, get):
    get()
    asked = list(site.asked)
    assert asked
    get()
    assert site.asked == asked
    assert not list((tmp_path / "data").rglob(".unfinished*"))


@pytest.mark.parametrize("get", GETS)
def test_wrong_content(site, offer, tmp_path, get):
    for name, content in site.files.items():
        if "bnn-pynq" in name:
            site.files[name] = tar({"x/bnn/params/tiny/lfcW1A1/classes.txt": b"other"})
        else:
            site.files[name] = content[:-1] + bytes([content[-1] ^ 1])
    refusal(get, "the checksum", tmp_path)


@pytest.mark.parametrize("get", GETS)
def test_not_found(site, tmp_path, get, monkeypatch):
    monkeypatch.setattr(networks, "BNN_PYNQ_SETS", {"tiny/lfcW1A1": "0"})
    refusal(get, "HTTP 404 Not Found", tmp_path)


@pytest.mark.parametrize("get", GETS)
def test_offline(site, offer, tmp_path, get, monkeypatch):
    for name in storage.SITES:
        monkeypatch.setitem(storage.SITES, name, "http://127.0.0.1:9")
    refusal(get, "no connection", tmp_path)


@pytest.mark.parametrize("get", GETS)
def test_interrupted(site, offer, tmp_path, get):
    site.breaks_off = True
    refusal(get, "the connection broke off", tmp_path)
    site.breaks_off = False
    get()


def test_mnist_interrupted_between_its_two_files(site, offer, tmp_path):
    labels = site.files.pop("/mnist/t10k-labels-idx1-ubyte.gz")
    refusal(get_mnist, "HTTP 404", tmp_path)
    site.files["/mnist/t10k-labels-idx1-ubyte.gz"] = labels
    get_mnist()


def test_data_folder_that_cannot_be_written(site, offer, tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"data/cifar10: cannot be written \(Not a directory\)"):
        get_cifar10()
    assert site.asked == []


def test_real_files_have_the_expected_checksums(site, shared):
    for name in datasets.MNIST_FILES:
        site.files[f"/mnist/{name}"] = (shared / "data" / "mnist" / name).read_bytes()
    with tarfile.open(shared / "data" / "bnn-pynq" / "params.tar.gz") as archive:
        sets = {
            f"BNN-PYNQ-d39c1c7/bnn/params/{member.name}": archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }
    site.files[f"/bnn-pynq/{networks.BNN_PYNQ_ARCHIVE}"] = tar(sets)
    assert len(datasets.load("mnist", LFC)) == 10_000
    for key in networks.BNN_PYNQ_SETS:
        params, network = key.split("/")
        root = networks.parameter_root(params, networks.get(network))
        assert (root / key / "classes.txt").is_file()
    assert len(site.asked) == 3
