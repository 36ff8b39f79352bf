"""The five BNN-PYNQ overlays in software, bit for bit: what an FPGA with their bitstream answers.

``load`` is the way in. ``plain`` needs numpy alone (Python 3.6 on); ``fast`` needs numba.
"""

from .parameters import NETWORKS, read

__all__ = ["NETWORKS", "load"]


def load(folder, network=None):
    """An overlay with the parameters of a folder, computed as fast as this interpreter can.

    folder: ``.../<dataset>/<network>``. network: by default the folder's own name.
    Returns an Overlay of ``fast`` where numba is installed, else of ``plain``; both have
    ``.parameters``, ``.scores(records)`` and ``.words(images)``. Raises what ``parameters.read``
    does.
    """
    try:
        from .fast import Overlay
    except ImportError:
        from .plain import Overlay
    return Overlay(read(folder, network))
