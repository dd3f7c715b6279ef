"""How much of an NVIDIA device is in use, through the driver's own library (NVML), without any package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceUse:
    """A device at one moment."""

    memory: int
    """Bytes that are taken, by whomever."""
    use: float
    """Share of the last sampling period (a sixth of a second to a second) in which a kernel ran, 0 to 1."""


class Nvml:
    """The library, opened. Thread-safe. `close` it.

    Raises `OSError` where there is no such library, `RuntimeError` where the driver does not answer.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._nvml = load("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")

    def read(self, device: str) -> DeviceUse:
        """Return the use of a device. Raises `RuntimeError` for one that the driver does not know or tell about.

        `device`: its number, or its UUID (`GPU-...`, `MIG-...`).
        """
        handle = ctypes.c_void_p()
        if device.isdecimal():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(device)), ctypes.byref(handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(device.encode()), ctypes.byref(handle))
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        rates = (ctypes.c_uint * 2)()  # per cent: of the processors, of the memory's bus
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates))
        return DeviceUse(memory=int(memory[2]), use=rates[0] / 100)

    def close(self) -> None:
        """Let the library go."""
        self._nvml.nvmlShutdown()

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            code = getattr(self._nvml, name)(*arguments)
        except AttributeError:
            raise RuntimeError(f"this NVML has no {name}") from None
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")
