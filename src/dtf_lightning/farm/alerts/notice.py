"""`Notice`: one thing that is said of an incident, and `Handler`, which says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dtf_lightning.farm.rules.watching.incidents import AlertOf, Delivery, Incident, Step, delivery_key

MAX_LINES = 20
"""Alerts that a text names; JSON has all."""

_VERBS = {
    Step.FIRING: "is firing",
    Step.WORSE: "has become worse",
    Step.GROWN: "has grown",
    Step.ESCALATED: "is not acknowledged",
    Step.RESOLVED: "is over",
}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What a handler is given. All of it is text, numbers and lists of these."""

    key: str
    """The same for every try at this one: who has seen it before has been told."""
    incident: str
    """Its id."""
    name: str
    step: str
    """`firing`, `worse`, `grown`, `escalated`, `resolved`, or `test`."""
    severity: str
    owners: tuple[str, ...]
    title: str
    """One line."""
    alerts: tuple[dict[str, Any], ...]
    """What fires: `rule`, `subject`, `reason`, `since` (seconds since the epoch); of what is over, what has fired."""
    opened: float
    """Seconds since the epoch."""
    farm: str
    url: str
    """Of the farm's page."""

    @property
    def text(self) -> str:
        """All of it for a person, several lines."""
        lines = [f"- {one['subject'] or 'the farm'}: {one['reason']}" for one in self.alerts[:MAX_LINES]]
        if len(self.alerts) > MAX_LINES:
            lines.append(f"- and {len(self.alerts) - MAX_LINES} more")
        owners = [f"Owner: {', '.join(self.owners)}"] if self.owners else []
        return "\n".join([self.title, "", *lines, "", *owners, f"Incident: {self.incident}", f"{self.url}/cluster"])

    def as_json(self) -> dict[str, Any]:
        """All of it for a program."""
        return asdict(self) | {"text": self.text, "version": 1}


class Handler(Protocol):
    """Tells somebody. `send` is called in a thread of its own, once at a time, and again with the same notice after an error."""

    def send(self, notice: Notice, timeout: float) -> None:
        """Tell it, and return when it is told. `timeout`: seconds that are left for it. Raises anything if it is not told."""
        ...


def notice_of(incident_id: str, incident: Incident, delivery: Delivery, farm: str, url: str) -> Notice:
    """Return what a delivery says."""
    shown = incident.alerts or incident.past
    return Notice(
        key=delivery_key(incident_id, delivery),
        incident=incident_id,
        name=incident.name,
        step=delivery.step.value,
        severity=incident.severity.value,
        owners=incident.owners,
        title=_title(incident, delivery.step, farm, shown),
        alerts=tuple(asdict(one) for one in shown),
        opened=incident.opened,
        farm=farm,
        url=url,
    )


def notice_of_a_test(handler: str, at: float, farm: str, url: str) -> Notice:
    """Return what tells that a handler works. `at`: seconds since the epoch."""
    return Notice(
        key=f"test/{handler}/{at:.3f}",
        incident="test",
        name="test",
        step="test",
        severity="info",
        owners=(),
        title=f"[{farm}] info: this is a test of the handler {handler}",
        alerts=(),
        opened=at,
        farm=farm,
        url=url,
    )


def _title(incident: Incident, step: Step, farm: str, shown: tuple[AlertOf, ...]) -> str:
    first = shown[0] if shown else None
    more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
    of = f" ({first.subject}{more})" if first is not None and first.subject else ""
    return f"[{farm}] {incident.severity.value}: {incident.name}{of} {_VERBS[step]}"
