"""The FPGAs of this machine and the memory they share with it: pynq.Device and pynq.allocate.

``DISTRIBUTED_PYNQ_STANDIN_DEVICES``
    PCIe cards, NAME@ADDRESS separated by commas, e.g. ``xilinx_u50@0000:01:00.0``; several may have
    the same name. They are found only where XILINX_XRT is set, as XRT finds them. Without this
    setting the machine is a Zynq board, which has one device.
``DISTRIBUTED_PYNQ_STANDIN_PULLED``
    A folder: a card is gone while a file there has its address for a name.
"""

import errno
import os
import re
import threading
import types
import warnings
import weakref

import numpy as np

_DEVICES = "DISTRIBUTED_PYNQ_STANDIN_DEVICES"
_PULLED = "DISTRIBUTED_PYNQ_STANDIN_PULLED"
PAGE = 4096
BANK = 1 << 34  # bytes of memory that a device has


class DeviceMeta(type):
    """Finds the devices when they are first asked for, and opens every one."""

    @property
    def devices(cls):
        """All devices of this machine."""
        if not hasattr(cls, "_devices"):
            cls._devices = _probe()
        return cls._devices

    @property
    def active_device(cls):
        """The device that is used where none is named, by default the first."""
        if not hasattr(cls, "_active_device"):
            if not cls.devices:
                raise RuntimeError("No Devices Found")
            cls._active_device = cls.devices[0]
        return cls._active_device

    @active_device.setter
    def active_device(cls, device):
        cls._active_device = device


