"""The command distributed-pynq."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import __version__, networks
from .errors import ClusterError, InputError

BAD_INPUT, NOT_ALL, NO_CLUSTER, INTERRUPTED = 2, 3, 4, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def cli() -> None:
    """Classify images on a Dask cluster of PYNQ FPGA boards."""


@cli.command()
@click.argument("dataset", required=False)
@click.option(
    "--network",
    type=click.Choice(list(networks.NETWORKS)),
    help="Overlay to load.  [default: cnvW1A1; lfcW1A1 for mnist]",
)
@click.option("--params", metavar="NAME", help="Parameter set.  [default: the data set's own]")
@click.option("--scheduler", metavar="ADDR", help="Scheduler of a fleet, tls://HOST:PORT.")
@click.option(
    "--boards",
    type=click.IntRange(1, 64),
    help="Stand-in boards on this machine.  [default: 2, without --scheduler]",
)
@click.option(
    "--chunk",
    type=click.IntRange(1, 10_000),
    help="Records per task.  [default: 0.15 s of FPGA time]",
)
@click.option("--scores", is_flag=True, help="Keep the score of every class (CNV networks).")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="New folder for the results.  [default: results/DATASET-NETWORK-TIME]",
)
@click.option(
    "--resume",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Continue the unfinished job whose output folder this is.",
)
@click.option("--quiet", is_flag=True, help="Plain lines instead of a live progress bar.")
def classify(
    scheduler: str | None, boards: int | None, chunk: int | None, quiet: bool, **wishes: Any
) -> None:
    """Classify the images of DATASET on a fleet or on stand-in boards.

    DATASET is digits (the default), cifar10, mnist, a CIFAR-10 .bin or an idx file (.gz too), or a
    folder of PNG and JPEG pictures. The output folder gets predictions.parquet, summary.json,
    report.html and performance.png.

    Exit code 0: all classified. 2: bad usage or input, or a full disk. 3: some records could not be
    classified; summary.json names them, and --resume does what was lost. 4: no scheduler or no
    board reachable; --resume continues.
    """
    if scheduler and boards:
        raise InputError("--boards: stand-in boards of this machine do not go with --scheduler")
    # Dask and its company take a second to import: not for --help or bad usage.
    from .order import Order

    order = Order.resumed(**wishes) if wishes["resume"] else Order.new(**wishes)
    summary = asyncio.run(order.carry_out(scheduler, boards or 2, chunk, quiet=quiet))
    sys.exit(NOT_ALL if summary["failed"] or summary["lost"] else 0)


@cli.command()
@click.option("--rows", type=click.IntRange(1), default=4096, help="Rows of the arrays.")
@click.option("--columns", type=click.IntRange(1), default=4096, help="Columns of the arrays.")
@click.option(
    "--overlay",
    metavar="FILE",
    default="intro.xclbin",
    help="The xclbin with the kernel vadd_1, a path on the boards.",
)
@click.option("--scheduler", metavar="ADDR", help="Scheduler of a fleet, tls://HOST:PORT.")
@click.option(
    "--devices",
    type=click.IntRange(1, 64),
    help="Stand-in cards on this machine.  [default: 4, without --scheduler]",
)
@click.option("--quiet", is_flag=True, help="Plain lines instead of a live progress bar.")
def vadd(
    rows: int, columns: int, overlay: str, scheduler: str | None, devices: int | None, quiet: bool
) -> None:
    """Add two arrays of uint32 on all devices of a fleet or on stand-in cards of one server.

    The arrays are random, the same every time; the result is compared with numpy's.

    Exit code 0: all sums are right. 2: bad usage or input. 3: some are not. 4: no scheduler or no
    board reachable.
    """
    if scheduler and devices:
        raise InputError("--devices: stand-in cards of this machine do not go with --scheduler")
    from .vadd import add_random

    right = add_random(rows, columns, overlay, scheduler, devices or 4, quiet=quiet)
    sys.exit(0 if right else NOT_ALL)


@cli.command()
@click.option("--scheduler", metavar="ADDR", help="Scheduler of a fleet, tls://HOST:PORT.")
def devices(scheduler: str | None) -> None:
    """List the FPGAs of this machine, or of a fleet.

    On a machine with several, DEVICE chooses a worker's: an index, a PCIe address, or a name that
    no other has.
    """
    from rich.console import Console

    from .devices import show

    Console().print(show(scheduler))


@cli.group()
def bench() -> None:
    """Measure parts of this package side by side with the alternatives."""


def _numbers(each: click.ParamType[Any]) -> Callable[..., list[Any]]:
    """What reads numbers with commas between them, each as a type of click's does."""
    return lambda context, option, text: [
        each.convert(part, option, context) for part in text.split(",")
    ]


