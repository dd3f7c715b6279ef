"""`Ledger` decides which of a worker's devices an attempt gets: which cores, which accelerators. It is pure.

Rules that this file guards:

* no device is given away beyond what it is, and what comes back is what went out;
* whoever asks for whole devices gets them alone; parts of devices share one (best fit), so that others stay whole;
* cores are only where an attempt runs, not what it may use of others': where parts have left no whole one, it runs anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

WHOLE = 1000
"""Amounts are counted in thousandths of a device."""
CPU = "cpu"

Allotment = Mapping[str, Mapping[str, int]]
"""Resource -> device -> thousandths of it."""


class Shortage(Exception):
    """There is not enough of a resource. The scheduler thinks otherwise: the attempt belongs on another worker."""


class Ledger:
    """What is free of each device.

    Args:
        devices: resource -> names of its devices, each of which is one of that resource. What is asked of other resources
            has no device (memory, licences): it is counted by the scheduler only.
    """

    def __init__(self, devices: Mapping[str, tuple[str, ...]]) -> None:
        self.devices = devices
        self._free = {resource: dict.fromkeys(names, WHOLE) for resource, names in devices.items()}

    def allot(self, amounts: Mapping[str, float]) -> Allotment:
        """Take devices for an attempt. Raises `Shortage`, and takes nothing then."""
        found: dict[str, dict[str, int]] = {}
        for resource, amount in sorted(amounts.items()):
            free, wanted = self._free.get(resource), round(amount * WHOLE)
            if free is None or wanted == 0:
                continue
            taken = _choose(free, wanted)
            if taken is not None:
                found[resource] = taken
            elif resource != CPU:
                whole = sum(part == WHOLE for part in free.values())
                raise Shortage(
                    f"it needs {amount:g} {resource}, and this worker has {sum(free.values()) / WHOLE:g} free "
                    f"({whole} whole ones)"
                )
        self.take(found)
        return found

    def take(self, allotment: Allotment) -> None:
        """Take these, of an attempt that was found running. Devices that are not there any more are passed over."""
        self._add(allotment, -1)

    def give_back(self, allotment: Allotment) -> None:
        """They are free again."""
        self._add(allotment, 1)

    def free(self) -> dict[str, float]:
        """How much of each resource is free."""
        return {resource: sum(parts.values()) / WHOLE for resource, parts in self._free.items()}

    def _add(self, allotment: Allotment, sign: int) -> None:
        for resource, parts in allotment.items():
            free = self._free.get(resource, {})
            for name, part in parts.items():
                if name in free:
                    free[name] += sign * part


def _choose(free: Mapping[str, int], wanted: int) -> dict[str, int] | None:
    """Whole devices first come, the part of one from the fullest that has room; `None` if that is not to be had."""
    num_whole, part = divmod(wanted, WHOLE)
    whole = [name for name, left in free.items() if left == WHOLE]
    if len(whole) < num_whole:
        return None
    taken = dict.fromkeys(whole[:num_whole], WHOLE)
    if part:
        fitting = [name for name, left in free.items() if left >= part and name not in taken]
        if not fitting:
            return None
        taken[min(fitting, key=lambda name: free[name])] = part
    return taken
