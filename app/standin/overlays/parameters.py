"""BNN-PYNQ parameter folders: the memories of the five overlays as matrices.

A folder holds ``L-P-weights.bin`` and ``L-P-thres.bin`` (layer L, processing element P,
little-endian 64-bit words) and ``classes.txt``. An overlay folds a layer's matrix over PE
processing elements that each take SIMD columns at a time: with SF = columns / SIMD, word
``nf * SF + sf`` of element ``pe`` holds row ``nf * PE + pe``, columns ``sf * SIMD ...``. The
folding is wired into the bitstream, so it is a constant here; a short file reads as zeros from its
end on.
"""

import os
from typing import List, NamedTuple

import numpy as np


class Layer(NamedTuple):
    """One layer as a matrix, ``thresholds < weights @ x`` elementwise being its activation.

    weights: int8 (rows, columns), -2..1; a convolution's column is (ky * 3 + kx) * channels + c.
    thresholds: int32 (rows, 0..2), ascending, in units of the signed sum ``weights @ x`` whatever
    units the overlay itself counts in. One threshold makes an output of -1 or 1, two of them -1, 0
    or 1; a layer without any gives its sums.
    """

    weights: np.ndarray
    thresholds: np.ndarray
    kernel: int
    pool: bool


class Parameters(NamedTuple):
    """A network's layers and its classes' names."""

    network: str
    layers: List[Layer]
    classes: List[str]


class Shape(NamedTuple):
    """A layer of every network of a kind: square kernel, then perhaps a 2x2 maximum pool."""

    rows: int
    channels: int
    kernel: int = 1
    pool: bool = False


CNV = (
    Shape(64, 3, kernel=3),
    Shape(64, 64, kernel=3, pool=True),
    Shape(128, 64, kernel=3),
    Shape(128, 128, kernel=3, pool=True),
    Shape(256, 128, kernel=3),
    Shape(256, 256, kernel=3),
    Shape(512, 256),
    Shape(512, 512),
    Shape(64, 512),
)
LFC = (Shape(1024, 832), Shape(1024, 1024), Shape(1024, 1024), Shape(64, 1024))


class Network(NamedTuple):
    """What a bitstream fixes: layers, bits of weights and activations, folding of each layer."""

    shapes: tuple
    weight_bits: int
    activation_bits: int
    pe: tuple
    simd: tuple


_CNV_W1 = (16, 32, 16, 16, 4, 1, 1, 1, 4), (3, 32, 32, 32, 32, 32, 4, 8, 1)
_CNV_W2 = (8, 16, 8, 8, 4, 1, 1, 2, 4), (3, 16, 16, 16, 8, 8, 2, 2, 1)
_LFC_W1 = (32, 64, 32, 16), (64, 32, 64, 8)
NETWORKS = {
    "cnvW1A1": Network(CNV, 1, 1, *_CNV_W1),
    "cnvW1A2": Network(CNV, 1, 2, *_CNV_W1),
    "cnvW2A2": Network(CNV, 2, 2, *_CNV_W2),
    "lfcW1A1": Network(LFC, 1, 1, *_LFC_W1),
    "lfcW1A2": Network(LFC, 1, 2, *_LFC_W1),
}


def read(folder, network=None):
    """Read a parameter folder.

    folder: ``.../<dataset>/<network>``. network: by default the folder's own name.
    Returns Parameters. Raises ValueError for an unknown network, and FileNotFoundError, which names
    the file, where one is missing.
    """
    folder = os.path.abspath(str(folder))
    network = network or os.path.basename(folder)
    if network not in NETWORKS:
        raise ValueError(f"{folder}: no network {network!r}, known are {', '.join(NETWORKS)}")
    with open(os.path.join(folder, "classes.txt"), encoding="utf-8") as lines:
        classes = [line.strip() for line in lines if line.strip()]
    layers = [_layer(folder, network, index) for index in range(len(NETWORKS[network].shapes))]
    return Parameters(network, layers, classes)


def _layer(folder, network, index):
    shapes, weight_bits, activation_bits, pes, simds = NETWORKS[network]
    shape, pe, simd = shapes[index], pes[index], simds[index]
    columns = shape.channels * shape.kernel**2
    first, last = index == 0, index == len(shapes) - 1

    tiles = shape.rows // pe
    words = _memory(folder, index, pe, "weights", tiles * columns // simd)
    weights = _unpack(words, simd, weight_bits).reshape(pe, tiles, columns)
    weights = np.ascontiguousarray(weights.transpose(1, 0, 2)).reshape(shape.rows, columns)

    count = 1 if last else activation_bits
    if shapes is CNV and last:
        thresholds = np.empty((shape.rows, 0), np.int32)
    else:
        words = _memory(folder, index, pe, "thres", tiles * count)
        words = words.reshape(pe, tiles, count).transpose(1, 0, 2).reshape(shape.rows, count)
        if shapes is CNV and first:
            # 24 bits in 1/256, and pixels count in 1/128: T < 2 * sum.
            thresholds = ((words << np.uint64(8)).astype(np.int32) >> 8) >> 1
        else:
            thresholds = words.astype(np.int16).astype(np.int32)
            if activation_bits == 1:
                # The overlay counts matching bits, (sum + columns) / 2.
                thresholds = 2 * thresholds - columns
        thresholds.sort(axis=1)
    return Layer(weights, thresholds, shape.kernel, shape.pool)


def _memory(folder, layer, pes, kind, words):
    """The words of all elements' memories of one layer, uint64 (pes, words)."""
    memory = np.zeros((pes, words), "<u8")
    for pe in range(pes):
        with open(os.path.join(folder, f"{layer}-{pe}-{kind}.bin"), "rb") as file:
            file.readinto(memory[pe].view(np.uint8))
    return memory


def _unpack(words, simd, bits):
    """Weights of (..., words) as int8 (..., words, simd): lane s sits at bit s * bits."""
    lanes = simd * bits
    octets = words.view(np.uint8).reshape((*words.shape, 8))[..., : (lanes + 7) // 8]
    flags = np.unpackbits(octets, axis=-1, bitorder="little")[..., :lanes].view(np.int8)
    if bits == 1:
        return 2 * flags - 1
    return flags[..., 0::2] - 2 * flags[..., 1::2]
