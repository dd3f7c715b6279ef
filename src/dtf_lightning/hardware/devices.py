"""The accelerators of a machine: through their vendors' libraries where these are installed, else through torch, else by
what the PCI bus says. Nothing here needs a package beside torch, and nothing that fails stops training.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

Load = Callable[[str], Any]

VENDORS = {
    "0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel", "0x1da3": "Habana", "0x1d0f": "AWS", "0x1ae0": "Google",
    "0x19e5": "Huawei", "0x1e52": "Tenstorrent", "0x17cb": "Qualcomm",
}  # fmt: skip
"""By PCI id; a server's own display adapter is none of them."""
NO_DRIVER = " (no driver)"
"""At the end of the name of a device that nothing can use."""
DISPLAY, ACCELERATOR = "0x03", "0x12"
"""PCI classes."""


def describe_devices(load: Load = ctypes.CDLL, bus: Path = Path("/sys/bus/pci/devices")) -> dict[str, Any]:
    """`devices`: vendor, name and memory in bytes of each; `driver`, `cuda`, `rocm`, `nccl` where there are such."""
    found: dict[str, Any] = {"devices": []}
    for vendor, look in (("NVIDIA", _nvidia), ("AMD", _amd)):
        try:
            devices, driver = look(load)
        except (OSError, AttributeError, RuntimeError) as error:
            log.debug("no %s library: %s", vendor, error)
            continue
        found["devices"] += [{"vendor": vendor, **device} for device in devices]
        if devices:
            found["driver"] = ", ".join(filter(None, [found.get("driver"), f"{vendor} {driver}"]))
    found |= _versions()
    if not found["devices"]:
        found["devices"] = _of_torch()
    if not found["devices"]:
        found["devices"] = _on_bus(bus)
    return found


def _nvidia(load: Load) -> tuple[list[dict[str, Any]], str]:
    """Through NVML. Raises `OSError` without the library, `RuntimeError` when it fails."""
    nvml = load("libnvidia-ml.so.1")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(nvml, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")

    call("nvmlInit_v2")
    try:
        count, text = ctypes.c_uint(), ctypes.create_string_buffer(96)
        call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        devices = []
        for index in range(count.value):
            handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
            call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            call("nvmlDeviceGetName", handle, text, ctypes.c_uint(len(text)))
            name = text.value.decode(errors="replace")
            call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            devices.append({"name": name, "memory": int(memory[0])})
        call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        return devices, text.value.decode(errors="replace")
    finally:
        with contextlib.suppress(AttributeError):
            nvml.nvmlShutdown()


def _amd(load: Load) -> tuple[list[dict[str, Any]], str]:
    """Through ROCm's SMI library. Raises like `_nvidia`."""
    rsmi = load("librocm_smi64.so")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(rsmi, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")

    call("rsmi_init", ctypes.c_uint64(0))
    try:
        count, text = ctypes.c_uint32(), ctypes.create_string_buffer(128)
        call("rsmi_num_monitor_devices", ctypes.byref(count))
        devices = []
        for index in range(count.value):
            memory = ctypes.c_uint64()
            call("rsmi_dev_name_get", ctypes.c_uint32(index), text, ctypes.c_size_t(len(text)))
            name = text.value.decode(errors="replace")
            call("rsmi_dev_memory_total_get", ctypes.c_uint32(index), ctypes.c_int(0), ctypes.byref(memory))  # 0: VRAM
            devices.append({"name": name, "memory": int(memory.value)})
        call("rsmi_version_str_get", ctypes.c_int(0), text, ctypes.c_uint32(len(text)))  # 0: the driver's
        return devices, text.value.decode(errors="replace")
    finally:
        with contextlib.suppress(AttributeError):
            rsmi.rsmi_shut_down()


def _versions() -> dict[str, str]:
    found = {}
    if torch.version.cuda:
        found["cuda"] = str(torch.version.cuda)
    if torch.version.hip:
        found["rocm"] = str(torch.version.hip)
    with contextlib.suppress(RuntimeError, AssertionError, AttributeError, ValueError):
        if torch.cuda.is_available() and torch.distributed.is_nccl_available():
            nccl: Any = torch.cuda.nccl
            found["nccl"] = ".".join(map(str, nccl.version()))
    return found


def _of_torch() -> list[dict[str, Any]]:
    """CUDA's, ROCm's and Intel's, as torch sees them. A driver that fails is as good as none."""
    for backend, vendor in (
        (torch.cuda, "AMD" if torch.version.hip else "NVIDIA"),
        (getattr(torch, "xpu", None), "Intel"),
    ):
        with contextlib.suppress(RuntimeError, AssertionError, AttributeError):
            if backend is not None and backend.is_available():
                seen = [backend.get_device_properties(index) for index in range(backend.device_count())]
                return [{"vendor": vendor, "name": device.name, "memory": device.total_memory} for device in seen]
    return []


def _on_bus(bus: Path) -> list[dict[str, Any]]:
    """Whatever looks like an accelerator, by its PCI ids; how much memory it has is not known."""
    found = []
    for device in sorted(bus.glob("*")):
        with contextlib.suppress(OSError):
            kind, vendor, model = ((device / name).read_text().strip() for name in ("class", "vendor", "device"))
            known = VENDORS.get(vendor)
            if kind.startswith(ACCELERATOR) or (kind.startswith(DISPLAY) and known is not None):
                found.append({"vendor": known or vendor, "name": f"{known or vendor} {model}{NO_DRIVER}"})
    return found
