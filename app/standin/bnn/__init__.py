"""Double of BNN-PYNQ's package bnn (commit d39c1c7): same names, limits and quirks, in software."""

from .bnn import (
    NETWORK_CNVW1A1,
    NETWORK_CNVW1A2,
    NETWORK_CNVW2A2,
    NETWORK_LFCW1A1,
    NETWORK_LFCW1A2,
    RUNTIME_HW,
    RUNTIME_SW,
    CnvClassifier,
    LfcClassifier,
    PynqBNN,
    available_params,
)

__all__ = [
    "NETWORK_CNVW1A1",
    "NETWORK_CNVW1A2",
    "NETWORK_CNVW2A2",
    "NETWORK_LFCW1A1",
    "NETWORK_LFCW1A2",
    "RUNTIME_HW",
    "RUNTIME_SW",
    "CnvClassifier",
    "LfcClassifier",
    "PynqBNN",
    "available_params",
]
__version__ = 0.1
