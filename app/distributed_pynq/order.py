"""What a user ordered: checked before anything starts, kept with the results, carried out."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from . import datasets, local, networks, predictions, progress, report
from .classify import Classification
from .errors import InputError
from .storage import settle, writing

FILE = "job.json"
# Records at either end by which a data set is known again.
SAMPLE = 100


@dataclass(frozen=True)
class Order:
    """A job to classify a data set, in its output folder; there as job.json until it is done."""

    folder: Path
    dataset: datasets.Dataset
    network: networks.Network
    params: str
    scores: bool

    @classmethod
    def new(
        cls,
        *,
        dataset: str | None = None,
        network: str | None = None,
        params: str | None = None,
        scores: bool = False,
        output: Path | None = None,
        resume: None = None,
    ) -> Order:
        """Complete an order with defaults.

        Raises
        ------
        InputError
            Naming what is wrong.
        """
        source = dataset or "digits"
        chosen = networks.get(network or ("lfcW1A1" if source == "mnist" else "cnvW1A1"))
        if scores and chosen.kind == "lfc":
            raise InputError(f"--scores: {chosen.name} gives classes only, the CNV networks scores")
        title = report.legible(Path(source).name).partition(".")[0] or "records"
        folder = output or Path(
            "results", f"{title}-{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        )
        if report.legible(folder) != str(folder):
            raise InputError(f"--output {folder}: expected a path in UTF-8")
        try:
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"--output {folder}: not empty; a job's results need a new folder")
        except OSError as error:
            raise InputError(f"--output {folder}: {error.strerror}") from None
        params = _found(params, chosen) if params else networks.default_params(source, chosen)
        return cls(folder, datasets.load(source, chosen), chosen, params, scores)

    @classmethod
    def resumed(cls, *, resume: Path, output: Path | None, **wishes: Any) -> Order:
        """Read the order of an unfinished job; wishes that contradict it are refused.

        Raises
        ------
        InputError
            There is no unfinished job, or its data set has changed.
        """
        if output:
            raise InputError("--output: goes to the folder of the job with --resume")
        try:
            kept = json.loads((resume / FILE).read_text())
            network = networks.get(kept["network"])
            order = cls(
                resume,
                datasets.load(kept["dataset"], network),
                network,
                kept["params"],
                kept["scores"],
            )
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            found = "a finished job" if (resume / "summary.json").exists() else "no unfinished job"
            raise InputError(f"--resume {resume}: {found} here, expected a {FILE}") from None
        if wishes["dataset"]:
            wishes["dataset"] = _source(wishes["dataset"])
        if wishes["params"]:
            wishes["params"] = _found(wishes["params"], network)
        for name, wish in wishes.items():
            if wish and wish != kept[name]:
                raise InputError(f"--resume {resume}: its {name} is {kept[name]!r}, not {wish!r}")
        if order._kept() != kept:
            raise InputError(
                f"{kept['dataset']}: not the records any more that {resume} began with"
            )
        return order

    async def carry_out(
        self,
        scheduler: str | None = None,
        boards: int = 2,
        chunk: int | None = None,
        *,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Do the job on a fleet, or on stand-in boards without a scheduler; write its results.

        Returns
        -------
        dict
            The content of summary.json.
        """
        console = progress.console()
        parameters = None if scheduler else networks.parameter_root(self.params, self.network)
        with self._under_way():
            async with contextlib.AsyncExitStack() as stack:
                with console.status(
                    Text(f"connecting to {scheduler}" if scheduler else "starting boards")
                ):
                    client = await stack.enter_async_context(
                        local.client(scheduler, boards=boards, parameters=parameters)
                    )
                params = Path(self.params).name
                job = Classification(
                    client, self.dataset, self.network, params, scores=self.scores, chunk=chunk
                )
                with console.status("loading overlay and parameters"):
                    await job.prepare()
                width = len(job.class_names) if self.scores else 0
                answers = predictions.Predictions(self.folder, self.dataset, job.class_names, width)
                if answers.answered:
                    total = f"{len(self.dataset):,}"
                    console.print(f"resuming: {answers.answered:,} of {total} images are done")
                with self._resumable(console):
                    async with progress.shown(job, console, quiet=quiet):
                        await job.run(answers)
            return self._write(job, answers, console)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """Have the folder, with the order in it, to this job alone."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
        try:
            with writing(self.folder):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(f"{self.folder}: a job is under way here") from None
                self._keep()
            yield
        finally:
            os.close(folder)

    def _keep(self) -> None:
        file = self.folder / FILE
        if file.exists():
            return
        # Another job may have come and gone since this one was checked.
        if any(self.folder.iterdir()):
            raise InputError(f"{self.folder}: not empty; a job's results need a new folder")
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(self._kept(), indent=2) + "\n")
        settle(partial, file)

    @contextlib.contextmanager
    def _resumable(self, console: Console) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._tell_unfinished(console)
            raise

    def _tell_unfinished(self, console: Console) -> None:
        console.print(f"unfinished: continue with --resume {self.folder}", soft_wrap=True)

    def _kept(self) -> dict[str, Any]:
        first, last = (0, SAMPLE), (len(self.dataset) - SAMPLE, len(self.dataset))
        digest = hashlib.sha256()
        for start, stop in (first, last):
            sample = self.dataset.records(max(start, 0), min(stop, len(self.dataset)))
            digest.update(sample.tobytes())
        return {
            "dataset": _source(self.dataset.name),
            "network": self.network.name,
            "params": self.params,
            "scores": self.scores,
            "records": len(self.dataset),
            "sha256_of_ends": digest.hexdigest(),
        }

    def _write(
        self, job: Classification, answers: predictions.Predictions, console: Console
    ) -> dict[str, Any]:
        status = console.status("writing predictions.parquet and report.html")
        with status, self._resumable(console), writing(self.folder):
            path = self.folder / "predictions.parquet"
            correct = answers.finish()
            summary = job.summary(*predictions.count(path, len(self.dataset)), correct)
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            report.write(self.folder, summary, job.timeline, job.dataset, job.class_names)
            # What is lost can be had by resuming the job.
            if not summary["lost"]:
                answers.drop()
                (self.folder / FILE).unlink()
        console.print(report.table(summary))
        for line in progress.failures(job):
            console.print(line, soft_wrap=True)
        accuracy = "" if summary["accuracy"] is None else f", {summary['accuracy']:.2%} right"
        console.print(
            f"{summary['classified']:,} of {summary['images']:,} images classified{accuracy}; "
            f"{len(summary['failed'])} failed, {summary['lost']} lost, "
            f"{summary['duplicates']} duplicate"
        )
        console.print(f"{self.folder / 'report.html'}", soft_wrap=True)
        if summary["lost"]:
            self._tell_unfinished(console)
        return summary


def _source(dataset: str) -> str:
    """A data set's name, or its path from wherever the job is resumed."""
    return dataset if dataset in networks.DEFAULT_PARAMS else str(Path(dataset).absolute())


def _found(params: str, network: networks.Network) -> str:
    """A parameter set's name, or the path of one in a folder from wherever the job is resumed."""
    folder = Path(params).absolute()
    here = (folder / network.name / "classes.txt").is_file()
    return str(folder) if here or folder.name != params else params
