"""As many records as a test wants, each a little different, and the classes they have."""

from pathlib import Path

import numpy as np

import overlays
import overlays.classes
from distributed_pynq import datasets, networks

NETWORK = networks.NETWORKS["lfcW1A1"]


def noisy_digits(path: Path, records: int) -> datasets.Dataset:
    """Write an idx file of digits, the first 50,000 each a little different, then over again."""
    digits = datasets.load("digits", NETWORK)
    once = digits.records(0, len(digits))
    count = min(records, 50_000)
    noise = np.random.default_rng(2).random((count, 784)) < 0.02
    images = (np.resize(once, (count, 784)) ^ np.where(noise, 255, 0)).astype(np.uint8)
    with path.open("wb") as file:
        file.write(np.array([0x803, records, 28, 28], ">u4").tobytes())
        for start in range(0, records, count):
            file.write(images[: records - start].tobytes())
    return datasets.load(str(path), NETWORK)


def classes_of(dataset: datasets.Dataset) -> np.ndarray:
    """The classes of an undisturbed run, straight from the overlay."""
    folder = networks.parameter_root("digits", NETWORK) / "digits" / NETWORK.name
    overlay = overlays.load(folder, NETWORK.name)
    records, step = len(dataset), 10_000
    chunks = (dataset.records(at, min(at + step, records)) for at in range(0, records, step))
    return np.concatenate([overlays.classes.lfc_many(overlay.words(c), 10) for c in chunks])
