"""An accelerator that FINN generated, with the interface of finn_examples/driver.py."""

import os
import time

import numpy as np
from bitstring import BitArray  # noqa: F401, which the real one packs with

import overlays
from pynq import Overlay, allocate
from pynq.fabric import FABRIC

NETWORKS = {"cnv-w1a1": "cnvW1A1", "cnv-w1a2": "cnvW1A2", "cnv-w2a2": "cnvW2A2"}
CLASSES = 10


class FINNExampleOverlay(Overlay):
    """An accelerator and the buffers of one batch.

    Parameters
    ----------
    bitfile_name : str
        Path of the bitstream; its name says which network.
    platform : str
        "alveo" or "zynq-iodma".
    io_shape_dict : dict
        Shapes of inputs and outputs, for batches of one.
    batch_size : int
        Images in a batch. Setting it later allocates the buffers anew.
    fclk_mhz : float
        Clock on a Zynq board.
    device : pynq.Device
        By default the active one.
    download : bool
        Whether to download the bitstream.

    Raises
    ------
    OSError
        There is no such bitstream, or no parameter set for the stand-in to compute with.
    """

    def __init__(
        self, bitfile_name, platform, io_shape_dict, batch_size=1, fclk_mhz=100.0, device=None,
        download=True, runtime_weight_dir="runtime_weights/",
    ):  # fmt: skip
        super().__init__(bitfile_name, download=download, device=device)
        if platform not in ("zynq-iodma", "alveo"):
            raise ValueError("Supported platforms are zynq-iodma alveo")
        self.runtime_weight_dir = runtime_weight_dir
        self.platform = platform
        self.fclk_mhz = fclk_mhz
        self._io_shape_dict = io_shape_dict
        self._compute = _compute(bitfile_name)
        self.batch_size = batch_size

    def _shape(self, name, ind):
        return (self.batch_size, *self._io_shape_dict[name][ind][1:])

    def ishape_normal(self, ind=0):
        """Shape of a batch of images: (batch_size, 32, 32, 3)."""
        return self._shape("ishape_normal", ind)

    def oshape_normal(self, ind=0):
        """Shape of a batch of classes: (batch_size, 1)."""
        return self._shape("oshape_normal", ind)

    def ishape_folded(self, ind=0):
        """Shape of a batch of images as the accelerator reads them."""
        return self._shape("ishape_folded", ind)

    def ishape_packed(self, ind=0):
        """Shape of the input buffer, uint8."""
        return self._shape("ishape_packed", ind)

    def oshape_packed(self, ind=0):
        """Shape of the output buffer, uint8."""
        return self._shape("oshape_packed", ind)

    @property
    def num_inputs(self):
        """How many inputs the accelerator has."""
        return self._io_shape_dict["num_inputs"]

    @property
    def batch_size(self):
        """Images in a batch."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value):
        self._batch_size = value
        # What was in the old ones is gone.
        self.ibuf_packed_device = [allocate(self.ishape_packed(), np.uint8)]
        self.obuf_packed_device = [allocate(self.oshape_packed(), np.uint8)]
        self.obuf_packed = [np.empty_like(self.obuf_packed_device[0])]

    def fold_input(self, ibuf_normal, ind=0):
        """Images as the accelerator reads them; they must fill the batch."""
        assert ibuf_normal.shape == self.ishape_normal(ind)
        return ibuf_normal.reshape(self.ishape_folded(ind))

    def pack_input(self, ibuf_folded, ind=0):
        """Images as bytes. What is not uint8 is packed number by number, if it is 0..255."""
        if ibuf_folded.dtype == np.uint8:
            return ibuf_folded
        packed = ibuf_folded.astype(np.uint8)
        assert (packed == ibuf_folded).all(), "This value is not permitted by chosen dtype."
        return packed

    def copy_input_data_to_device(self, data, ind=0):
        """Fill the input buffer."""
        np.copyto(self.ibuf_packed_device[ind], data)
        self.ibuf_packed_device[ind].sync_to_device()

    def copy_output_data_from_device(self, data, ind=0):
        """Read the output buffer."""
        self.obuf_packed_device[ind].sync_from_device()
        np.copyto(data, self.obuf_packed_device[ind])

    def unpack_output(self, obuf_packed, ind=0):
        """Classes of bytes."""
        return np.array(obuf_packed)

    def unfold_output(self, obuf_folded, ind=0):
        """Classes as uint8 (batch_size, 1)."""
        return obuf_folded.reshape(self.oshape_normal(ind))

    def execute_on_buffers(self, asynch=False, batch_size=None):
        """Compute what is in the input buffer, or so many images of it, into the output buffer."""
        count = self.batch_size if batch_size is None else batch_size
        assert count <= self.batch_size, "Specified batch_size is too large."
        source, target = (
            self.device.memory(buffer.device_address, buffer.nbytes).reshape(self.batch_size, -1)
            for buffer in (self.ibuf_packed_device[0], self.obuf_packed_device[0])
        )
        target[:count, 0], _ = FABRIC.run(self._compute, source[:count])

    def execute(self, input_npy):
        """Classify a batch of images.

        Parameters
        ----------
        input_npy : numpy.ndarray
            uint8 (batch_size, 32, 32, 3), or a list with it.

        Returns
        -------
        numpy.ndarray
            Classes, uint8 (batch_size, 1).

        Raises
        ------
        AssertionError
            It has another shape.
        """
        inputs = input_npy if type(input_npy) is list else [input_npy]
        assert self.num_inputs == len(inputs), "Not all accelerator inputs are specified."
        self.copy_input_data_to_device(self.pack_input(self.fold_input(inputs[0])))
        self.execute_on_buffers()
        self.copy_output_data_from_device(self.obuf_packed[0])
        return self.unfold_output(self.unpack_output(self.obuf_packed[0]))

    def throughput_test(self):
        """Run a batch with whatever is in the buffers; returns figures by their name."""
        runtime, _ = _timed(self.execute_on_buffers)
        figures = {
            "runtime[ms]": runtime * 1000,
            "throughput[images/s]": self.batch_size / runtime,
            "DRAM_in_bandwidth[MB/s]": np.prod(self.ishape_packed()) * 1e-6 / runtime,
            "DRAM_out_bandwidth[MB/s]": np.prod(self.oshape_packed()) * 1e-6 / runtime,
            "fclk[mhz]": self.fclk_mhz,
            "batch_size": self.batch_size,
        }
        data = np.zeros(self.ishape_normal(), np.uint8)
        for step in ("fold_input", "pack_input", "copy_input_data_to_device"):
            runtime, data = _timed(getattr(self, step), data)
            figures[step + "[ms]"] = runtime * 1000
        data = self.obuf_packed[0]
        runtime, _ = _timed(self.copy_output_data_from_device, data)
        figures["copy_output_data_from_device[ms]"] = runtime * 1000
        for step in ("unpack_output", "unfold_output"):
            runtime, data = _timed(getattr(self, step), data)
            figures[step + "[ms]"] = runtime * 1000
        return figures


def _compute(bitfile_name):
    """What the network of a bitstream computes: uint8 (n, 3072), NHWC, -> classes uint8 (n,)."""
    network = NETWORKS[os.path.splitext(os.path.basename(bitfile_name))[0]]
    roots = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "params")]
    roots.insert(0, os.environ.get("DISTRIBUTED_PYNQ_PARAMS", roots[0]))
    folders = [os.path.join(root, "cifar10", network) for root in roots]
    overlay = overlays.load(next(filter(os.path.isdir, folders), folders[-1]), network)

    def compute(images):
        records = np.zeros((len(images), 3073), np.uint8)
        planes = images.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        records[:, 1:] = planes.reshape(len(images), -1)
        return overlay.scores(records)[:, :CLASSES].argmax(axis=1)

    # An FPGA's first batch is as fast as any; software compiles, or reads what it compiled.
    compute(np.zeros((1, 3072), np.uint8))
    return compute


def _timed(function, *arguments):
    started = time.time()
    result = function(*arguments)
    return max(time.time() - started, 1e-9), result
