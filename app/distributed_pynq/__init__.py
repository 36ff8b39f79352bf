"""Distributed PYNQ: a shelf of PYNQ boards as one Dask cluster that classifies images."""

__version__ = "0.1.0"