def _writable(_: click.Context, option: click.Parameter, file: Path | None) -> Path | None:
    """Refuse now what could not be written when everything is measured."""
    if file:
        try:
            there = file.exists()
            file.open("ab").close()
            if not there:
                file.unlink()
        except OSError as error:
            raise InputError(f"{option.opts[0]} {file}: {error.strerror}") from None
    return file


JSON = click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path),
    callback=_writable,
    help="Write the figures here.",
)


@bench.command()
@click.option(
    "--boards",
    default="1,2,4,8",
    callback=_numbers(click.IntRange(1, 64)),
    metavar="N,N,…",
    help="Sizes of the fleets to measure.",
)
@click.option(
    "--network", type=click.Choice(list(networks.NETWORKS)), default="cnvW2A2", help="Overlay."
)
@click.option(
    "--rate",
    default="860",
    callback=_numbers(click.FloatRange(0, 1e9)),
    metavar="R or R,R,…",
    help="Images/s of a board, 0 as fast as software can; a list gives one fleet its boards.",
)
@click.option("--records", type=click.IntRange(1), default=10_000, help="Images to classify.")
@click.option("--tcp", is_flag=True, help="Measure without encryption too.")
@click.option(
    "--figure",
    metavar="FILE.png",
    type=click.Path(path_type=Path),
    callback=_writable,
    help="Draw the execution times here.",
)
@JSON
def scaling(
    boards: list[int],
    network: str,
    rate: list[float],
    records: int,
    tcp: bool,
    figure: Path | None,
    file: Path | None,
) -> None:
    """Measure wall time over the number of boards, next to the ideal and the predecessor's way."""
    if figure and figure.suffix != ".png":
        raise InputError(f"--figure {figure}: expected a name that ends in .png")
    from rich.console import Console

    from .bench import scaling

    fleets = [rate] if len(rate) > 1 else [rate * n for n in boards]
    rows = scaling.scaling(fleets, networks.get(network), records, tcp=tcp)
    _write(file, rows)
    scaling.show(rows, Console())
    if figure:
        scaling.draw(rows, figure)


@bench.command()
@click.option(
    "--network",
    "names",
    type=click.Choice(list(networks.NETWORKS)),
    multiple=True,
    help="Overlay, may be repeated.  [default: all]",
)
@click.option("--batch", type=click.IntRange(1, 10_000), default=1_000, help="Images a call.")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, help="Spent on each.")
@JSON
def overlay(names: tuple[str, ...], batch: int, seconds: float, file: Path | None) -> None:
    """Measure the software overlays on one core, next to numpy, PyTorch and ONNX Runtime."""
    from rich.console import Console

    from .bench import overlay

    chosen = [networks.get(name) for name in names or networks.NETWORKS]
    rows = overlay.overlay(chosen, batch, seconds)
    _write(file, rows)
    overlay.show(rows, Console())


@bench.command()
@click.option("--rows", type=click.IntRange(1), default=4_400_000, help="Rows of the table.")
@click.option("--rounds", type=click.IntRange(1), default=7, help="Turns of every way.")
@click.option(
    "--oldest",
    metavar="PYTHON",
    type=click.Path(path_type=Path),
    help="A Python 3.8: measure with the versions of the oldest PYNQ image as well.",
)
@JSON
def arrow(rows: int, rounds: int, oldest: Path | None, file: Path | None) -> None:
    """Scatter a table of sales to a worker, as pandas, as Dask sends Arrow and as we do."""
    from rich.console import Console

    from .bench import arrow

    results = arrow.arrow(rows, rounds, oldest)
    _write(file, results)
    arrow.show(results, Console())


def main() -> None:
    """Run the command; what is wrong is told in one line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        sys.exit(_complain(error, BAD_INPUT))
    except ClusterError as error:
        sys.exit(_complain(error, NO_CLUSTER))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_complain("interrupted", INTERRUPTED))


def _write(file: Path | None, figures: object) -> None:
    if file:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _complain(what: object, code: int) -> int:
    print(f"distributed-pynq: {what}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
