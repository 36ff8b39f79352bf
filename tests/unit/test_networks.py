"""What networks take, and how their parameter sets are found."""

import shutil
import tarfile

import numpy as np
import pytest

from distributed_pynq import networks, storage
from distributed_pynq.errors import InputError


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder, an empty cache, and no web."""
    monkeypatch.setenv("DISTRIBUTED_PYNQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(storage.SITES, "bnn-pynq", "http://127.0.0.1:9")
    return tmp_path / "data"


def make_set(root, name, network="lfcW1A1"):
    folder = root / name / network
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("yes\nno\n")
    (folder / "0-0-weights.bin").write_bytes(bytes(8))
    return folder


def test_records_travel_as_they_lie_in_cifar_files():
    network = networks.get("cnvW2A2")
    records = np.arange(2 * 3073, dtype=np.uint64).astype(np.uint8).reshape(2, 3073)
    encoded = network.encode(records)
    assert bytes(encoded) == records.tobytes()
    assert len(encoded) == 2 * network.travel_bytes
    assert np.shares_memory(np.frombuffer(encoded, np.uint8), records)


def test_lfc_travels_as_one_bit_a_pixel_first_pixel_first():
    network = networks.get("lfcW1A1")
    records = np.zeros((2, 784), np.uint8)
    records[0, 0], records[0, 9], records[1, 783], records[1, 1] = 128, 255, 200, 127
    encoded = bytes(network.encode(records))
    assert len(encoded) == 2 * network.travel_bytes == 196
    assert encoded[:2] == bytes([0b10000000, 0b01000000])
    assert encoded[98:] == bytes(97) + b"\x01"


def test_unknown_network_says_which_there_are():
    with pytest.raises(InputError, match=r"'cnv': expected one of cnvW1A1, .*, lfcW1A2$"):
        networks.get("cnv")


@pytest.mark.parametrize(
    ("dataset", "network", "params"),
    [
        ("digits", "cnvW1A1", "digits"),
        ("cifar10", "cnvW2A2", "cifar10"),
        ("mnist", "lfcW1A1", "mnist"),
        ("some/where.bin", "cnvW1A2", "cifar10"),
        ("photos", "lfcW1A2", "mnist"),
    ],
)
def test_default_parameter_set(dataset, network, params):
    assert networks.default_params(dataset, networks.get(network)) == params


def test_set_given_by_its_path(data, tmp_path, monkeypatch):
    make_set(tmp_path / "sets", "mine")
    lfc = networks.get("lfcW1A1")
    assert networks.parameter_root(str(tmp_path / "sets" / "mine"), lfc) == tmp_path / "sets"
    monkeypatch.chdir(tmp_path / "sets")
    assert networks.parameter_root("mine", lfc) == tmp_path / "sets"


def test_data_folder_comes_first(data):
    make_set(data / "bnn-pynq", "digits")
    lfc = networks.get("lfcW1A1")
    assert networks.parameter_root("digits", lfc) == data / "bnn-pynq"
    make_set(data / "params", "digits")
    assert networks.parameter_root("digits", lfc) == data / "params"


def test_archive_is_unpacked_beside_a_read_only_data_folder_once(data, tmp_path, monkeypatch):
    make_set(tmp_path / "sets", "mnist")
    (data / "bnn-pynq").mkdir(parents=True)
    archive = data / "bnn-pynq" / "params.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "sets", ".")
    lfc = networks.get("lfcW1A1")
    root = networks.parameter_root("mnist", lfc)
    assert (root / "mnist" / "lfcW1A1" / "classes.txt").read_text() == "yes\nno\n"
    assert root.is_relative_to(tmp_path / "cache")
    assert [path.name for path in data.rglob("*") if path.is_file()] == ["params.tar.gz"]
    assert [path.name for path in root.parent.iterdir()] == [root.name]

    monkeypatch.setattr(networks, "_unpack", None)
    assert networks.parameter_root("mnist", lfc) == root


def test_archive_cannot_write_elsewhere(data, tmp_path):
    stranger = make_set(tmp_path / "sets", "evil") / "classes.txt"
    (data / "bnn-pynq").mkdir(parents=True)
    with tarfile.open(data / "bnn-pynq" / "params.tar.gz", "w:gz") as tar:
        tar.add(stranger, "../../lfcW1A1/classes.txt")
        tar.add(stranger, "/mnist/lfcW1A1/classes.txt")
    root = networks.parameter_root("mnist", networks.get("lfcW1A1"))
    assert [str(path.relative_to(root)) for path in root.rglob("*.txt")] == [
        "mnist/lfcW1A1/classes.txt"
    ]


@pytest.mark.parametrize("damage", ["truncated", "not an archive", "nothing in it"])
def test_damaged_archive_leaves_nothing(data, tmp_path, damage):
    folder = data / "bnn-pynq"
    folder.mkdir(parents=True)
    archive = folder / "params.tar.gz"
    noise = tmp_path / "noise"
    noise.write_bytes(np.random.default_rng(0).bytes(100_000))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(
            noise,
            "noise" if damage == "nothing in it" else "mnist/lfcW1A1/0-0-weights.bin",
        )
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:50_000])
    elif damage == "not an archive":
        archive.write_bytes(noise.read_bytes())
    with pytest.raises(InputError, match=r"params.tar.gz: (damaged|cannot be unpacked|no param)"):
        networks.parameter_root("mnist", networks.get("lfcW1A1"))
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_unknown_set_says_which_there_are(data):
    make_set(data / "params", "mine")
    with pytest.raises(InputError) as refusal:
        networks.parameter_root("nope", networks.get("lfcW1A1"))
    assert str(refusal.value) == (
        "parameter set 'nope': not there for lfcW1A1, expected one of "
        "chars_merged, digits, mine, mnist, or the path of a set's folder"
    )


def test_set_of_another_network_says_which_there_are(data):
    with pytest.raises(InputError, match=r"'mnist': not there for cnvW2A2, .* cifar10, digits,"):
        networks.parameter_root("mnist", networks.get("cnvW2A2"))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_digits_come_with_the_package(data, name):
    root = networks.parameter_root("digits", networks.get(name))
    classes = (root / "digits" / name / "classes.txt").read_text().split()
    assert classes == list("0123456789")


def test_shipped_sets_have_the_checksums_that_downloads_must_have(data, shared):
    folder = data / "bnn-pynq"
    folder.mkdir(parents=True)
    shutil.copy(shared / "data" / "bnn-pynq" / "params.tar.gz", folder)
    for key, expected in networks.BNN_PYNQ_SETS.items():
        params, network = key.split("/")
        root = networks.parameter_root(params, networks.get(network))
        assert networks.checksum(root / params / network) == expected
