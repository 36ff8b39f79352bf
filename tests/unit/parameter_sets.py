"""Random parameter sets in BNN-PYNQ's folder format, for tests that need one of each network."""

from pathlib import Path

import numpy as np

from overlays import NETWORKS


def write(root: Path, name: str, network: str, seed: int = 0, classes: int = 10) -> Path:
    """Write ``<root>/<name>/<network>``, with thresholds where sums of random weights lie.

    Bits of a word that the overlay does not use are random too.
    """
    folder = root / name / network
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shapes, _, activation_bits, pes, simds = NETWORKS[network]
    for layer, (shape, pe, simd) in enumerate(zip(shapes, pes, simds)):
        columns = shape.channels * shape.kernel**2
        tiles = shape.rows // pe
        counts_matches = activation_bits == 1 and (layer > 0 or network.startswith("lfc"))
        centre = columns // 2 if counts_matches else 0
        spread = 4000 if layer == 0 and network.startswith("cnv") else 8
        for element in range(pe):
            weights = rng.bytes(tiles * columns // simd * 8)
            (folder / f"{layer}-{element}-weights.bin").write_bytes(weights)
            thresholds = rng.integers(-spread, spread + 1, tiles * activation_bits) + centre
            (folder / f"{layer}-{element}-thres.bin").write_bytes(
                thresholds.astype("<i8").tobytes()
            )
    (folder / "classes.txt").write_text("".join(f"{name} {index}\n" for index in range(classes)))
    return folder
