"""The networks that finn-examples has of BNN-PYNQ's: images 2.7 and later.

They are trained anew on CIFAR-10, with weights that are part of the bitstream, and give classes
only. Some images get another class than from BNN-PYNQ's.
"""

import os
import time

import numpy as np

from finn_examples import models

NETWORKS = {
    "cnvW1A1": models.cnv_w1a1_cifar10,
    "cnvW1A2": models.cnv_w1a2_cifar10,
    "cnvW2A2": models.cnv_w2a2_cifar10,
}
PARAMS = "cifar10"
CLASSES = ["Airplane", "Automobile", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Ship", "Truck"]
FILLED = 0.9  # of a batch, at least, or else it is allocated anew


class Classifier:
    """A network in the device.

    Parameters
    ----------
    network : str
        One of NETWORKS.
    params : str
        "cifar10".

    Attributes
    ----------
    classes : list of str
        Names of the classes, as BNN-PYNQ has them.
    has_scores : bool
        Whether it gives scores too: no.

    Raises
    ------
    ValueError
        It is another parameter set.
    """

    classes = CLASSES
    has_scores = False

    def __init__(self, network, params):
        if params != PARAMS:
            raise ValueError(
                f"field 'params': no {params!r} for {network}, only {PARAMS}, which "
                "finn-examples has in its bitstreams"
            )
        if os.environ.get("BOARD") == "Pynq-Z2":
            # It takes the bitstreams of a Z1; not every release knows that.
            os.environ["BOARD"] = "Pynq-Z1"
        self._accelerator = NETWORKS[network]()

    def classify(self, path, records, scores):
        """Classify the records of a file.

        Returns
        -------
        tuple
            [classes (records,)]; and the seconds of accelerator time, with those for its buffers.
        """
        accelerator = self._accelerator
        if not FILLED * accelerator.batch_size <= records <= accelerator.batch_size:
            accelerator.batch_size = records
        planes = np.fromfile(path, np.uint8).reshape(records, -1)[:, 1:].reshape(-1, 3, 32, 32)
        batch = np.zeros((accelerator.batch_size, 32, 32, 3), np.uint8)
        batch[:records] = planes.transpose(0, 2, 3, 1)
        started = time.perf_counter()
        classes = accelerator.execute(batch)
        seconds = time.perf_counter() - started
        return [np.reshape(classes, -1)[:records]], seconds
