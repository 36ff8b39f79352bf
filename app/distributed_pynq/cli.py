"""The command distributed-pynq."""

from __future__ import annotations

import asyncio
import sys
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
    help="Records per task.  [default: 0.1 s of FPGA time]",
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

    Exit code 0: all classified. 2: bad usage or input. 3: some records could not be classified;
    summary.json names them. 4: no scheduler or no board reachable; --resume continues.
    """
    if scheduler and boards:
        raise InputError("--boards: stand-in boards of this machine do not go with --scheduler")
    # Dask and its company take a second to import: not for --help or bad usage.
    from .order import Order

    order = Order.resumed(**wishes) if wishes["resume"] else Order.new(**wishes)
    summary = asyncio.run(order.carry_out(scheduler, boards or 2, chunk, quiet=quiet))
    sys.exit(NOT_ALL if summary["failed"] else 0)


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


def _complain(what: object, code: int) -> int:
    print(f"distributed-pynq: {what}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
