"""Which of a machine's FPGAs is this process's: chosen by DEVICE, claimed, the only one left open.

XRT lets several processes open one card, and each thinks it is alone: what claims a device is a
lock on a file on tmpfs ($DISTRIBUTED_PYNQ_TMPFS, by default /dev/shm), which ends with the process.
"""

import fcntl
import os


class NoDevice(Exception):
    """The device that was wanted is not to be had; says which ones are there."""


class Found:
    """A device of this machine.

    Attributes
    ----------
    index : int
        Its place among pynq's devices.
    address : str
        PCIe address such as "0000:01:00.0"; empty for the FPGA of a Zynq board.
    name : str
        What identical cards share, or a Zynq board's name.
    handle : pynq.Device
        None with pynq before 2.5, which knows of one device only.
    """

    def __init__(self, index, handle):
        self.index = index
        self.handle = handle
        # Bus, device and function of xclDeviceInfo2 (XRT); it has no room for a domain.
        slot = getattr(getattr(handle, "device_info", None), "mPciSlot", 0)
        place = slot >> 8, slot >> 3 & 0x1F, slot & 7
        self.address = "0000:{:02x}:{:02x}.{:x}".format(*place) if slot else ""
        self.name = handle.name if slot else os.environ.get("BOARD", "")

    @property
    def id(self):
        """What no other device of this machine has, and what changes least."""
        return self.address or str(self.index)

    @property
    def description(self):
        """What `distributed-pynq devices` tells."""
        return {"index": self.index, "device": self.id, "name": self.name}

    def is_called(self, wanted):
        """Whether that is this device's index, address, with or without the domain, or name."""
        names = str(self.index), f"xrt{self.index}", self.address, self.address[5:], self.name
        return wanted.lower() in [name.lower() for name in names if name]

    def __str__(self):
        return " ".join(filter(None, [str(self.index), self.address, self.name]))


def find(pynq):
    """All devices of this machine, opened; in the main thread, since XRT wants it."""
    handles = pynq.Device.devices if hasattr(pynq, "Device") else [None]
    return [Found(index, handle) for index, handle in enumerate(handles)]


def choose(found, wanted):
    """The one of the devices found that has this index (0, xrt0), address or name.

    Raises
    ------
    NoDevice
        There is none like that, or more than one.
    """
    if not found:
        hint = "" if "XILINX_XRT" in os.environ else "; XILINX_XRT is not set"
        raise NoDevice(f"DEVICE={wanted}: pynq finds no device here{hint}")
    chosen = [device for device in found if device.is_called(wanted)]
    if not chosen:
        raise NoDevice(f"DEVICE={wanted}: no such device here, only {_list(found)}")
    if len(chosen) > 1:
        raise NoDevice(
            f"DEVICE={wanted}: {len(chosen)} devices have that name; choose by "
            f"index or address: {_list(found)}"
        )
    return chosen[0]


def choose_all(found, wanted):
    """As `choose`, for several that must be different ones."""
    names = {}
    for name in wanted:
        device = choose(found, name)
        if device in names:
            raise NoDevice(f"DEVICE={name}: the same as {names[device]}; here are {_list(found)}")
        names[device] = name


def open_device(pynq, wanted):
    """Open, claim and activate one device; close the others.

    Parameters
    ----------
    pynq : module
        The board's own.
    wanted : str
        The device's index (0, xrt0), address or name.

    Returns
    -------
    Found
        The device, which is pynq's active one now.

    Raises
    ------
    NoDevice
        There is none like that, or more than one, or it cannot be claimed.
    """
    found = find(pynq)
    device = choose(found, wanted)
    try:
        _claim(device)
    except OSError as error:
        told = "claimed by another process" if isinstance(error, BlockingIOError) else error
        raise NoDevice(f"DEVICE={wanted}: {told}; here are {_list(found)}") from None
    for other in found:
        if other is not device:
            other.handle.close()
    if device.handle is not None:
        pynq.Device.active_device = device.handle
    return device


def _list(found):
    return "; ".join(map(str, found))


def _claim(device):
    folder = os.environ.get("DISTRIBUTED_PYNQ_TMPFS", "/dev/shm")
    path = os.path.join(folder, f"distributed-pynq-{device.id}.lock")
    # Every user can lock what another made, whatever that one's umask; but only if it is opened
    # without O_CREAT, which the kernel refuses for the files of others in such folders.
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(lock, 0o644)
    except FileExistsError:
        lock = os.open(path, os.O_RDONLY)
    # It stays open until the process ends, and the lock with it.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
