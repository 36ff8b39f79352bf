"""The predecessor's task: a file on disk, and a new process that loads the overlay, every time.

Workers import this when they get their first task, while the clock runs: the standard library is
all it needs.
"""

import json
import os
import subprocess
import sys
import tempfile

LOAD_S = 1.5
"""From the start of the new process until overlay and parameters are loaded, on a real board."""

# What the process does. Its double of a board is ready before LOAD_S and waits for the rest: real
# boards load side by side, but all stand-ins start their processes on this machine's cores.
PROCESS = """
import json, os, sys, time
path, network, params, load_s = sys.argv[1:]
loaded = time.monotonic() + float(load_s)
import bnn
bnn.bnn.BNN_PARAM_DIR = os.environ["DISTRIBUTED_PYNQ_PARAMS"]
stdout = os.dup(1)
os.dup2(2, 1)
classifier = bnn.CnvClassifier(network, params, bnn.RUNTIME_HW)
time.sleep(max(0, loaded - time.monotonic()))
os.write(stdout, json.dumps(classifier.classify_cifars(path).tolist()).encode())
"""


def classify(records: bytes, network: str, params: str) -> list[int]:
    """Classes of CIFAR-10 records."""
    with tempfile.NamedTemporaryFile(dir=tempfile.gettempdir(), suffix=".bin") as file:
        file.write(records)
        file.flush()
        os.fsync(file.fileno())
        python = os.environ.get("DISTRIBUTED_PYNQ_DRIVER_PYTHON", sys.executable)
        run = subprocess.run(
            [python, "-c", PROCESS, file.name, network, params, str(LOAD_S)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return [int(number) for number in json.loads(run.stdout)]
