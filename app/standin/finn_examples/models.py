"""The accelerators by name, with the interface of finn_examples/models.py."""

import os

import pynq
from pynq.device import XlnkDevice

from .driver import FINNExampleOverlay

_cifar10_cnv_io_shape_dict = {
    "ishape_normal": [(1, 32, 32, 3)],
    "oshape_normal": [(1, 1)],
    "ishape_folded": [(1, 32, 32, 3, 1)],
    "oshape_folded": [(1, 1, 1)],
    "ishape_packed": [(1, 32, 32, 3, 1)],
    "oshape_packed": [(1, 1, 1)],
    "num_inputs": 1,
    "num_outputs": 1,
}


def get_edge_or_pcie():
    """ "edge" on a Zynq board, "pcie" with cards; the real one asks platform.processor()."""
    return "edge" if isinstance(pynq.Device.active_device, XlnkDevice) else "pcie"


def find_bitfile(model_name, target_platform, bitfile_path):
    """Path of a model's bitstream, which is the one that is given, or that was installed.

    Raises
    ------
    Exception
        None was installed for the platform.
    """
    if bitfile_path is not None:
        return bitfile_path
    name = "{}.{}".format(model_name, {"edge": "bit", "pcie": "xclbin"}[get_edge_or_pcie()])
    bitfiles = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bitfiles")
    candidates = [
        os.path.join(bitfiles, target_platform, name),
        os.path.join(bitfiles, "bitfiles.zip.d", target_platform, name),
    ]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise Exception(
        f"Bitfile for model = {model_name} target platform = {target_platform} not found. "
        f"Looked in: {candidates}"
    )


def get_driver_mode():
    """How the accelerator is driven."""
    return {"edge": "zynq-iodma", "pcie": "alveo"}[get_edge_or_pcie()]


def check_platform_is_valid(platform):
    """The platform if there are bitstreams for it; a Pynq-Z2 is not known by name."""
    if platform not in ["Pynq-Z1", "ZCU104", "Ultra96"]:
        raise Exception("Platform not currently supported by FINN-Examples")
    return platform


def resolve_target_platform(target_platform):
    """The platform that is given, which must be here, or the active device's."""
    if target_platform is None:
        return check_platform_is_valid(pynq.Device.active_device.name)
    assert target_platform in [device.name for device in pynq.Device.devices]
    return check_platform_is_valid(target_platform)


def cnv_w1a1_cifar10(target_platform=None, bitfile_path=None):
    """CNV, 1-bit weights, 1-bit activations."""
    return _cifar10("cnv-w1a1", target_platform, bitfile_path)


def cnv_w1a2_cifar10(target_platform=None, bitfile_path=None):
    """CNV, 1-bit weights, 2-bit activations."""
    return _cifar10("cnv-w1a2", target_platform, bitfile_path)


def cnv_w2a2_cifar10(target_platform=None, bitfile_path=None):
    """CNV, 2-bit weights, 2-bit activations."""
    return _cifar10("cnv-w2a2", target_platform, bitfile_path)


def _cifar10(model_name, target_platform, bitfile_path):
    filename = find_bitfile(model_name, resolve_target_platform(target_platform), bitfile_path)
    return FINNExampleOverlay(filename, get_driver_mode(), _cifar10_cnv_io_shape_dict)
