"""The job "classify": images in a file in memory, through one of the BNN overlays, to classes."""

import os

import numpy as np

import bnn
import bnn.bnn

MAX_RECORDS = 10000  # bnn's C++ code aborts the process beyond that
CNV_BYTES = 3073  # a CIFAR-10 record
LFC_SIDE = 28
LFC_BYTES = LFC_SIDE * LFC_SIDE // 8  # one bit per pixel
IDX_IMAGES = 0x803  # magic number of an idx file of images
NETWORKS = sorted(getattr(bnn, name) for name in dir(bnn) if name.startswith("NETWORK_"))


class Job:
    """A classifier with its overlay and parameters, loaded once.

    Parameters
    ----------
    network : str
        E.g. "cnvW1A1".
    params : str
        Name of a parameter set, looked for in $DISTRIBUTED_PYNQ_PARAMS and then in bnn's own
        folder, as ``<params>/<network>/classes.txt``.

    Attributes
    ----------
    description : dict
        What the answer to "load" says: "classes", their names.

    Raises
    ------
    ValueError
        There is no such network or parameter set.
    """

    def __init__(self, network: str, params: str):
        if network not in NETWORKS:
            raise ValueError(f"field 'network': no {network!r} here, only {', '.join(NETWORKS)}")
        bnn.bnn.BNN_PARAM_DIR = _parameter_root(network, params)
        self._network = network
        self._lfc = network.startswith("lfc")
        classifier = bnn.LfcClassifier if self._lfc else bnn.CnvClassifier
        self._classifier = classifier(network, params, bnn.RUNTIME_HW)
        self.description = {"classes": self._classifier.classes}

    def run(self, input: str, output: str, records: int, scores: bool = False):
        """Classify one file of records.

        Parameters
        ----------
        input : str
            File of CNV records, 3073 bytes each (CIFAR-10's), or LFC records, 98 bytes each:
            28x28 pixels as bits, the first in the highest bit of a byte.
        output : str
            File to write: int16 classes (records,), little endian, then with ``scores`` int16
            scores (records, classes).
        records : int
            Number of records in the file, at most 10,000.
        scores : bool
            Write scores too; CNV only.

        Returns
        -------
        dict
            "seconds": accelerator time.

        Raises
        ------
        ValueError, OSError
            A field is wrong, or a file cannot be read or written.
        """
        if not 1 <= records <= MAX_RECORDS:
            raise ValueError(f"field 'records': {records} is not in 1..{MAX_RECORDS}")
        if scores and self._lfc:
            raise ValueError(f"field 'scores': {self._network} has none")
        expected = records * (LFC_BYTES if self._lfc else CNV_BYTES)
        found = os.path.getsize(input)
        if found != expected:
            raise ValueError(
                f"field 'input': {input} has {found} bytes, "
                f"{records} records of {self._network} have {expected}"
            )
        if self._lfc:
            results = [self._classify_bits(input, records)]
        elif scores:
            flat = self._classifier.classify_cifars_details(input)
            table = flat.reshape(records, len(self._classifier.classes))
            results = [_class_of(table), table]
        else:
            results = [self._classifier.classify_cifars(input)]
        with open(output, "wb") as file:
            for result in results:
                file.write(result.astype("<i2").tobytes())
        return {"seconds": self._classifier.usecPerImage * records / 1e6}

    def _classify_bits(self, path, records):
        pixels = np.unpackbits(np.fromfile(path, np.uint8))
        np.negative(pixels, out=pixels)  # 1 -> 255
        expanded = path + ".idx"
        try:
            with open(expanded, "wb") as file:
                file.write(np.array([IDX_IMAGES, records, LFC_SIDE, LFC_SIDE], ">u4").tobytes())
                file.write(pixels)
            return self._classifier.classify_mnists(expanded)
        finally:
            if os.path.exists(expanded):
                os.remove(expanded)


def _class_of(scores):
    """Classes of a table of scores as bnn's C++ code chooses them: 0 where no score is positive."""
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), 0)


def _parameter_root(network, params):
    """Folder that holds ``<params>/<network>``."""
    roots = [os.path.join(bnn.bnn.BNN_ROOT_DIR, "params")]
    if "DISTRIBUTED_PYNQ_PARAMS" in os.environ:
        roots.insert(0, os.environ["DISTRIBUTED_PYNQ_PARAMS"])
    known = {root: _parameter_sets(root, network) for root in roots}
    for root in roots:
        if params in known[root]:
            return root
    there = "; ".join(f"{', '.join(known[root]) or 'none'} in {root}" for root in roots)
    raise ValueError(f"field 'params': no {params!r} for {network}, only {there}")


def _parameter_sets(root, network):
    if not os.path.isdir(root):
        return []
    return sorted(
        name
        for name in os.listdir(root)
        if os.path.isfile(os.path.join(root, name, network, "classes.txt"))
    )
