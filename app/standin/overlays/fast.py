"""The overlays in numba: bits in 64-bit words, xor and popcount, 64 outputs at a time.

Activations are bit planes of a map, uint64 (images, side, side, channels / 64): one plane, x > 0,
where they are -1 or 1; two, x != 0 and x < 0, where they are -1, 0 or 1. Weights are bit planes
too, w > 0 and perhaps w != 0, uint64 (blocks of 64 rows, parts, words of 64 columns, 64 rows), so
that one word of x meets the same columns of 64 rows at once. A matrix is the sum of its parts.
"""

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import overload

from .lanes import broadcast, element, greater, load, popcount, splat, store

# Images that pass through a layer together: a block of weights is read once for all of them, and
# their maps (a CNV image's largest takes 7 KB) stay in the second-level cache.
CNV_BATCH = 32
LFC_BATCH = 256


class Overlay:
    """A network with its parameters, bit for bit; the same interface as ``plain.Overlay``."""

    def __init__(self, parameters):
        """parameters: what ``parameters.read`` gives."""
        self.parameters = parameters
        layers = list(parameters.layers)
        planes = 1
        if layers[0].kernel == 3:
            first = layers.pop(0)
            self._first = _pack_first(first)
            planes = first.thresholds.shape[1]
        self._layers = []
        for layer in layers:
            self._layers.append((layer, *_pack(layer, planes)))
            planes = layer.thresholds.shape[1]

    def scores(self, records):
        """Scores of a CNV network: uint8 (images, 3073) -> int16 (images, 64)."""
        scores = np.empty((len(records), 64), np.int16)
        triples, offsets, limits = self._first
        rows = _aligned((32 * len(triples) * 96,), np.int16)
        for start in range(0, len(records), CNV_BATCH):
            # A copy: numba would compile once more for arrays that are read-only or strided.
            batch = np.array(records[start : start + CNV_BATCH], order="C")
            maps = _maps(len(batch), 30, 64, limits.shape[0])
            first_layer(batch, triples, offsets, limits, rows, maps)
            self._forward(maps, scores[start : start + CNV_BATCH])
        if self.parameters.network == "cnvW1A1":
            scores += self.parameters.layers[-1].weights.shape[1]
        return scores

    def words(self, images):
        """Output words of an LFC network: uint8 (images, 784) -> uint64 (images,)."""
        bits = np.packbits(images >= 128, axis=1, bitorder="little")
        octets = np.zeros((len(images), 832 // 8), np.uint8)
        octets[:, : bits.shape[1]] = bits
        inputs = octets.view(np.uint64).reshape(len(images), 1, 1, 832 // 64)
        words = np.empty(len(images), np.uint64)
        for start in range(0, len(images), LFC_BATCH):
            maps = (inputs[start : start + LFC_BATCH],)
            words[start : start + LFC_BATCH] = self._forward(maps, None)[0].ravel()
        return words

    def _forward(self, maps, scores):
        """Bit planes through the packed layers: the last planes, or ``scores`` filled."""
        for layer, weights, limits in self._layers:
            side = (maps[0].shape[1] - layer.kernel + 1) // (1 + layer.pool)
            if len(limits):
                out = _maps(len(maps[0]), side, len(layer.weights), len(limits))
            else:
                out = scores
            hidden_layer(maps, layer.kernel, int(layer.pool), weights, limits, out)
            maps = out
        return maps


def _aligned(shape, dtype):
    """An array that starts on a cache line: a vector that straddles two costs twice."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    octets = np.zeros(size + 64, np.uint8)
    start = -octets.ctypes.data % 64
    return octets[start : start + size].view(dtype).reshape(shape)


def _maps(images, side, channels, planes):
    shape = (images, side, side, channels // 64)
    return tuple(np.zeros(shape, np.uint64) for _ in range(planes))


def _pack(layer, planes):
    """Weight planes and limits of a layer whose input has so many planes."""
    # -2 = -1 - 1: such a matrix is the sum of two with entries -1, 0 and 1.
    parts = np.maximum(layer.weights, -1)[None]
    if layer.weights.min() < -1:
        parts = np.concatenate([parts, np.minimum(layer.weights + 1, 0)[None]])
    weights = (_pack_bits(parts > 0),)
    if len(parts) > 1 or not parts.all():
        weights += (_pack_bits(parts != 0),)
    limits = layer.thresholds
    if planes == 1:
        limits = (limits - layer.weights.shape[1]) >> 1
    rows = _aligned((limits.shape[1], len(limits)), np.uint64)
    rows[:] = limits.T
    return weights, rows


def _pack_bits(bits):
    """bool (parts, rows, columns) -> uint64 (rows / 64, parts, columns / 64, 64)."""
    parts, rows, columns = bits.shape
    words = np.packbits(bits, axis=2, bitorder="little").view("<u8")
    words = words.reshape(parts, rows // 64, 64, columns // 64).transpose(1, 0, 3, 2)
    packed = _aligned(words.shape, np.uint64)
    packed[:] = words
    return packed


def _pack_first(layer):
    """The first CNV layer.

    A row's 27 weights are nine triples (a weight for R, G and B), and few triples differ: 8 with
    one-bit weights. So every pixel is weighed once by each of them, and an output is the sum of
    nine such planes. Their rows lie (y, triple, dx, 32 pixels), dx being the shift to the left, so
    that all are read from whole cache lines.

    Returns the triples, int16 (triples, 3); offsets of an output's nine rows, int64 (64, 9); and
    limits, int16 (planes, 64), clipped: no sum gets near the ends.
    """
    triples, codes = np.unique(layer.weights.reshape(-1, 3), axis=0, return_inverse=True)
    taps = np.arange(9)
    offsets = (taps // 3 * len(triples) + codes.reshape(64, 9)) * 3 + taps % 3
    limits = np.clip(layer.thresholds.T, -32768, 32767).astype(np.int16)
    return triples.astype(np.int16), (offsets * 32).astype(np.int64), np.ascontiguousarray(limits)


@njit(cache=True)
def first_layer(records, triples, offsets, limits, rows, out):
    """records uint8 (images, 3073) -> bit planes ``out``; see ``_pack_first``."""
    pixels = np.empty((3, 32), np.int16)
    flat_pixels, flat_triples, flat_limits = pixels.ravel(), triples.ravel(), limits.ravel()
    flat_rows = rows.ravel()
    flat_offsets = offsets.ravel()
    masks = np.empty((len(out), 64), np.uint32)
    flat_masks = masks.ravel()
    step = len(triples) * 96
    for image in range(len(records)):
        for y in range(32):
            for channel in range(3):
                for x in range(32):
                    u = np.int16(records[image, 1 + channel * 1024 + y * 32 + x])
                    q = np.int16(u - 128 + (u >= 128))
                    pixels[channel, x] = min(q, np.int16(127))
            red, green, blue = load(flat_pixels, 0), load(flat_pixels, 32), load(flat_pixels, 64)
            for triple in range(len(triples)):
                plane = (
                    red * broadcast(flat_triples, triple * 3)
                    + green * broadcast(flat_triples, triple * 3 + 1)
                    + blue * broadcast(flat_triples, triple * 3 + 2)
                )
                # Shifted stores spill into the last lanes of the copy before, which no one needs.
                for dx in range(3):
                    store(flat_rows, y * step + (triple * 3 + dx) * 32 - dx, plane)
            if y < 2:
                continue
            base = (y - 2) * step
            for row in range(64):
                total = load(flat_rows, base + element(flat_offsets, row * 9))
                for tap in range(1, 9):
                    total = total + load(flat_rows, base + element(flat_offsets, row * 9 + tap))
                for plane in range(len(out)):
                    limit = broadcast(flat_limits, plane * 64 + row)
                    masks[plane, row] = greater(total, limit)
            # Bit x of a row's mask -> bit row of pixel x's word.
            for index in range(len(out)):
                for x in range(30):
                    bit = splat(flat_masks, np.int32(1 << x))
                    flags = load(flat_masks, index * 64) & bit
                    out[index][image, y - 2, x, 0] = greater(flags, splat(flat_masks, np.int32(0)))
    finish(out)


@njit(cache=True)
def hidden_layer(x, kernel, pool, weights, limits, out):
    """Bit planes x -> bit planes ``out``, zeroed before, or the last layer's sums (images, 64)."""
    images, side, _, words = x[0].shape
    blocks, parts, columns, _ = weights[0].shape
    flat_x, flat_w, flat_limits = flat(x), flat(weights), limits.ravel()
    for block in range(blocks):
        for image in range(images):
            for row in range(side - kernel + 1):
                for column in range(side - kernel + 1):
                    patch = ((image * side + row) * side + column) * words
                    start = block * parts * columns * 64
                    total = dot(flat_x, patch, side * words, kernel, words, flat_w, start, parts)
                    emit(total, flat_limits, out, image, row >> pool, column >> pool, block)
    finish(out)


def flat(arrays):
    """Each array of a tuple with all its elements in one dimension."""


@overload(flat)
def _flat(arrays):
    if len(arrays) == 1:
        return lambda arrays: (arrays[0].ravel(),)
    return lambda arrays: (arrays[0].ravel(), arrays[1].ravel())


def dot(x, patch, stride, kernel, words, weights, start, parts):
    """Sums of 64 rows of weights with a patch of x, as the limits count them."""


@overload(dot, inline="always")
def _dot(x, patch, stride, kernel, words, weights, start, parts):
    if len(x) == 1:
        # sum = columns - 2 * differing bits; the limits are for the differing bits, negative.
        def binary(x, patch, stride, kernel, words, weights, start, parts):
            w, bits = weights[0], x[0]
            total = splat(w, 0)
            for y in range(kernel):
                for k in range(kernel * words):
                    differ = load(w, start) ^ broadcast(bits, patch + y * stride + k)
                    total = total - popcount(differ)
                    start += 64
            return total

        return binary
    if len(weights) == 1:
        # A product is 1 where x is not 0 and one of w > 0, x < 0 holds: sum = 2 * ones - products.
        def mixed(x, patch, stride, kernel, words, weights, start, parts):
            positive, nonzero, negative = weights[0], x[0], x[1]
            ones = splat(positive, 0)
            products = 0
            for y in range(kernel):
                for k in range(kernel * words):
                    place = patch + y * stride + k
                    product = load(positive, start) ^ broadcast(negative, place)
                    ones = ones + popcount(product & broadcast(nonzero, place))
                    products += popcount(element(nonzero, place))
                    start += 64
            return ones + ones - splat(positive, products)

        return mixed

    def ternary(x, patch, stride, kernel, words, weights, start, parts):
        positive, entries, nonzero, negative = weights[0], weights[1], x[0], x[1]
        ones = splat(positive, 0)
        products = splat(positive, 0)
        for _ in range(parts):
            for y in range(kernel):
                for k in range(kernel * words):
                    place = patch + y * stride + k
                    product = load(positive, start) ^ broadcast(negative, place)
                    present = load(entries, start) & broadcast(nonzero, place)
                    ones = ones + popcount(product & present)
                    products = products + popcount(present)
                    start += 64
        return ones + ones - products

    return ternary


def emit(total, limits, out, image, row, column, block):
    """Write 64 outputs of a pixel."""


@overload(emit, inline="always")
def _emit(total, limits, out, image, row, column, block):
    if isinstance(out, types.Array):
        return lambda total, limits, out, image, row, column, block: store(
            out.ravel(), image * 64, total
        )

    def planes(total, limits, out, image, row, column, block):
        for plane in range(len(out)):
            limit = load(limits, (plane * out[0].shape[3] + block) * 64)
            out[plane][image, row, column, block] |= greater(total, limit)

    return planes


def finish(out):
    """Turn the comparisons c0, c1 into the planes that the next layer takes: x = c0 + c1 - 1."""


@overload(finish)
def _finish(out):
    if isinstance(out, types.Array) or len(out) == 1:
        return lambda out: None

    def ternary(out):
        low, high = out[0].ravel(), out[1].ravel()
        for index in range(low.size):
            low[index] = ~(low[index] ^ high[index])
            high[index] = ~high[index]

    return ternary
