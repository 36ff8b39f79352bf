"""Classes as BNN-PYNQ's host code reads them off the outputs: of many images, and of just one."""

import math

import numpy as np


def cnv_many(scores, classes):
    """Classes of ``classify_cifars``: the first maximum above 0, and class 0 if there is none.

    scores: int16 (images, 64). classes: number of classes. Returns int32 (images,).
    """
    return np.argmax(np.maximum(scores[:, :classes], 0), axis=1).astype(np.int32)


def cnv_one(scores, classes):
    """Class of a single image: the first maximum, be it negative. scores: int16 (64,)."""
    return int(np.argmax(scores[:classes]))


def lfc_many(words, classes):
    """Classes of ``classify_mnists``: the highest bit set among the low ``classes``, 0 if none is.

    words: uint64 (images,). Returns int32 (images,).
    """
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")[:, :classes]
    return (np.arange(bits.shape[1]) * bits).max(axis=1).astype(np.int32)


def lfc_one(word, classes):
    """Class of a single image: round(log2(word)).

    Right for one set bit only; with several, the rounding can name the class above the highest
    bit, even ``classes`` itself. The board does the same.
    """
    kept = int(word) & ((1 << classes) - 1)
    return math.floor(math.log2(kept) + 0.5) if kept else 0
