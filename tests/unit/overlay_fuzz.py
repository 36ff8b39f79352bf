"""Random parameter folders, and the comparison of both paths over them.

Run as ``python overlay_fuzz.py NETWORK SETS`` with app/standin on the path.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from overlays import NETWORKS, parameters, plain


def random_folder(folder, network, rng):
    """Write a parameter set of random memories, as mean as the format allows.

    Thresholds lie where sums do, so that outputs vary, but some anywhere; the bits above them
    are noise, pairs are in no order, and one file in twenty is cut, perhaps inside a word. Two-bit
    weights of a layer are anything, or never -2, or never even.
    """
    shapes, weight_bits, activation_bits, pes, simds = NETWORKS[network]
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(20)))

    def write(name, words):
        octets = words.astype("<u8").tobytes()
        if rng.random() < 0.05:
            octets = octets[: rng.integers(len(octets))]
        (folder / name).write_bytes(octets)

    for index, (shape, pe, simd) in enumerate(zip(shapes, pes, simds)):
        columns = shape.channels * shape.kernel**2
        tiles = shape.rows // pe
        weights = rng.integers(2**64, size=(pe, tiles * columns // simd), dtype=np.uint64)
        kind = rng.integers(3)
        if weight_bits == 2 and kind:
            low = weights & np.uint64(0x5555555555555555) | np.uint64(
                0x5555555555555555 * (kind - 1)
            )
            weights = low | (weights & low << np.uint64(1))
        last = index == len(shapes) - 1
        pixels = shapes is parameters.CNV and index == 0
        spread = 768 if pixels else columns**0.5 * rng.uniform(0.2, 1.5)
        middle = columns / 2 if activation_bits == 1 and not pixels else 0
        count = tiles * (1 if last else activation_bits)
        thresholds = rng.normal(middle, spread, (pe, count)).astype(np.int64).view(np.uint64)
        noise = rng.integers(2**64, size=thresholds.shape, dtype=np.uint64)
        kept = np.uint64(2**24 - 1 if pixels else 2**16 - 1)
        kept = np.where(rng.random(thresholds.shape) < 0.05, np.uint64(0), kept)
        thresholds = thresholds & kept | noise & ~kept
        for element in range(pe):
            write(f"{index}-{element}-weights.bin", weights[element])
            if not (shapes is parameters.CNV and last):
                write(f"{index}-{element}-thres.bin", thresholds[element])


def compare(network, sets):
    """Raise AssertionError where the paths differ on one of so many sets, two images each."""
    from overlays import fast

    rng = np.random.default_rng(list(network.encode()))
    tmpfs = Path("/dev/shm")
    cnv = network.startswith("cnv")
    method, size = ("scores", 3073) if cnv else ("words", 784)
    seen = set()
    for case in range(sets):
        with tempfile.TemporaryDirectory(dir=tmpfs if tmpfs.is_dir() else None) as folder:
            random_folder(Path(folder) / network, network, rng)
            loaded = parameters.read(Path(folder) / network)
        images = rng.integers(256, size=(2, size), dtype=np.uint8)
        expected = getattr(plain.Overlay(loaded), method)(images)
        result = getattr(fast.Overlay(loaded), method)(images)
        np.testing.assert_array_equal(result, expected, err_msg=f"{network}, set {case}")
        seen.update(expected.ravel().tolist())
    assert len(seen) > 50, "the random sets say too little"


if __name__ == "__main__":
    compare(sys.argv[1], int(sys.argv[2]))
