"""The kind of job "classify": images to classes, through one of the BNN overlays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .datasets import Dataset
from .errors import InputError
from .job import Job
from .networks import Network
from .predictions import Predictions
from .report import legible

# Images that bnn-pynq takes in a call, and bytes of a board's memory for each, which it expands to
# floats: 1,000 of a CNV network fit a board of 512 MB.
BNN_LIMIT = 10_000
BNN_BYTES = {"cnv": 1 << 19, "lfc": 1 << 15}
# Bytes of a chunk, of which a worker has several at a time.
CHUNK_BYTES = 8 << 20


class Classification(Job[Predictions]):
    """Classify the records of a data set that have no prediction yet.

    Parameters
    ----------
    client
        Asynchronous distributed.Client of the cluster.
    dataset, network, params
        What to classify, with which network and parameter set.
    scores
        Also keep the scores of every class (CNV networks).
    engine
        `chunk` and `patience` of the engine, `Job`.
    """

    name = "classify"
    unit = "images"

    def __init__(
        self,
        client: Any,
        dataset: Dataset,
        network: Network,
        params: str,
        *,
        scores: bool = False,
        **engine: Any,
    ) -> None:
        settings = {"network": network.name, "params": params}
        super().__init__(client, len(dataset), settings, network.rate, **engine)
        self.title = network.name
        self.dataset = dataset
        self.network = network
        self.params = params
        self.scores = scores
        self.class_names: list[str] = []

    def loaded(self, answer: dict[str, Any]) -> None:
        """Learn the names of the classes; InputError where there are no scores to be had."""
        if self.scores and not answer["scores"]:
            raise InputError(f"--scores: what {answer['host']} runs gives classes only")
        self.class_names = answer["classes"]

    def chunk_max(self, memory: int) -> int:
        """As many images as fit the board's memory, bnn-pynq, and the worker's."""
        fit = memory // BNN_BYTES[self.network.kind]
        return max(1, min(fit, BNN_LIMIT, CHUNK_BYTES // self.network.travel_bytes))

    def encode(self, start: int, stop: int) -> tuple[Any, dict[str, Any]]:
        """Records in the form the network travels in."""
        records = self.network.encode(self.dataset.records(start, stop))
        return records, {"records": stop - start, "scores": self.scores}

    def keep(self, start: int, stop: int, board: tuple[str, str], output: bytes) -> None:
        """Keep int16 classes (n,) and, if asked for, the int16 scores (n, classes) after them."""
        values = np.frombuffer(output, "<i2")
        classes, scores = np.split(values, [stop - start])
        table = scores.reshape(stop - start, -1) if self.scores else None
        self.answers.put(start, stop, board, classes, table)

    def summary(self, present: int, duplicates: int, correct: int | None) -> dict[str, Any]:
        """The content of summary.json.

        Parameters
        ----------
        present, duplicates
            Records in predictions.parquet, and rows too many, as read back from it.
        correct
            Records with the class of their label; None without labels.
        """
        return {
            "dataset": legible(self.dataset.name),
            "network": self.network.name,
            "params": self.params,
            "classified": present,
            "lost": self.total - present - len(self.failed),
            "duplicates": duplicates,
            "accuracy": None if correct is None or not present else correct / present,
            **self.figures(),
        }
