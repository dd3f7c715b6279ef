"""What `@pytest.mark.farm(...)` says of a test. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.needs import CPU, MEMORY, Need, lacking, offered, quantised

NAMES = ("cpu", "gpu", "memory", "needs", "labels", "exclusive", "timeout", "together")
"""That a mark may give."""
_MIB = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0, "TiB": 1024.0 * 1024.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB|TiB)")


@dataclass(frozen=True, kw_only=True)
class TestNeeds:
    """What a test needs. `is_plain`: what every test needs."""

    __test__ = False  # to pytest its name looks like that of tests

    amounts: tuple[tuple[str, float], ...] = ((CPU, 1.0),)
    labels: tuple[str, ...] = ()
    exclusive: bool = False

    @property
    def need(self) -> Need:
        """As the farm has it; `memory` is in MiB."""
        return Need(amounts=dict(self.amounts), labels=self.labels, exclusive=self.exclusive)

    def with_labels(self, labels: Sequence[str]) -> TestNeeds:
        """Return the same on a worker that carries these labels, too."""
        return replace(self, labels=tuple(sorted({*self.labels, *labels}))) if labels else self

    @property
    def request(self) -> dict[str, Any]:
        """As the API takes it."""
        return {"amounts": dict(self.amounts), "labels": list(self.labels), "exclusive": self.exclusive}


PLAIN = TestNeeds()


@dataclass(frozen=True, kw_only=True)
class Marked:
    """What marks say of a test."""

    needs: TestNeeds = PLAIN
    timeout: float | None = None
    """Seconds."""
    together: str | None = None
    """Tests with the same name here stay together."""


def read_marks(marks: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> Marked:
    """Return what the marks of a test say together; of two that say the same the first counts.

    Args:
        marks: positional and named arguments of each, the closest first.

    Raises `SettingsError` for what a mark cannot say.
    """
    told: dict[str, Any] = {}
    for positional, named in marks:
        if positional:
            raise SettingsError(f"@pytest.mark.farm takes names, such as gpu=1; got {positional[0]!r} without one")
        told = {**named, **told}
    for name in told:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(NAMES)}"
            raise SettingsError(f"@pytest.mark.farm does not know {name!r}: {hint}")
    amounts: dict[str, float] = {CPU: 1.0}
    for name, amount in {**told.get("needs", {}), **{key: told[key] for key in ("cpu", "gpu") if key in told}}.items():
        amounts[name] = _number(name, amount)
    if "memory" in told:
        amounts[MEMORY] = _mebibytes(told["memory"])
    timeout = told.get("timeout")
    needs = TestNeeds(
        amounts=tuple(sorted(amounts.items())),
        labels=tuple(sorted(told.get("labels", ()))),
        exclusive=bool(told.get("exclusive", False)),
    )
    together = told.get("together")
    return Marked(
        needs=needs,
        timeout=None if timeout is None else _number("timeout", timeout),
        together=None if together is None else str(together),
    )


def _number(name: str, amount: object) -> float:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1e12:
        raise SettingsError(f"@pytest.mark.farm({name}={amount!r}): expected a number above 0")
    return float(amount)


def _mebibytes(amount: object) -> float:
    if isinstance(amount, str):
        read = _SIZE.fullmatch(amount)
        if read is None:
            raise SettingsError(f"@pytest.mark.farm(memory={amount!r}): expected such as '4GiB' or '512MiB'")
        return float(read[1]) * _MIB[read[2]]
    return _number("memory", amount)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a worker of the farm has."""

    devices: Mapping[str, float]
    labels: Sequence[str]


def num_slots(offers: Sequence[Offer], needs: TestNeeds) -> int:
    """Return how many shards with these needs the workers can run at once, while nothing else runs."""
    total = 0
    for offer in offers:
        if lacking(needs.need, offer.devices, offer.labels):
            continue
        wanted = quantised(needs.need.amounts)
        fit = [offered(offer.devices[resource]) // amount for resource, amount in wanted.items()]
        total += 1 if needs.exclusive else min(fit, default=1)
    return total


def why_nowhere(offers: Sequence[Offer], needs: TestNeeds) -> str:
    """Say why no worker can ever run a test with these needs; "" if one can."""
    missing = [lacking(needs.need, offer.devices, offer.labels) for offer in offers]
    if not missing or not all(missing):
        return ""
    nearest = min(missing, key=len)
    if len(offers) == 1:
        return f"the farm's one worker cannot run it: it lacks {', '.join(nearest)}"
    return f"none of the farm's {len(offers)} workers can run it: the nearest lacks {', '.join(nearest)}"
