"""What is loaded into the programmable logic (PL), and how it gets there."""

import os
import time

from overlays import NETWORKS


class PL:
    """The programmable logic of this board, of which there is one.

    Attributes
    ----------
    bitfile_name : str or None
        Absolute path of the bitstream that is loaded.
    timestamp : float or None
        When it was loaded: whoever finds another one has lost what he kept in the logic.
    """

    bitfile_name = None
    timestamp = None


class Overlay:
    """A bitstream, downloaded into the PL at once unless told otherwise.

    Parameters
    ----------
    bitfile_name : str
        Path of the bitstream, ``DESIGN-PLATFORM.bit``.
    download : bool
        Whether to download it now.

    Raises
    ------
    OSError
        There is no such bitstream, which on a stand-in is a name without a file: stand-ins compute
        what it does.
    """

    def __init__(self, bitfile_name, dtbo=None, download=True, ignore_version=False, device=None):
        if os.path.basename(bitfile_name).split("-")[0] not in NETWORKS:
            raise OSError(f"Bitstream file {bitfile_name} does not exist.")
        self.bitfile_name = os.path.abspath(bitfile_name)
        if download:
            self.download()

    def download(self, dtbo=None):
        """Load the bitstream into the PL, which forgets everything it held."""
        PL.bitfile_name = self.bitfile_name
        PL.timestamp = time.time()

    def is_loaded(self):
        """Whether this bitstream is the one in the PL."""
        return PL.bitfile_name == self.bitfile_name
