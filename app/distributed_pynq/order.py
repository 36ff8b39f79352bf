"""What a user ordered: checked before anything starts, kept with the results, carried out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from . import datasets, local, networks, predictions, progress, report
from .errors import ClusterError, InputError
from .job import Job, connect

FILE = "job.json"
SIZE_OF_SAMPLE = 100


@dataclass(frozen=True)
class Order:
    """A job to classify a data set; lies as job.json in the output folder until it is done.

    records and digest (SHA-256 over the first and last 100 records) tell whether a data set is
    still the one that the job began with.
    """

    folder: Path
    dataset: str
    network: str
    params: str
    scores: bool
    records: int
    digest: str

    @classmethod
    def new(
        cls,
        *,
        dataset: str | None,
        network: str | None,
        params: str | None,
        scores: bool,
        output: Path | None,
        resume: None = None,
    ) -> Order:
        """Check an order, complete it with defaults and make its output folder.

        Raises
        ------
        InputError
            Naming what is wrong; nothing is left behind.
        """
        dataset = dataset or "digits"
        chosen = networks.get(network or ("lfcW1A1" if dataset == "mnist" else "cnvW1A1"))
        if scores and chosen.kind == "lfc":
            raise InputError(f"--scores: {chosen.name} gives classes only, the CNV networks scores")
        params = params or networks.default_params(dataset, chosen)
        records = datasets.load(dataset, chosen)
        title = Path(dataset).name.partition(".")[0] or "records"
        folder = output or Path(
            "results", f"{title}-{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        )
        if Path(dataset).exists():
            dataset = str(Path(dataset).absolute())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError(f"--output {folder}: not empty; a job's results need a new folder")
        except OSError as error:
            raise InputError(f"--output {folder}: {error.strerror}") from None
        order = cls(folder, dataset, chosen.name, params, scores, len(records), _digest(records))
        kept = {key: value for key, value in asdict(order).items() if key != "folder"}
        (folder / FILE).write_text(json.dumps(kept, indent=2) + "\n")
        return order

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
            order = cls(folder=resume, **json.loads((resume / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            found = "a finished job" if (resume / "summary.json").exists() else "no unfinished job"
            raise InputError(f"--resume {resume}: {found} here, expected a {FILE}") from None
        for name, wish in wishes.items():
            given = getattr(order, name)
            if (
                wish
                and wish != given
                and not (name == "dataset" and str(Path(wish).absolute()) == given)
            ):
                raise InputError(f"--resume {resume}: the job's {name} is {given!r}, not {wish!r}")
        records = datasets.load(order.dataset, networks.get(order.network))
        if (len(records), _digest(records)) != (order.records, order.digest):
            raise InputError(f"{order.dataset}: not the records any more that {resume} began with")
        return order

    async def carry_out(
        self, scheduler: str | None, boards: int, chunk: int | None, *, quiet: bool
    ) -> dict[str, Any]:
        """Do the job on a fleet, or on stand-in boards without a scheduler; write its results.

        Returns
        -------
        dict
            The content of summary.json.
        """
        console = Console(highlight=False)
        network = networks.get(self.network)
        dataset = datasets.load(self.dataset, network)
        async with self._cluster(scheduler, boards, network, console) as client:
            job = Job(client, dataset, network, self.params, scores=self.scores, chunk=chunk)
            with console.status("loading overlay and parameters"):
                await job.prepare()
            resume = (self.folder / "answers.npy").exists()
            width = len(job.class_names) if self.scores else 0
            answers = predictions.Predictions(self.folder, len(dataset), width, resume=resume)
            if resume:
                console.print(f"resuming: {answers.classified:,} of {len(dataset):,} images done")
            try:
                async with progress.shown(job, console, quiet=quiet):
                    await job.run(answers)
            except ClusterError as error:
                raise ClusterError(f"{error}; continue with --resume {self.folder}") from error
        return self._write(job, answers, console)

    @contextlib.asynccontextmanager
    async def _cluster(
        self, scheduler: str | None, boards: int, network: networks.Network, console: Console
    ) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as stack:
            with console.status(f"connecting to {scheduler}" if scheduler else "starting boards"):
                if scheduler:
                    client = await stack.enter_async_context(connect(scheduler))
                else:
                    root = networks.parameter_root(self.params, network)
                    cluster = stack.enter_context(local.Cluster(root))
                    for number in range(1, boards + 1):
                        cluster.start_board(f"standin-{number}")
                    client = await stack.enter_async_context(cluster.client())
            yield client

    def _write(
        self, job: Job, answers: predictions.Predictions, console: Console
    ) -> dict[str, Any]:
        with console.status("writing predictions.parquet and report.html"):
            path = self.folder / "predictions.parquet"
            correct = answers.write(path, job.dataset, job.class_names)
            summary = job.summary(*predictions.count(path, self.records), correct)
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            report.write(self.folder, summary, job.timeline, job.dataset, job.class_names)
            answers.drop()
            (self.folder / FILE).unlink()
        console.print(report.table(summary))
        accuracy = "" if summary["accuracy"] is None else f", {summary['accuracy']:.2%} right"
        console.print(
            f"{summary['classified']:,} of {summary['images']:,} images classified{accuracy}; "
            f"{len(summary['failed'])} failed, {summary['lost']} lost, "
            f"{summary['duplicates']} duplicate"
        )
        console.print(f"{self.folder / 'report.html'}", soft_wrap=True)
        return summary


def _digest(dataset: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    digest.update(dataset.records(0, min(SIZE_OF_SAMPLE, len(dataset))).tobytes())
    digest.update(dataset.records(max(0, len(dataset) - SIZE_OF_SAMPLE), len(dataset)).tobytes())
    return digest.hexdigest()
