"""The job "classify": images in a file in memory, through one of the BNN overlays, to classes.

What drives the overlay is the board's runtime, BNN-PYNQ or finn-examples: _bnn.py, _finn.py.
"""

import importlib
import importlib.util
import os

import numpy as np

MAX_RECORDS = 10000  # bnn's C++ code aborts the process beyond that
RECORD_BYTES = {"cnv": 3073, "lfc": 98}  # a CIFAR-10 record; 28x28 pixels, one bit each

# By the name that $DISTRIBUTED_PYNQ_RUNTIME has for it: the board's module, and ours that uses it.
RUNTIMES = {"bnn-pynq": ("bnn", "_bnn"), "finn-examples": ("finn_examples", "_finn")}


class Job:
    """A classifier with its overlay and parameters, loaded once.

    The runtime is the one that $DISTRIBUTED_PYNQ_RUNTIME names, else the first that is installed.

    Parameters
    ----------
    network : str
        E.g. "cnvW1A1".
    params : str
        Name of a parameter set.

    Attributes
    ----------
    description : dict
        What the answer to "load" says: "classes", their names, and "scores", whether there are any.

    Raises
    ------
    ValueError
        There is no such network or parameter set, or no runtime.
    """

    def __init__(self, network: str, params: str):
        runtime = _runtime()
        if network not in runtime.NETWORKS:
            there = ", ".join(sorted(runtime.NETWORKS))
            raise ValueError(f"field 'network': no {network!r} here, only {there}")
        self._network = network
        self._classifier = runtime.Classifier(network, params)
        self.description = {
            "classes": self._classifier.classes,
            "scores": self._classifier.has_scores,
        }

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
            Write scores too; CNV with BNN-PYNQ only.

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
        if scores and not self._classifier.has_scores:
            raise ValueError(f"field 'scores': {self._network} has none here")
        expected = records * RECORD_BYTES[self._network[:3]]
        found = os.path.getsize(input)
        if found != expected:
            raise ValueError(
                f"field 'input': {input} has {found} bytes, "
                f"{records} records of {self._network} have {expected}"
            )
        results, seconds = self._classifier.classify(input, records, scores)
        with open(output, "wb") as file:
            for result in results:
                file.write(np.asarray(result).astype("<i2").tobytes())
        return {"seconds": seconds}


def _runtime():
    """The module of this package that drives the board's runtime."""
    chosen = os.environ.get("DISTRIBUTED_PYNQ_RUNTIME")
    if chosen is None:
        for module, driver in RUNTIMES.values():
            if importlib.util.find_spec(module) is not None:
                return importlib.import_module("." + driver, __package__)
        raise ValueError(f"no runtime is installed here, neither of {', '.join(RUNTIMES)}")
    if chosen not in RUNTIMES:
        raise ValueError(
            f"DISTRIBUTED_PYNQ_RUNTIME={chosen!r}: expected one of {', '.join(RUNTIMES)}"
        )
    return importlib.import_module("." + RUNTIMES[chosen][1], __package__)
