"""The networks of BNN-PYNQ through its own module bnn: images 2.5 and 2.6."""

import os

import numpy as np

import bnn
import bnn.bnn

LFC_SIDE = 28
IDX_IMAGES = 0x803  # magic number of an idx file of images
NETWORKS = [getattr(bnn, name) for name in dir(bnn) if name.startswith("NETWORK_")]


class Classifier:
    """A network in the device.

    Parameters
    ----------
    network : str
        One of NETWORKS.
    params : str
        Name of a parameter set, looked for in $DISTRIBUTED_PYNQ_PARAMS and then in bnn's own
        folder, as ``<params>/<network>/classes.txt``.

    Attributes
    ----------
    classes : list of str
        Names of the classes.
    has_scores : bool
        Whether it gives scores too.

    Raises
    ------
    ValueError
        There is no such parameter set.
    """

    def __init__(self, network, params):
        bnn.bnn.BNN_PARAM_DIR = _parameter_root(network, params)
        self.has_scores = not network.startswith("lfc")
        classifier = bnn.CnvClassifier if self.has_scores else bnn.LfcClassifier
        self._classifier = classifier(network, params, bnn.RUNTIME_HW)
        self.classes = self._classifier.classes

    def classify(self, path, records, scores):
        """Classify the records of a file.

        Returns
        -------
        tuple
            [classes (records,)], with ``scores`` [classes, scores (records, classes)]; and the
            seconds of accelerator time.
        """
        if not self.has_scores:
            results = [self._classify_bits(path, records)]
        elif scores:
            flat = self._classifier.classify_cifars_details(path)
            table = flat.reshape(records, len(self.classes))
            results = [_class_of(table), table]
        else:
            results = [self._classifier.classify_cifars(path)]
        return results, self._classifier.usecPerImage * records / 1e6

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
