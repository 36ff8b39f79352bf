"""Double of pynq 2.5: as much of it as the driver and bnn need, over a stand-in fabric.

Its quirks are pynq's: it must be imported in the main thread, and from then on a segmentation fault
no longer kills the process but spins in it, since a Python handler cannot mend the instruction that
faulted (pynq/xlnk.py up to 2.6.2).
"""

import signal
import sys

from pynq.pl import PL, Overlay

__all__ = ["PL", "Overlay"]
__version__ = "2.5.1"


def _report_segmentation_fault(signum, frame):
    print("Invalid Memory Access!")
    sys.exit(127)


signal.signal(signal.SIGSEGV, _report_segmentation_fault)
