"""Asks the workers of a cluster what they are and, unless told otherwise, to classify digits; those
that do so right may have the records of jobs from then on.

usage: smoke_test.py SCHEDULER LIMIT_S classify|look WORKERS, where WORKERS is a JSON object: what
drives the networks on each worker, by its name. Where that is "none" there is nothing to classify.
Prints a JSON object: what is wrong with each worker, by its name; an empty text is a good sign.
"""

import json
import sys
import time

import distributed
import numpy as np

from distributed_pynq import __version__, datasets, networks
from distributed_pynq import worker as task

# finn-examples knows CIFAR-10 only: there any class will do for a digit.
TESTS = {
    "bnn-pynq": {"network": "lfcW1A1", "params": "digits"},
    "finn-examples": {"network": "cnvW1A1", "params": "cifar10"},
}
RECORDS = 100
CLASSES = 10
ENOUGH = 0.8  # of them, right: a board that answers at random has 0.1
LIMIT_S = 120.0


def registered(client, names, limit):
    """Addresses of workers by name, once all of `names` are there or `limit` seconds are over."""
    deadline = time.monotonic() + limit
    while True:
        workers = client.sync(client.scheduler.identity)["workers"]
        found = {worker["name"]: address for address, worker in workers.items()}
        if found.keys() >= set(names) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def outdated(worker, packages):
    """What is wrong with the versions of some packages of a worker that describes itself so."""
    ours = {"distributed": distributed.__version__, "distributed_pynq": __version__}
    for package in packages:
        version, found = ours[package], worker.get(package, "of another release")
        if found != version:
            return f"runs {package} {found}, the scheduler {version}; make deploy"
    return ""


def classify(client, runtimes):
    """What is wrong with the digits that workers classify, by address; all work at once."""
    futures = {}
    for address, runtime in runtimes.items():
        settings = TESTS[runtime]
        network = networks.get(settings["network"])
        digits = datasets.load("digits", network)
        labels = digits.labels(0, RECORDS)
        records = task.Records(bytes(network.encode(digits.records(0, RECORDS))))
        futures[address] = client.submit(
            *(task.run, "classify", settings, records, {"records": RECORDS}, LIMIT_S),
            workers=[address],
            pure=False,
        )
    findings = {}
    for address, future in futures.items():
        try:
            classes = np.frombuffer(future.result(LIMIT_S)["output"], "<i2")
            known = runtimes[address] == "bnn-pynq"
            right = int((classes == labels if known else classes < CLASSES).sum())
            findings[address] = (
                f"classified only {right} of {RECORDS} digits right"
                if right < ENOUGH * RECORDS
                else ""
            )
        except Exception as error:
            findings[address] = f"could not classify digits: {type(error).__name__}: {error}"
    return findings


def main():
    """The command line."""
    scheduler, limit, what, workers = sys.argv[1:]
    names = json.loads(workers)
    with distributed.Client(scheduler, timeout=30) as client:
        found = registered(client, names, float(limit))
        there = {name: address for name, address in found.items() if name in names}
        described = client.run(task.describe, workers=list(there.values()))
        # Boards that are being upgraded are ahead of the scheduler, and have to get along with it.
        packages = ["distributed"] if what == "classify" else ["distributed", "distributed_pynq"]
        findings = {name: outdated(described[address], packages) for name, address in there.items()}
        good = {name: there[name] for name, finding in findings.items() if not finding}
        if what == "classify":
            able = {name: address for name, address in good.items() if names[name] in TESTS}
            classified = classify(client, {able[name]: names[name] for name in able})
            findings.update((name, classified[address]) for name, address in able.items())
        for name, address in good.items():
            if told := described[address]["fault"]:
                findings[name] = f"has no device: {told}"
            elif what == "look" and not described[address]["proven"]:
                findings[name] = "has passed no test yet and gets no records: make deploy"
        proven = [address for name, address in good.items() if not findings[name]]
        if what == "classify" and proven:
            client.run(task.admit, workers=proven)
    for name in set(names) - set(there):
        findings[name] = "has not registered with the scheduler"
    print(json.dumps({name: told and f"worker {name} {told}" for name, told in findings.items()}))


main()
