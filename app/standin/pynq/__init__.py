"""Double of pynq 2.5, and of what 2.6 has for PCIe cards: as much as the driver and bnn need.

Its quirks are pynq's: it must be imported in the main thread, and from then on a segmentation fault
no longer kills the process but spins in it, since a Python handler cannot mend the instruction that
faulted (pynq/xlnk.py up to 2.6.2).
"""

import signal
import sys

from pynq.device import Device, allocate
from pynq.pl import PL, Overlay

__all__ = ["PL", "Device", "Overlay", "allocate"]
__version__ = "2.5.1"


def _report_segmentation_fault(signum, frame):
    print("Invalid Memory Access!")
    sys.exit(127)


signal.signal(signal.SIGSEGV, _report_segmentation_fault)