class Device(metaclass=DeviceMeta):
    """An FPGA and its memory.

    Attributes
    ----------
    tag : str
        E.g. "xrt0".
    bitfile_name : str or None
        Absolute path of the bitstream that is loaded.
    timestamp : float or None
        When it was loaded: whoever finds another one has lost what he kept in the logic.
    """

    def __init__(self, tag, index=0):
        self.tag = tag
        self.bitfile_name = None
        self.timestamp = None
        self._memory = {}
        # Cards have address spaces of their own. Here an address is good on its own card only.
        self._free = (index + 1) * BANK

    def allocate(self, shape, dtype):
        """A buffer here and on the device, see `allocate`."""
        self.require("Allocate failed: {}", unsigned=True)
        return PynqBuffer(shape, dtype, device=self)

    def memory(self, address, size):
        """Bytes of the device's memory, uint8 (size,), or None where nothing is allocated."""
        for start, content in self._memory.items():
            if start <= address and address + size <= start + len(content):
                return content[address - start : address - start + size]
        return None

    def reserve(self, size):
        """Allocate device memory; return its address."""
        address = self._free
        self._free += -(-size // PAGE) * PAGE
        self._memory[address] = np.zeros(size, np.uint8)
        return address

    def release(self, address):
        """Free device memory."""
        self._memory.pop(address, None)

    def require(self, message, unsigned=False):
        """Raise RuntimeError unless the device is there and open."""


class XlnkDevice(Device):
    """The device of a Zynq board."""

    def __init__(self):
        super().__init__("xlnk")

    @property
    def name(self):
        """Name of the board."""
        if "BOARD" not in os.environ:
            raise RuntimeError("Could not retrieve ZYNQ device name. BOARD env not set")
        return os.environ["BOARD"]


class XrtDevice(Device):
    """A PCIe card, opened.

    Attributes
    ----------
    name : str
        Name of the card's shell, e.g. "xilinx_u50", which cards of one kind share.
    device_info : object
        mName, and mPciSlot: bus << 8 | device << 3 | function.
    handle : int or None
        None once it is closed.
    """

    def __init__(self, index, name, address):
        if threading.current_thread() is not threading.main_thread():
            thread = threading.current_thread().name
            raise RuntimeError(f"There is no current event loop in thread {thread!r}.")
        super().__init__(f"xrt{index}", index)
        bus, device, function = (int(part, 16) for part in re.split("[:.]", address)[1:])
        self.name = name
        self.device_info = types.SimpleNamespace(
            mName=name.encode(), mPciSlot=bus << 8 | device << 3 | function
        )
        self.handle = index
        self._address = address

    def close(self):
        """Let go of the card."""
        self.handle = None

    def allocate(self, shape, dtype):
        """A buffer here and on the card, see `allocate`; an overlay must be there before."""
        if self.bitfile_name is None:
            raise RuntimeError("No active memories in design")
        return super().allocate(shape, dtype)

    def require(self, message, unsigned=False):
        """Raise RuntimeError unless the card is there and open."""
        if self.handle is None or _pulled(self._address):
            code = -(errno.EBADF if self.handle is None else errno.ENODEV)
            raise RuntimeError(message.format(code % 2**32 if unsigned else code))


class PynqBuffer(np.ndarray):
    """An array in two places: here, and in a device's memory. Only syncing makes them the same.

    Attributes
    ----------
    device : Device
        Where its other half is.
    device_address : int
        Where there.
    """

    device = None  # numpy 2 has an attribute of that name, read-only

    def __new__(cls, shape, dtype, device):
        self = super().__new__(cls, shape, dtype)
        self.fill(0)
        self.device = device
        self.device_address = device.reserve(self.nbytes)
        self._finalizer = weakref.finalize(self, device.release, self.device_address)
        return self

    def __array_finalize__(self, source):
        self.device = getattr(source, "device", None)
        self.device_address = self._finalizer = None
        if self.device is not None:
            self.device_address = source.device_address + self.virtual_address
            self.device_address -= source.virtual_address

    @property
    def virtual_address(self):
        """Where it is here."""
        return self.__array_interface__["data"][0]

    def sync_to_device(self):
        """Copy what is here to the device."""
        self._device_half("Flush Failed: {}")[:] = self._bytes()

    def sync_from_device(self):
        """Copy what is on the device here."""
        self._bytes()[:] = self._device_half("Invalidate Failed: {}")

    def freebuffer(self):
        """Free the device's memory."""
        if self._finalizer is not None:
            self._finalizer()

    def _bytes(self):
        return self.view(np.ndarray).reshape(-1).view(np.uint8)

    def _device_half(self, message):
        self.device.require(message, unsigned=True)
        half = self.device.memory(self.device_address, self.nbytes)
        if half is None:
            raise RuntimeError(message.format(-errno.ENOENT % 2**32))
        return half


def allocate(shape, dtype="u4", target=None):
    """Allocate an array here and on a device.

    Parameters
    ----------
    shape, dtype
        As numpy takes them.
    target : Device
        By default the active one.

    Returns
    -------
    PynqBuffer
        Zeros, on both sides.

    Raises
    ------
    RuntimeError
        There is no device, no overlay on the card, or the card is gone.
    """
    return (target or Device.active_device).allocate(shape, dtype)


def parse_devices(text):
    """Cards of a setting: [(name, address)].

    Raises
    ------
    ValueError
        It does not follow the grammar above, or two cards share an address.
    """
    cards = []
    for card in text.split(","):
        match = re.fullmatch(r"(\w+)@([0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])", card.strip())
        if match is None or match.group(2) in dict(map(reversed, cards)):
            raise ValueError(
                f"{_DEVICES}={text!r}: expected NAME@0000:01:00.0, addresses all different, "
                f"not {card!r}"
            )
        cards.append(match.groups())
    return cards


def _probe():
    text = os.environ.get(_DEVICES)
    if text is None:
        return [XlnkDevice()]
    if "XILINX_XRT" not in os.environ:
        warnings.warn(
            "No devices found, is the XRT environment sourced?", UserWarning, stacklevel=3
        )
        return []
    present = [card for card in parse_devices(text) if not _pulled(card[1])]
    return [XrtDevice(index, *card) for index, card in enumerate(present)]


def _pulled(address):
    return _PULLED in os.environ and os.path.exists(os.path.join(os.environ[_PULLED], address))
