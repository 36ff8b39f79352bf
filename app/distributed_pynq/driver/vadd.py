"""The job "vadd": two vectors of uint32 through the kernel vadd_1 of an xclbin, to their sum."""

import os
import sys
import time

import numpy as np

import pynq

ITEM_BYTES = 4


class Job:
    """The kernel, in the device.

    Parameters
    ----------
    overlay : str
        Path of the xclbin as pynq takes it, e.g. "intro.xclbin".

    Attributes
    ----------
    description : dict
        Nothing more to say in the answer to "load".

    Raises
    ------
    OSError
        There is no such file.
    """

    def __init__(self, overlay: str):
        self._overlay = pynq.Overlay(overlay)
        self.description = {}

    def run(self, input: str, output: str, size: int):
        """Add two vectors, modulo 2**32.

        Parameters
        ----------
        input : str
            File of two vectors, one after the other, uint32 (size,) each, little endian.
        output : str
            File to write: their sum, uint32 (size,), little endian.
        size : int
            Numbers in a vector.

        Returns
        -------
        dict
            "seconds": time of the kernel.

        Raises
        ------
        ValueError, OSError
            A field is wrong, or a file cannot be read or written.
        """
        expected, found = 2 * ITEM_BYTES * size, os.path.getsize(input)
        if size < 1 or found != expected:
            raise ValueError(
                f"field 'input': {input} has {found} bytes, two vectors of {size} have {expected}"
            )
        try:
            result, seconds = self._add(np.fromfile(input, "<u4").reshape(2, size))
        except RuntimeError as error:
            # The card is gone or its state unknown: whoever opens it afresh will see.
            sys.exit(f"the card failed: {error}")
        with open(output, "wb") as file:
            file.write(result.astype("<u4", copy=False))
        return {"seconds": seconds}

    def _add(self, vectors):
        buffers = [pynq.allocate((vectors.shape[1],), np.uint32) for _ in range(3)]
        try:
            first, second, total = buffers
            for buffer, vector in zip(buffers, vectors):
                buffer[:] = vector
                buffer.sync_to_device()
            started = time.perf_counter()
            self._overlay.vadd_1.call(first, second, total, total.size)
            seconds = time.perf_counter() - started
            total.sync_from_device()
            return np.array(total), seconds
        finally:
            for buffer in buffers:
                buffer.freebuffer()
