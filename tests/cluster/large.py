"""Classify 10 million CIFAR records, a sparse file of 30 GB, and watch the memory.

usage: large.py [--records 10000000], or make large. Fails where a record is lost, or where the
client or a worker needs more memory than it may.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from distributed_pynq import datasets, networks
from distributed_pynq.bench import scaling

CLIENT_MB, WORKER_MB = 400, 150
EVERY_S = 1


def classify(records: int, folder: Path) -> tuple[dict[str, object], dict[str, float]]:
    """Run the job; returns its summary, and the most memory (MB, resident) of each process."""
    path, known = folder / "black.bin", folder / "known.npz"
    path.touch()
    os.truncate(path, records * datasets.CIFAR10_RECORD)
    # Stand-ins that know the answer leave the cores to what is to be measured.
    network = networks.get("cnvW1A1")
    scaling.know(known, np.zeros((1, network.record_bytes), np.uint8), network)
    environment = {**os.environ, "DISTRIBUTED_PYNQ_STANDIN_KNOWN": str(known)}
    command = [sys.executable, "-m", "distributed_pynq.cli", "classify", str(path), "--quiet"]
    command += ["--network", network.name, "--params", "digits"]
    command += ["--output", str(folder / "output")]
    job = psutil.Popen(command, env=environment)
    peaks: dict[str, float] = {}
    while job.poll() is None:
        for process in [job, *job.children()]:
            try:
                words = process.cmdline()
                name = words[words.index("--name") + 1] if "--name" in words else words[2]
                peaks[name] = max(peaks.get(name, 0), process.memory_info().rss / 2**20)
            except (psutil.NoSuchProcess, IndexError):
                continue
        time.sleep(EVERY_S)
    if job.returncode:
        sys.exit(f"the job failed with exit code {job.returncode}")
    return json.loads((folder / "output" / "summary.json").read_text()), peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distributed-pynq-") as folder:
        summary, peaks = classify(arguments.records, Path(folder))
    gigabytes = arguments.records * datasets.CIFAR10_RECORD / 1e9
    print(
        f"{summary['classified']:,} records, {gigabytes:.1f} GB, in {summary['wall_s']:,.0f} s: "
        f"{summary['images_per_s']:,.0f} images/s; {summary['lost']} lost, "
        f"{summary['duplicates']} duplicate"
    )
    print("most memory: " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items()))
    workers = [peak for name, peak in peaks.items() if name.startswith("standin-")]
    flat = peaks["distributed_pynq.cli"] < CLIENT_MB and max(workers) < WORKER_MB
    right = summary["classified"] == arguments.records and not summary["duplicates"]
    sys.exit(not (flat and right))


if __name__ == "__main__":
    main()
