"""How fast a stand-in's FPGA is, and what goes wrong with it.

``DISTRIBUTED_PYNQ_STANDIN_RATE``
    Images per second: a batch of n images takes n / rate seconds, as on a board of that rate.
    By default as fast as software can.
``DISTRIBUTED_PYNQ_STANDIN_FAULT``
    What happens to the N-th batch of this process, counted from 1: ``abort@N`` (the runtime kills
    the process), ``hang@N`` (only SIGKILL ends it), ``slow@N:SECONDS`` (so much longer); or to
    every batch with an image of that CRC-32: ``abort@crc32:HEX``. Several are separated by commas.
"""

import contextlib
import math
import os
import re
import signal
import time
import zlib

_RATE = "DISTRIBUTED_PYNQ_STANDIN_RATE"
_FAULT = "DISTRIBUTED_PYNQ_STANDIN_FAULT"


def parse_rate(text):
    """Images per second of a setting, infinite where it is empty.

    Raises
    ------
    ValueError
        It is no positive number.
    """
    if not text:
        return math.inf
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise ValueError(f"{_RATE}={text!r}: expected a positive number of images per second")
    return rate


def parse_faults(text):
    """Faults of a setting: {batch: (kind, seconds)}, batches counted from 1; an image's fault has
    the key "crc32:HEX".

    Raises
    ------
    ValueError
        It does not follow the grammar above, or names a batch twice.
    """
    faults = {}
    for fault in filter(None, text.split(",")):
        if re.fullmatch(r"abort@crc32:[0-9a-f]{8}", fault.strip()):
            faults[fault.strip()[len("abort@") :]] = "abort", 0.0
            continue
        match = re.fullmatch(r"(abort|hang|slow)@([1-9]\d*)(?::(\d+(?:\.\d+)?))?", fault.strip())
        if match is None or (match.group(1) == "slow") != (match.group(3) is not None):
            raise ValueError(
                f"{_FAULT}={text!r}: expected abort@N, hang@N, slow@N:SECONDS or "
                f"abort@crc32:HEX, not {fault!r}"
            )
        batch = int(match.group(2))
        if batch in faults:
            raise ValueError(f"{_FAULT}={text!r}: batch {batch} has two faults")
        faults[batch] = match.group(1), float(match.group(3) or 0)
    return faults


def terminate(exception, what=None):
    """End the process as the C++ runtime does when nobody catches an exception."""
    message = f"terminate called after throwing an instance of '{exception}'\n"
    if what is not None:
        message += f"  what():  {what}\n"
    os.write(2, message.encode())
    os.abort()


class Fabric:
    """The FPGA as a place where batches take their time.

    Parameters
    ----------
    rate : float
        Images per second.
    faults : dict
        {batch: (kind, seconds)}, see `parse_faults`.
    """

    def __init__(self, rate=math.inf, faults=None):
        self.rate = rate
        self.faults = faults or {}
        self._poison = {key for key in self.faults if isinstance(key, str)}
        self._batches = 0
        self._late = 0.0

    def run(self, compute, images):
        """Process one batch.

        Parameters
        ----------
        compute : callable
            Does the computing.
        images : numpy.ndarray
            What it computes, uint8 (n, bytes of an image).

        Returns
        -------
        tuple
            What ``compute(images)`` returned, and the microseconds that the batch took.
        """
        start = time.perf_counter()
        self._batches += 1
        fault, delay = self.faults.get(self._batches, (None, 0.0))
        if self._poison and any(f"crc32:{zlib.crc32(i):08x}" in self._poison for i in images):
            fault = "abort"
        with _native_code():
            if fault == "abort":
                terminate("char const*")
            while fault == "hang":
                signal.pause()
            result = compute(images)
            busy = max(time.perf_counter() - start, len(images) / self.rate) + delay
            # A sleep ends a little late. The next one makes up for it, or else the delays of a long
            # run would add up; but by one batch at most: no FPGA does in an instant what its host
            # had no time for.
            end = start + busy - self._late
            time.sleep(max(0.0, end - time.perf_counter()))
            self._late = min(busy, time.perf_counter() - end)
        return result, max(1, round(busy * 1e6))


@contextlib.contextmanager
def _native_code():
    """Python's handlers do not run while C++ code does: SIGTERM waits until that returns."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


FABRIC = Fabric(parse_rate(os.environ.get(_RATE, "")), parse_faults(os.environ.get(_FAULT, "")))
