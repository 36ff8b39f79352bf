"""The shared objects of bnn: what their C++ code (bnn/src/library/host) does, errors included.

Such an object prints to file descriptor 1 behind Python's back, takes SIGINT over, and ends the
process wherever it throws, since nothing between it and Python catches C++ exceptions.

``DISTRIBUTED_PYNQ_STANDIN_KNOWN``
    A file of numpy's (.npz) with the only ``images`` that there are, and the ``answers`` to them,
    scores or words. An FPGA costs its host nothing; a fleet of stand-ins on one machine that is
    paced to the rate of real boards would otherwise have them compete for its cores with what is to
    be measured.
"""

import ctypes
import os
import signal
import struct
import threading

import numpy as np

import overlays
from overlays import classes
from pynq import PL, Device
from pynq.fabric import FABRIC, terminate

_KNOWN = "DISTRIBUTED_PYNQ_STANDIN_KNOWN"
RECORD_BYTES = 3073  # a CIFAR-10 record: label, 1024 red, 1024 green, 1024 blue
IDX_HEADER = struct.Struct(">IIII")  # magic number, images, rows, columns
IDX_MAGIC = 0x803
SIDE = 28  # of an LFC image
OUTPUT_WORDS = 160000  # 64-bit words in the FPGA's output buffer
CNV_WORDS, LFC_WORDS = 16, 1  # of these per image: 64 scores of 16 bits, or one bit per class


class Library:
    """One network's shared object, and the FPGA behind it.

    Its buffers and parameters belong to the process: all classifiers of the network share them.

    Parameters
    ----------
    network : str
        E.g. "cnvW1A1".
    hardware : bool
        Whether the FPGA does the computing, or else the processor.
    """

    def __init__(self, network, hardware):
        self._network = network
        self._hardware = hardware
        self._cnv = network.startswith("cnv")
        self._compute = None
        self._timestamp = None
        self._buffers = False

    def load_parameters(self, path):
        """Set weights and thresholds from a folder; a file that is missing ends the process."""
        self._init()
        _print("Setting network weights and thresholds in accelerator...")
        if _KNOWN in os.environ:
            self._compute = _recall(os.environ[_KNOWN])
        else:
            self._compute = self._software(path.decode())
        self._timestamp = PL.timestamp

    def inference(self, path, number_class):
        """Classify the first image of a file.

        Returns
        -------
        tuple
            Its class; its scores, int32 (number_class,), or for LFC int32 (64,), 1 at the class
            and 0 elsewhere; and the microseconds it took.
        """
        raw, microseconds = self._infer(self._read(path)[:1])
        if self._cnv:
            scores = raw[0, :number_class].astype(np.int32)
            return classes.cnv_one(raw[0], number_class), scores, microseconds
        scores = (np.arange(64) == classes.lfc_one(raw[0], number_class)).astype(np.int32)
        return int(scores.argmax()), scores, microseconds

    def inference_multiple(self, path, number_class, enable_detail):
        """Classify all images of a file.

        Returns
        -------
        tuple
            Their classes, int32 (images,), or with ``enable_detail``, which LFC overlooks, their
            scores, int32 (images * number_class,); their number; the microseconds per image.
        """
        raw, microseconds = self._infer(self._read(path))
        if not self._cnv:
            results = classes.lfc_many(raw, number_class)
        elif enable_detail:
            results = raw[:, :number_class].ravel()
        else:
            results = classes.cnv_many(raw, number_class)
        return results.astype(np.int32), len(raw), microseconds

    def deinit(self):
        """Free the buffers, even while somebody else computes with them."""
        self._buffers = False

    def _init(self):
        self._buffers = True
        if self._hardware and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _exit_on_sigint)

    def _software(self, folder):
        try:
            overlay = overlays.load(folder, self._network)
        except FileNotFoundError:
            terminate("char const*")
        compute = overlay.scores if self._cnv else overlay.words
        # An FPGA's first batch is as fast as any; software compiles, or reads what it compiled.
        compute(np.zeros((1, RECORD_BYTES if self._cnv else SIDE * SIDE), np.uint8))
        return compute

    def _read(self, path):
        """Images of a file as uint8 (n, 3073) or (n, 784), as tiny-cnn's parsers read them."""
        self._init()
        try:
            # Mapped, it is read while the batch takes its time.
            empty = os.path.getsize(path) == 0
            content = np.empty(0, np.uint8) if empty else np.memmap(path.decode(), np.uint8, "r")
        except OSError:
            terminate("tiny_cnn::nn_error", "failed to open file:" + path.decode())
        if self._cnv:
            count = len(content) // RECORD_BYTES
            return content[: count * RECORD_BYTES].reshape(count, RECORD_BYTES)
        if len(content) < IDX_HEADER.size:
            terminate("tiny_cnn::nn_error", "MNIST label-file format error")
        magic, count, rows, columns = IDX_HEADER.unpack(content[: IDX_HEADER.size])
        # The real one takes images of any size and classifies what becomes of them.
        if magic != IDX_MAGIC or count == 0 or (rows, columns) != (SIDE, SIDE):
            terminate("tiny_cnn::nn_error", "MNIST label-file format error")
        pixels = content[IDX_HEADER.size :][: count * SIDE * SIDE]
        # A short file goes on with black.
        pixels = np.pad(pixels, (0, count * SIDE * SIDE - len(pixels)), "constant")
        return pixels.reshape(count, SIDE * SIDE)

    def _infer(self, images):
        """Scores int16 (n, 64) or words uint64 (n,) of images, and the microseconds per image."""
        count = len(images)
        if count == 0:
            ctypes.string_at(0)  # it looks at the first image's size
        if self._cnv:
            _print("Packing and interleaving CIFAR-10 inputs...")
        # With CNV it checks. With LFC it runs over the end of the buffer.
        if count * (CNV_WORDS if self._cnv else LFC_WORDS) > OUTPUT_WORDS:
            terminate("char const*")
        kind = "prebuilt CIFAR-10" if self._cnv else "prebinarized"
        _print(f"Running {kind} test for {count} images...")
        if self._hardware:
            _require_device()
        if self._compute is None or (self._hardware and PL.timestamp != self._timestamp):
            # A real FPGA would compute with what another bitstream left there, or never end.
            terminate("char const*")
        raw, microseconds = FABRIC.run(self._compute, images)
        if not self._buffers:
            terminate("char const*")  # freed by another thread while the FPGA computed
        each = np.float32(microseconds) / np.float32(count)
        _print(f"Inference took {microseconds} microseconds, {each:g} usec per image")
        _print(f"Classification rate: {1e6 / each:g} images per second")
        return raw, float(each)


def _recall(file):
    with np.load(file) as known:
        answers = dict(zip(map(bytes, known["images"]), known["answers"]))
    return lambda images: np.array([answers[bytes(image)] for image in images])


def _require_device():
    try:
        Device.active_device.require("Execution failed: {}")
    except RuntimeError as error:
        terminate("std::runtime_error", str(error))


def _print(line):
    os.write(1, line.encode() + b"\n")


def _exit_on_sigint(signum, frame):
    _print("Caught SIGINT, forcing exit")
    os._exit(1)
