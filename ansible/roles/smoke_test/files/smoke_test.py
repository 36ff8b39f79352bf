"""Asks every worker of a cluster for its version and for the classes of a few digits.

usage: smoke_test.py SCHEDULER LIMIT_S WORKERS, where WORKERS is a JSON list of names. Prints a JSON
object: what is wrong with each worker, by its name; an empty text is a good sign.
"""

import json
import sys
import time

import distributed
import numpy as np

from distributed_pynq import datasets, networks
from distributed_pynq import worker as task

NETWORK = "lfcW1A1"
RECORDS = 100
ENOUGH = 0.8  # of them, right: a board that answers at random has 0.1
LIMIT_S = 120


def registered(client, names, limit):
    """Addresses of workers by name, once all of `names` are there or `limit` seconds are over."""
    deadline = time.monotonic() + limit
    while True:
        workers = client.sync(client.scheduler.identity)["workers"]
        found = {worker["name"]: address for address, worker in workers.items()}
        if found.keys() >= set(names) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def finding(loaded, classified, labels):
    """What is wrong with a worker, by what its two tasks returned."""
    try:
        version = loaded.result(LIMIT_S)["distributed"]
        if version != distributed.__version__:
            return f"runs distributed {version}, the scheduler {distributed.__version__}"
        classes = np.frombuffer(classified.result(LIMIT_S)["output"], "<i2")
    except Exception as error:
        return f"could not classify digits: {type(error).__name__}: {error}"
    right = int((classes == labels).sum())
    if right < ENOUGH * RECORDS:
        return f"classified only {right} of {RECORDS} digits right"
    return ""


def main():
    """The command line."""
    scheduler, limit, names = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
    network = networks.get(NETWORK)
    digits = datasets.load("digits", network)
    labels = digits.labels(0, RECORDS)
    records = task.Records(bytes(network.encode(digits.records(0, RECORDS))))
    with distributed.Client(scheduler, timeout=30) as client:
        found = registered(client, names, limit)
        futures = {}
        for name in filter(found.__contains__, names):
            there = {"workers": [found[name]], "pure": False}
            futures[name] = (
                client.submit(task.load, NETWORK, "digits", **there),
                client.submit(
                    task.classify, records, NETWORK, "digits", RECORDS, False, 60.0, **there
                ),
            )
        findings = {
            name: finding(*futures[name], labels)
            if name in futures
            else f"{name} has not registered with the scheduler"
            for name in names
        }
    print(json.dumps(findings))


main()
