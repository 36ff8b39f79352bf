"""The overlays against BNN-PYNQ's own runtime and against each other, in old interpreters too."""

import gzip
import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "app" / "standin"
sys.path[:0] = [str(STANDIN), str(Path(__file__).parent)]

from overlay_fuzz import random_folder  # noqa: E402
from overlays import NETWORKS, classes, load, parameters  # noqa: E402

PATHS = ["plain", "fast"]


@pytest.fixture(scope="module")
def unpacked(shared, tmp_path_factory):
    """BNN-PYNQ's parameter sets and the fuzz cases, unpacked."""
    folder = tmp_path_factory.mktemp("overlays")
    for archive in ("data/bnn-pynq/params.tar.gz", "golden/fuzz.tar.gz"):
        with tarfile.open(shared / archive) as tar:
            tar.extractall(folder)
    return folder


def overlay(path, folder, network):
    pytest.importorskip("numba" if path == "fast" else "numpy")
    return importlib.import_module(f"overlays.{path}").Overlay(parameters.read(folder, network))


def fuzz_case(folder, network):
    """Parameter folder, images (or records) and expected scores (or classes) of a fuzz case."""
    folder = folder / network
    name, header, size = (
        ("images.bin", 0, 3073) if network.startswith("cnv") else ("images.idx", 16, 784)
    )
    images = np.fromfile(folder / name, np.uint8)[header:].reshape(-1, size)
    return folder / "params", images, np.load(folder / "expected.npy")


def outputs(overlay, images):
    """What golden/fuzz holds of a network: scores, or classes among 20."""
    if overlay.parameters.network.startswith("cnv"):
        return overlay.scores(images)
    return classes.lfc_many(overlay.words(images), 20)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", [name for name in NETWORKS if name.startswith("cnv")])
def test_scores_of_real_photographs(shared, unpacked, network, path):
    records = np.fromfile(shared / "data/cifar10/test_first846.bin", np.uint8).reshape(-1, 3073)
    (golden,) = map(np.load, (shared / "golden").glob(f"cifar10-{network}-first*.npy"))
    scores = overlay(path, unpacked / "cifar10" / network, network).scores(records[: len(golden)])
    np.testing.assert_array_equal(scores[:, : golden.shape[1]], golden)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", ["lfcW1A1", "lfcW1A2"])
