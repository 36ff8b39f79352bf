"""Where data sets and parameter sets lie, how missing ones get there, and how to write safely."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import pooch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .errors import InputError

Item = TypeVar("Item")

SITES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "bnn-pynq": "https://github.com/Xilinx/BNN-PYNQ/archive",
}
"""Where each download comes from: the folder of its files on the web."""

PATIENCE = 2.0
"""Seconds of work on local files before a progress bar appears."""


def data_folder() -> Path:
    """Folder of data sets and parameter sets: $DISTRIBUTED_PYNQ_DATA or the user's cache folder.

    It may be read-only as long as nothing has to be downloaded.
    """
    return Path(os.environ.get("DISTRIBUTED_PYNQ_DATA") or cache_folder()).absolute()


def cache_folder() -> Path:
    """The user's cache folder, for what can be made again at any time."""
    return Path(pooch.os_cache("distributed-pynq"))


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`: finished files are renamed from it into their place.

    Raises InputError where `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); "
            "DISTRIBUTED_PYNQ_DATA and XDG_CACHE_HOME choose other folders"
        ) from error
    with scratch as name:
        yield Path(name)


def place(finished: Path, target: Path) -> None:
    """Rename a finished file or folder to where others look for it; whoever comes first wins."""
    try:
        finished.rename(target)
    except OSError:
        if not target.exists():
            raise


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Where something in `folder` cannot be written, raise InputError with the reason."""
    try:
        yield
    except OSError as error:
        # pyarrow's own texts are long.
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"{error.filename or folder}: {reason}") from error


def settle(finished: Path, target: Path) -> None:
    """Rename a finished file to what it replaces; a power cut leaves the one or the other whole."""
    _sync(finished)
    finished.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def download(site: str, file: str, checksum: str | None, folder: Path, remedy: str) -> Path:
    """Download `file` of a site of SITES into `folder`, with a progress bar on a terminal.

    `checksum` is "md5:…" or "sha256:…"; None where the caller checks what is inside.
    Raises InputError with the URL, what went wrong and `remedy`: what to put where by hand.
    """
    url = f"{SITES[site]}/{file}"
    pooch.get_logger().setLevel("WARNING")
    bar = _DownloadBar(file)
    with bar.progress if bar.progress.console.is_terminal else nullcontext():
        try:
            downloader = pooch.HTTPDownloader(progressbar=bar)
            return Path(pooch.retrieve(url, checksum, file, folder, downloader=downloader))
        except (OSError, ValueError) as error:
            raise InputError(f"{url}: {_reason(error)}; {remedy}") from error


class _DownloadBar:
    """What pooch expects of a progress bar, drawn by rich."""

    def __init__(self, title: str) -> None:
        self.total = 0
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task(title, total=None)

    def update(self, size: int) -> None:
        self.progress.update(self.task, advance=size, total=self.total or None)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        self.progress.stop_task(self.task)


def _reason(error: Exception) -> str:
    """Few words for why a download failed; requests' own texts fill a page."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return {
        "ConnectionError": "no connection",
        "ProxyError": "no connection through the proxy",
        "ConnectTimeout": "no answer",
        "ReadTimeout": "no answer",
        "SSLError": "its certificate is not trusted",
        "ChunkedEncodingError": "the connection broke off",
        "ValueError": "the checksum is wrong, so it was thrown away",
    }.get(type(error).__name__, type(error).__name__)


def track(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items one by one, with a progress bar on a terminal once it takes over PATIENCE."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=len(items))
    begin = time.monotonic()
    waiting = bar.console.is_terminal
    try:
        for item in items:
            yield item
            bar.advance(task)
            if waiting and time.monotonic() - begin > PATIENCE:
                bar.start()
                waiting = False
    finally:
        if bar.live.is_started:
            bar.stop()
