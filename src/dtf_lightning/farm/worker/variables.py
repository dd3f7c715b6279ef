"""The environment of an attempt's processes: the worker's, what the order adds, its devices and its folders. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.farm.worker.allotment import CPU, Allotment
from dtf_lightning.farm.worker.folders import AttemptFolder
from dtf_lightning.farm.worker.orders import AttemptOrder

PREFIX = "DTF_FARM_"
"""Of the variables that are the farm's: a worker's own are not handed on."""
MARK = "DTF_FARM_MARK"

VISIBLE = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    "amd": "HIP_VISIBLE_DEVICES",
    "intel": "ZE_AFFINITY_MASK",
    "habana": "HABANA_VISIBLE_MODULES",
    "aws": "NEURON_RT_VISIBLE_CORES",
    "google": "TPU_VISIBLE_CHIPS",
    "huawei": "ASCEND_RT_VISIBLE_DEVICES",
}
"""Vendor -> the variable by which its library sees some devices only. A device is named `vendor/index`, or `index`."""
CUDA_ORDER = "CUDA_DEVICE_ORDER"
NOTHING = {"nvidia": "", "amd": "-1"}
"""Vendor -> what the variable says for none; where it is not known, the variable is left alone."""
DEFAULT_VENDOR = "nvidia"

CACHES = {"HF_HOME": "huggingface", "TORCH_HOME": "torch", "UV_CACHE_DIR": "uv"}
"""Variable -> folder in the worker's cache: models and data that tasks download are there for the next ones."""


def attempt_variables(
    base: Mapping[str, str],
    order: AttemptOrder,
    *,
    folder: AttemptFolder,
    temporary: Path,
    cache: Path,
    devices: Mapping[str, tuple[str, ...]],
    allotment: Allotment,
    mark: str,
) -> dict[str, str]:
    """All variables of an attempt. Those of the order come before the worker's, the farm's own before both.

    Args:
        base: the worker's.
        temporary: its folder for temporary files.
        cache: folder of the worker's caches.
        devices: what the worker offers.
        allotment: what the attempt has got of it.
        mark: by which its processes are found.
    """
    return {
        **{name: value for name, value in base.items() if not name.startswith(PREFIX)},
        **{name: str(cache / part) for name, part in CACHES.items()},
        "TMPDIR": str(temporary),
        **order.environment,
        **order.secrets,
        **_in_the_workers_order(visible_devices(devices, allotment), base),
        **order.own,
        **({environment.FARM_TOKEN_FILE: str(folder.token)} if order.token else {}),
        environment.FARM_RESULTS: str(folder.results),
        **({environment.FARM_RETURNED: str(folder.returned)} if order.returns else {}),
        "DTF_FARM_TASK": order.task,
        "DTF_FARM_ATTEMPT": str(order.number),
        "DTF_FARM_WORKSPACE": str(folder.work),
        "DTF_FARM_DEVICES": ";".join(f"{resource}={','.join(parts)}" for resource, parts in allotment.items()),
        MARK: mark,
    }


def visible_devices(devices: Mapping[str, tuple[str, ...]], allotment: Allotment) -> dict[str, str]:
    """The variables that show an attempt its accelerators and hide the others'."""
    offered: dict[str, list[str]] = {}
    for resource, names in devices.items():
        for name in names if resource != CPU else ():
            vendor, index = _vendor_and_index(name)
            shown = offered.setdefault(vendor, [])
            if name in allotment.get(resource, {}):
                shown.append(index)
    found = {}
    for vendor, indices in offered.items():
        if vendor in VISIBLE and (indices or vendor in NOTHING):
            found[VISIBLE[vendor]] = ",".join(indices) if indices else NOTHING[vendor]
    if DEFAULT_VENDOR in offered:
        found[CUDA_ORDER] = "PCI_BUS_ID"  # CUDA counts the fastest first, the driver's tools by slot
    return found


def _in_the_workers_order(found: dict[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """A worker that sees some of a machine's devices only has counted them in its own order already."""
    return {name: value for name, value in found.items() if name != CUDA_ORDER or VISIBLE["nvidia"] not in base}


def cores(allotment: Allotment) -> list[int]:
    """The cores that an attempt may use; none: all."""
    return [int(name) for name in allotment.get(CPU, {}) if name.isdigit()]


def _vendor_and_index(name: str) -> tuple[str, str]:
    vendor, slash, index = name.partition("/")
    return (vendor, index) if slash else (DEFAULT_VENDOR, name)
