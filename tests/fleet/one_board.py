"""A scheduler and one board's worker, run by the interpreter that runs this, to classify one chunk.

usage: one_board.py NETWORK PARAMS RECORDS <RECORDS_AS_THEY_TRAVEL >CLASSES_AS_A_DRIVER_WRITES_THEM
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import distributed

from distributed_pynq import worker

ADDRESS = "tcp://127.0.0.1:8786"
LIMIT_S = 300


@contextlib.contextmanager
def program(name: str, *options: str) -> Iterator[None]:
    """One of Dask's, for as long as the context lasts."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{name}", "--no-dashboard", *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def main(network: str, params: str, records: str) -> None:
    """Classify what comes in."""
    own = ("--nthreads", "2", "--no-nanny", "--memory-limit", "0")
    with (
        program("scheduler", "--host", "127.0.0.1", "--port", ADDRESS.rpartition(":")[2]),
        program("worker", ADDRESS, *own, "--preload", "distributed_pynq.worker"),
        distributed.Client(ADDRESS, timeout=LIMIT_S) as client,
    ):
        answer = client.submit(
            worker.run,
            "classify",
            {"network": network, "params": params},
            worker.Records(sys.stdin.buffer.read()),
            {"records": int(records), "scores": False},
            LIMIT_S,
            resources={"FPGA": 1},
        ).result(LIMIT_S)
    sys.stdout.buffer.write(answer["output"])


if __name__ == "__main__":
    main(*sys.argv[1:])
