"""What is loaded into a device's programmable logic (PL), and how it gets there."""

import os
import struct
import time

import numpy as np

from overlays import NETWORKS
from pynq.device import Device


class PLMeta(type):
    """What `PL` says is what the active device says."""

    @property
    def bitfile_name(cls):
        """Absolute path of the bitstream that is loaded, or None."""
        return Device.active_device.bitfile_name

    @property
    def timestamp(cls):
        """When it was loaded."""
        return Device.active_device.timestamp


class PL(metaclass=PLMeta):
    """The programmable logic of the active device."""


class VectorAdd:
    """The kernel vadd_1 of intro.xclbin, which adds vectors in a device's memory."""

    def __init__(self, device):
        self._device = device

    def call(self, in1, in2, out, size):
        """Write ``in1 + in2`` modulo 2**32 to ``out``, all PynqBuffer, the first ``size`` uint32.

        It sees nothing but memory: not what type of numbers that holds, nor what is not synced. A
        real one reads and writes on beyond the end of a buffer; this one fails.

        Raises
        ------
        RuntimeError
            The card fails.
        """
        from pynq.fabric import FABRIC  # reads its settings: not before there is something to run

        addresses = [buffer.device_address for buffer in (in1, in2, out)]
        (size,) = struct.unpack("=I", struct.pack("=I", size))
        self._device.require("Buffer submit failed: {}")

        def add(_):
            vectors = [self._device.memory(address, 4 * size) for address in addresses]
            if any(vector is None for vector in vectors):
                raise RuntimeError("Execution failed: 5")
            first, second, total = (vector.view("<u4") for vector in vectors)
            np.add(first, second, out=total)

        # Whatever its size, a call takes the time of one image.
        FABRIC.run(add, np.zeros((1, 1), np.uint8))


KERNELS = {"intro.xclbin": {"vadd_1": VectorAdd}}


class Overlay:
    """A bitstream, downloaded into a device at once unless told otherwise.

    Its kernels are attributes. Cards take the bitstreams of bnn too, which real ones do not: there
    are no stand-ins for what classifies images on real cards.

    Parameters
    ----------
    bitfile_name : str
        Path of the bitstream, ``DESIGN-PLATFORM.bit`` or ``intro.xclbin``.
    download : bool
        Whether to download it now.
    device : pynq.Device
        By default the active one.

    Raises
    ------
    OSError
        There is no such bitstream. On a stand-in a name will do, without a file: stand-ins compute
        what it does.
    RuntimeError
        There is no device, or it is gone.
    """

    def __init__(self, bitfile_name, dtbo=None, download=True, ignore_version=False, device=None):
        self.device = device or Device.active_device
        name = os.path.basename(bitfile_name)
        self._kernels = KERNELS.get(name, {})
        known = self._kernels or name.split("-")[0] in NETWORKS
        if not known and not os.path.isfile(bitfile_name):
            raise OSError(f"Bitstream file {bitfile_name} does not exist.")
        self.bitfile_name = os.path.abspath(bitfile_name)
        if download:
            self.download()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.is_loaded():
            raise RuntimeError("Overlay not currently loaded")
        if name not in self._kernels:
            raise AttributeError(f"Could not find IP or hierarchy {name} in overlay")
        return self._kernels[name](self.device)

    def download(self, dtbo=None):
        """Load the bitstream into the device, whose logic forgets everything it held."""
        self.device.require("Could not lock device for programming - {}")
        self.device.bitfile_name = self.bitfile_name
        self.device.timestamp = time.time()

    def is_loaded(self):
        """Whether this bitstream is the one in the device."""
        return self.device.bitfile_name == self.bitfile_name

    def free(self):
        """Unload it."""
        self.device.bitfile_name = None