def test_classes_of_real_digits(shared, unpacked, network, path):
    with gzip.open(shared / "data/mnist/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    (golden,) = map(np.load, (shared / "golden").glob(f"mnist-{network}-first*.npy"))
    words = overlay(path, unpacked / "mnist" / network, network).words(images[: len(golden)])
    np.testing.assert_array_equal(classes.lfc_many(words, 10), golden)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", NETWORKS)
def test_random_memories_give_what_the_runtime_gives(unpacked, network, path):
    folder, images, expected = fuzz_case(unpacked, network)
    np.testing.assert_array_equal(outputs(overlay(path, folder, network), images), expected)


@pytest.mark.parametrize("folder", ["chars_merged/lfcW1A1", "streetview/cnvW1A1"])
def test_shipped_sets_with_short_files_load(unpacked, folder):
    loaded = load(unpacked / folder).parameters
    assert loaded.network == folder.split("/")[1]
    # A cut memory is zeros from there on: weights of -1.
    assert (loaded.layers[-1].weights[-1] == -1).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_both_paths_agree_on_200_random_parameter_sets(tmp_path, network):
    pytest.importorskip("numba")
    # A process of its own with one BLAS thread: layers of two images are too small to share out.
    environment = {**os.environ, "PYTHONPATH": str(STANDIN), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("overlay_fuzz.py"), network, "200"]
    subprocess.run(command, env=environment, check=True)


ELSEWHERE = """
import sys
import numpy as np
from overlays import load
folder, network, images, answer = sys.argv[1:]
overlay = load(folder, network)
method = overlay.scores if network.startswith("cnv") else overlay.words
np.save(answer, method(np.load(images)))
print(type(overlay).__module__)
"""


def run_elsewhere(python, folder, network, images, tmp_path, **environment):
    """What ``load`` makes of a fuzz case in another process: the path it took, and the outputs."""
    np.save(tmp_path / "images.npy", images)
    arguments = [folder, network, tmp_path / "images.npy", tmp_path / "answer.npy"]
    environment = {**os.environ, "PYTHONPATH": str(STANDIN), **environment}
    done = subprocess.run(
        [python, "-c", ELSEWHERE, *arguments], env=environment, stdout=subprocess.PIPE, check=True
    )
    answer = np.load(tmp_path / "answer.npy")
    taken = done.stdout.decode().strip()
    return taken, answer if network.startswith("cnv") else classes.lfc_many(answer, 20)


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_path_in_python_36(board_python, unpacked, tmp_path, network):
    folder, images, expected = fuzz_case(unpacked, network)
    taken, answer = run_elsewhere(board_python("3.6"), folder, network, images, tmp_path)
    assert taken == "overlays.plain"
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("network", ["cnvW2A2", "lfcW1A2"])
def test_fast_path_without_vector_extensions(unpacked, tmp_path, network):
    """The two networks between them take every kernel, here compiled for any processor."""
    pytest.importorskip("numba")
    folder, images, expected = fuzz_case(unpacked, network)
    taken, answer = run_elsewhere(
        sys.executable, folder, network, images, tmp_path,
        NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert taken == "overlays.fast"
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("path", PATHS)
def test_any_number_of_images(unpacked, path):
    """None, more than pass through a layer together, and arrays that are strided or read-only."""
    cnv = overlay(path, unpacked / "cifar10/cnvW1A1", "cnvW1A1")
    lfc = overlay(path, unpacked / "mnist/lfcW1A2", "lfcW1A2")
    rng = np.random.default_rng(0)
    for compute, size, count in ((cnv.scores, 3073, 40), (lfc.words, 784, 300)):
        images = rng.integers(256, size=(count, size), dtype=np.uint8)
        images.flags.writeable = False
        whole = compute(images)
        assert compute(images[:0]).shape == (0, *whole.shape[1:])
        np.testing.assert_array_equal(compute(images[::7]), whole[::7])


def test_weights_of_nothing_but_minus_2(tmp_path):
    """The one case in which a matrix of two parts has no zeros in either."""
    random_folder(tmp_path / "cnvW2A2", "cnvW2A2", np.random.default_rng(0))
    for file in (tmp_path / "cnvW2A2").glob("8-*-weights.bin"):
        file.write_bytes(b"\xaa" * 8192 * 8)
    images = np.random.default_rng(1).integers(256, size=(3, 3073), dtype=np.uint8)
    expected, scores = (
        overlay(path, tmp_path / "cnvW2A2", "cnvW2A2").scores(images) for path in PATHS
    )
    assert expected.any()
    np.testing.assert_array_equal(scores, expected)


def test_a_missing_file_is_named(tmp_path):
    random_folder(tmp_path / "lfcW1A1", "lfcW1A1", np.random.default_rng(0))
    for name in ("2-31-thres.bin", "0-7-weights.bin", "classes.txt"):
        content = (tmp_path / "lfcW1A1" / name).read_bytes()
        (tmp_path / "lfcW1A1" / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load(tmp_path / "lfcW1A1")
        (tmp_path / "lfcW1A1" / name).write_bytes(content)
    assert load(tmp_path / "lfcW1A1").parameters.classes[3] == "class 3"


def test_an_unknown_network_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no network 'cnvW3A3', known are cnvW1A1, "):
        load(tmp_path / "cnvW3A3")


def test_classes_of_many_cnv_images_need_a_score_above_0():
    scores = np.array([[-5, -2, -2, 9], [0, 0, 7, 9], [3, 7, 7, 9]], np.int16)
    assert classes.cnv_many(scores, 3).tolist() == [0, 2, 1]
    assert [classes.cnv_one(row, 3) for row in scores] == [1, 2, 1]


def test_classes_of_lfc_words():
    words = np.array([0, 1, 0b110, 1 << 9 | 1 << 8, 1 << 10, 1 << 63], np.uint64)
    assert classes.lfc_many(words, 10).tolist() == [0, 0, 2, 9, 0, 0]
    assert classes.lfc_many(words, 64).tolist() == [0, 0, 2, 9, 10, 63]
    # log2(6) = 2.58 and log2(768) = 9.58 round up, the latter beyond the last class.
    assert [classes.lfc_one(word, 10) for word in words] == [0, 0, 3, 10, 0, 0]
