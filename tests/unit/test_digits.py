"""The built-in digits and the parameter sets trained on them."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import overlays
from distributed_pynq import digits, networks
from overlays import classes as classes_of

SHIPPED = {
    "lfcW1A1": "mnist",
    "lfcW1A2": "mnist",
    "cnvW1A1": "cifar10",
    "cnvW1A2": "cifar10",
    "cnvW2A2": "cifar10",
}
"""A complete parameter set of BNN-PYNQ for each network."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked as anyone would."""
    folder = tmp_path_factory.mktemp("digits-params")
    with tarfile.open(networks.BUILT_IN) as archive:
        for member in archive:
            archive.extract(member, folder)
    return folder / "digits"


def files(folder: Path) -> dict[str, int]:
    """Names and sizes of a folder's files."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    published = datasets.load_digits()
    originals, labels = digits.table()
    assert originals.shape == (1797, 8, 8)
    assert np.array_equal(originals, published.images)
    assert np.array_equal(labels, published.target)


@pytest.mark.parametrize(("kind", "width"), [("lfc", 784), ("cnv", 3072)])
def test_the_parts_are_all_digits_and_share_none(kind: str, width: int) -> None:
    training, taught = digits.load("training", kind)
    held_out, asked = digits.load("held-out", kind)
    assert training.shape == (1198, width) and held_out.shape == (599, width)
    assert training.dtype == held_out.dtype == taught.dtype == asked.dtype == np.uint8
    labels = digits.table()[1]
    assert np.array_equal(asked, labels[2::3])
    assert np.array_equal(taught, np.delete(labels, np.s_[2::3]))
    assert not {*map(bytes, training)} & {*map(bytes, held_out)}


def test_enlarged_digits_keep_their_place_and_ink() -> None:
    originals, _ = digits.table()
    pictures = digits.enlarge(originals, 28)
    assert pictures.dtype == np.uint8 and pictures.shape == (1797, 28, 28)
    assert pictures.max() == 255
    assert not pictures[:, 0].any() and not pictures[:, -1].any()
    # As bright on the whole as the 8x8 pixels in their frame of 10x10.
    ink = originals.mean() / 16 * 64 / 100
    assert pictures.mean() / 255 == pytest.approx(ink, rel=0.05)
    # Three channels, one after the other, all the same.
    colour = digits.load("held-out", "cnv")[0].reshape(-1, 3, 32 * 32)
    assert (colour == colour[:, :1]).all()


@pytest.mark.parametrize("network", SHIPPED)
def test_sets_are_complete(sets: Path, network: str) -> None:
    """Every memory of every processing element of the standard folding is there, and full."""
    shape = overlays.NETWORKS[network]
    sizes = {"classes.txt": len("0\n") * 10}
    folding = zip(shape.shapes, shape.pe, shape.simd, strict=True)
    for index, (layer, pe, simd) in enumerate(folding):
        last = index == len(shape.shapes) - 1
        columns = layer.channels * layer.kernel**2
        bits = 1 if last else shape.activation_bits
        for element in range(pe):
            sizes[f"{index}-{element}-weights.bin"] = 8 * layer.rows * columns // (pe * simd)
            if not (last and network.startswith("cnv")):
                sizes[f"{index}-{element}-thres.bin"] = 8 * bits * layer.rows // pe
    assert files(sets / network) == sizes
    assert (sets / network / "classes.txt").read_text().split() == list(digits.CLASSES)


@pytest.mark.parametrize("network", SHIPPED)
def test_sets_are_laid_out_as_those_of_bnn_pynq(
    sets: Path, shared: Path, tmp_path: Path, network: str
) -> None:
    with tarfile.open(shared / "data" / "bnn-pynq" / "params.tar.gz") as archive:
        for member in archive:
            if f"{SHIPPED[network]}/{network}/" in member.name:
                archive.extract(member, tmp_path)
    (shipped,) = tmp_path.rglob(network)
    ours, theirs = files(sets / network), files(shipped)
    assert ours.pop("classes.txt") and theirs.pop("classes.txt")
    assert ours == theirs


@pytest.mark.parametrize("network", SHIPPED)
def test_held_out_digits_are_recognised(sets: Path, network: str) -> None:
    images, labels = digits.load("held-out", network[:3])
    overlay = overlays.load(sets / network)
    if network.startswith("cnv"):
        found = classes_of.cnv_many(overlay.scores(np.insert(images, 0, labels, axis=1)), 10)
    else:
        found = classes_of.lfc_many(overlay.words(images), 10)
    assert np.mean(found == labels) >= 0.96


def test_archive_is_packed_without_a_trace_of_who_packed_it() -> None:
    with tarfile.open(networks.BUILT_IN) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert not member.uname and not member.gname and member.isfile()
