"""Data sets of every form, exact to the byte and flat in memory."""

import gzip
import os
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from distributed_pynq import datasets, digits, networks

CNV = networks.get("cnvW1A1")
LFC = networks.get("lfcW1A1")


def cifar(count, seed=0):
    """Random CIFAR-10 records, some with labels above 9 as road signs have them."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3073), np.uint8)


def idx(array):
    """An array of bytes as an idx file has it."""
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_file(tmp_path, packed):
    records = cifar(7)
    path = tmp_path / ("x.bin.gz" if packed else "x.bin")
    path.write_bytes(gzip.compress(records.tobytes()) if packed else records.tobytes())
    dataset = datasets.load(str(path), CNV)
    assert len(dataset) == 7
    assert np.array_equal(dataset.records(2, 5), records[2:5])
    assert np.array_equal(dataset.labels(0, 7), records[:, 0])
    assert np.array_equal(dataset.image(6)[3, 4], records[6, [1 + 100, 1025 + 100, 2049 + 100]])
    assert dataset.source(6) == f"{path}, record 6"
    with pytest.raises(IndexError):
        dataset.records(5, 8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("packed_labels", [False, True])
def test_idx_file_with_labels_beside_it(tmp_path, packed, packed_labels):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    path = tmp_path / ("t-images-idx3-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(idx(images)) if packed else idx(images))
    beside = tmp_path / ("t-labels-idx1-ubyte" + ".gz" * packed_labels)
    beside.write_bytes(gzip.compress(idx(labels)) if packed_labels else idx(labels))
    dataset = datasets.load(str(path), LFC)
    assert np.array_equal(dataset.records(1, 4), images.reshape(5, 784)[1:4])
    assert np.array_equal(dataset.labels(1, 4), labels[1:4])
    assert np.array_equal(dataset.image(4), images[4])


def test_idx_file_without_labels(tmp_path):
    path = tmp_path / "webcam"
    path.write_bytes(idx(np.zeros((1, 28, 28), np.uint8)))
    assert datasets.load(str(path), LFC).labels(0, 1) is None


def test_several_files_are_one_data_set(tmp_path, monkeypatch):
    parts = [cifar(3, 1), cifar(1, 2), cifar(4, 3)]
    (tmp_path / "cifar10").mkdir()
    for number, part in enumerate(parts):
        (tmp_path / "cifar10" / f"test_{number}.bin").write_bytes(part.tobytes())
    (tmp_path / "cifar10" / "deer.bin").write_bytes(cifar(1, 4).tobytes())
    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(tmp_path))
    dataset = datasets.load("cifar10", CNV)
    records = np.concatenate(parts)
    for start in range(8):
        for stop in range(start + 1, 9):
            assert np.array_equal(dataset.records(start, stop), records[start:stop])
            assert np.array_equal(dataset.labels(start, stop), records[start:stop, 0])
    assert dataset.source(4).endswith("test_2.bin, record 0")


def test_records_are_mapped_not_copied(tmp_path):
    (tmp_path / "x.bin").write_bytes(cifar(9).tobytes())
    records = datasets.load(str(tmp_path / "x.bin"), CNV).records(3, 6)
    base = records
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base).__name__ == "mmap"
    assert not records.flags.writeable


def test_ten_million_records_take_no_memory(tmp_path):
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        os.truncate(file.fileno(), 10_000_000 * 3073)
    dataset = datasets.load(str(path), CNV)
    assert len(dataset) == 10_000_000
    dataset.records(0, 1000).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, 10_000_000, 100_000):
        assert not dataset.records(start, start + 1000).any()
        assert not dataset.labels(start, start + 1000).any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize("network", [CNV, LFC])
def test_folder_of_pictures(tmp_path, network):
    for name in ("b.png", "a.JPG", "c.jpeg"):
        shade = 255 if name == "c.jpeg" else 0
        picture = Image.new("RGB", (64, 48), (shade, shade, shade))
        picture.save(tmp_path / name, format="PNG" if name == "b.png" else "JPEG")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture")
    dataset = datasets.load(str(tmp_path), network)
    assert [dataset.source(index) for index in range(len(dataset))] == [
        str(tmp_path / name) for name in ("a.JPG", "b.png", "c.jpeg")
    ]
    assert dataset.labels(0, 3) is None
    assert dataset.records(0, 3).shape == (3, network.record_bytes)
    if network.kind == "cnv":
        assert dataset.image(0)[16, 16].tolist() == [0, 0, 0]
        assert dataset.image(2)[16, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("network", [CNV, LFC])
def test_digits_are_the_held_out_ones(network):
    dataset = datasets.load("digits", network)
    images, labels = digits.load("held-out", network.kind)
    assert len(dataset) == 599
    assert np.array_equal(dataset.records(0, 599)[:, -images.shape[1] :], images)
    assert np.array_equal(dataset.labels(0, 599), labels)
    assert dataset.records(0, 599).shape[1] == network.record_bytes


def test_reference_data_folder(shared, monkeypatch):
    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(shared / "data"))
    cifar10 = datasets.load("cifar10", CNV)
    assert len(cifar10) == 846 + 10_000
    assert cifar10.source(845).endswith("test_first846.bin, record 845")
    assert cifar10.labels(0, 5).tolist() == [3, 8, 8, 0, 6]
    mnist = datasets.load("mnist", LFC)
    assert len(mnist) == 10_000
    assert mnist.labels(0, 5).tolist() == [7, 2, 1, 0, 4]
    deer = datasets.load(str(shared / "data" / "cifar10" / "deer.bin"), CNV)
    assert len(deer) == 1
    three = datasets.load(str(shared / "data" / "mnist" / "3.image-idx3-ubyte"), LFC)
    assert (len(three), three.labels(0, 1)) == (1, None)
