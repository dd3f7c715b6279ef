"""Incidents: what fires, brought together under one name, and which words about it are owed to whom. Pure.

| step | when | to whom |
|---|---|---|
| `firing` | the first of its alerts fires, and is not silenced | the handlers of its rules |
| `worse` | its severity is higher than was said | the same |
| `grown` | other alerts have joined it, `GROWN` seconds or more after the last word | the same |
| `escalated` | nobody has acknowledged it for as long as a rule says | those that the rule names for that |
| `resolved` | none of its alerts is left, and something was said | all to whom something was said |

Rules that this file guards:
- There is one open incident of a name at most, whatever of its rules and subjects fire.
- Each step is said once: its words have a key (`delivery_key`) that is the same whoever sends them, however often that is tried.
- While all of its alerts are silenced nothing is said; what is left to say when the silence is over, is said then.
- What is acknowledged does not escalate; it may still get worse, and is still resolved.
- The incident is the whole state: from it and from what fires now any coordinator goes on.

Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from dtf_lightning.farm.rules.watching.alerts import Alert, AlertKey, AlertRule, Severity

GROWN = 300.0
"""After the first word; twice as long after each further one, so that an incident of days does not say so for days."""
MAX_ALERTS = 200
"""Of one incident; what comes beyond is counted by the findings, and does not make the record larger."""
MAX_REASON = 300
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0
TRIES = 12
"""Of one delivery: a little more than an hour."""


class Step(StrEnum):
    """What is said of an incident."""

    FIRING = "firing"
    WORSE = "worse"
    GROWN = "grown"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


class DeliveryState(StrEnum):
    """How far one handler is with one step."""

    OWED = "owed"
    SENT = "sent"
    GIVEN_UP = "given-up"


@dataclass(frozen=True, kw_only=True)
class AlertOf:
    """An alert that an incident names."""

    rule: str
    subject: str
    reason: str
    since: float

    @property
    def key(self) -> AlertKey:
        """What it is."""
        return AlertKey(self.rule, self.subject)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A step that a handler is to say, and how far that is."""

    number: int
    """Of the step, from 1."""
    step: Step
    handler: str
    state: DeliveryState = DeliveryState.OWED
    tries: int = 0
    at: float = 0.0
    """When it was last tried."""
    error: str = ""
    """What became of the last try that failed."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """All of it, as it is in the record."""

    name: str
    opened: float
    severity: Severity
    """The highest so far."""
    alerts: tuple[AlertOf, ...] = ()
    """Those that fire."""
    past: tuple[AlertOf, ...] = ()
    """Those that have fired and are over."""
    owners: tuple[str, ...] = ()
    said: Severity | None = None
    """The severity that was said last; `None`: nothing was said."""
    said_alerts: int = 0
    """How many of its alerts had been there by then, those that are over among them."""
    said_at: float = 0.0
    first_said: float = 0.0
    steps: int = 0
    acknowledged_at: float = 0.0
    """0: it is not."""
    acknowledged_by: str = ""
    escalated_at: float = 0.0
    resolved_at: float = 0.0
    """0: it is open."""
    deliveries: tuple[Delivery, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether something fires."""
        return not self.resolved_at


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Alerts of which nothing is said until then."""

    rule: str
    """A pattern of rules' or incidents' names."""
    subject: str
    """A pattern of subjects."""
    until: float
    reason: str = ""
    by: str = ""
    added: float = 0.0

    def covers(self, rule: AlertRule | None, alert: AlertOf, now: float) -> bool:
        """Whether nothing is to be said of an alert. `rule`: its own; `None` where it is gone from the settings."""
        names = (alert.rule, rule.incident) if rule is not None else (alert.rule,)
        return (
            now < self.until
            and any(fnmatchcase(name, self.rule) for name in names)
            and fnmatchcase(alert.subject, self.subject)
        )


def delivery_key(incident: str, delivery: Delivery) -> str:
    """Return the key under which a handler's receiver knows one step of an incident. `incident`: its id."""
    return f"{incident}/{delivery.number}-{delivery.step.value}/{delivery.handler}"


def next_incidents(
    rules: Mapping[str, AlertRule],
    firing: Sequence[Alert],
    is_over: Callable[[AlertKey], bool],
    open_ones: Mapping[str, Incident],
    silences: Collection[Silence],
    now: float,
) -> dict[str, Incident]:
    """Return what each open incident becomes, and those that begin, by their names; what stays as it is, is among them.

    Args:
        rules: by their names.
        firing: alerts that fire, or hold and may fire soon.
        is_over: whether an alert that an incident names is over.
        open_ones: name -> the incident.
    """
    by_incident: dict[str, list[Alert]] = {name: [] for name in open_ones}
    for alert in firing:
        if alert.firing and (rule := rules.get(alert.key.rule)) is not None:
            by_incident.setdefault(rule.incident, []).append(alert)
    return {
        name: _next(name, rules, alerts, is_over, open_ones.get(name), silences, now)
        for name, alerts in by_incident.items()
        if alerts or name in open_ones
    }


def _next(
    name: str,
    rules: Mapping[str, AlertRule],
    firing: Sequence[Alert],
    is_over: Callable[[AlertKey], bool],
    before: Incident | None,
    silences: Collection[Silence],
    now: float,
) -> Incident:
    known = {one.key for one in before.alerts} if before is not None else set()
    room = MAX_ALERTS - len(known)
    new = [
        AlertOf(rule=one.key.rule, subject=one.key.subject, reason=one.reason[:MAX_REASON], since=now)
        for one in firing
        if one.key not in known
    ][: max(room, 0)]
    told = before or Incident(name=name, opened=now, severity=Severity.INFO)
    alerts = (*(one for one in told.alerts if not is_over(one.key)), *new)
    here = {one.key for one in alerts}
    over = {one.key: one for one in (*told.past, *told.alerts) if one.key not in here}
    mine = [rule for one in alerts if (rule := rules.get(one.rule)) is not None]
    incident = replace(
        told,
        alerts=alerts,
        past=tuple(over.values())[-MAX_ALERTS:],
        severity=_worst((told.severity, *(rule.severity for rule in mine))),
        owners=tuple(sorted({*told.owners, *(rule.owner for rule in mine if rule.owner)})),
        resolved_at=0.0 if alerts else now,
    )
    loud = [one for one in alerts if not any(silence.covers(rules.get(one.rule), one, now) for silence in silences)]
    return _said(incident, rules, loud, _is_silenced(told, rules, silences, now), now)


def _is_silenced(before: Incident, rules: Mapping[str, AlertRule], silences: Collection[Silence], now: float) -> bool:
    """Whether the alerts that were there last are all silenced."""
    return bool(before.alerts) and all(
        any(silence.covers(rules.get(one.rule), one, now) for silence in silences) for one in before.alerts
    )


def _said(
    incident: Incident, rules: Mapping[str, AlertRule], loud: Sequence[AlertOf], silenced: bool, now: float
) -> Incident:
    """Return the incident with what is owed now; one step at a time."""
    if not incident.alerts:
        spoken_to = {one.handler for one in incident.deliveries}
        return _owe(incident, Step.RESOLVED, spoken_to, now) if incident.said is not None and not silenced else incident
    if not loud:
        return incident
    mine = [rule for one in incident.alerts if (rule := rules.get(one.rule)) is not None]
    handlers = {handler for rule in mine for handler in rule.handlers}
    if incident.said is None:
        return _owe(replace(incident, first_said=now), Step.FIRING, handlers, now)
    if _worst((incident.said, incident.severity)) is not incident.said:
        return _owe(incident, Step.WORSE, handlers, now)
    patience = min((rule.escalate_after for rule in mine if rule.escalate_after and rule.escalate_to), default=0.0)
    waits = not incident.acknowledged_at and not incident.escalated_at
    if patience and waits and now - incident.first_said >= patience:
        called = {handler for rule in mine if rule.escalate_after for handler in rule.escalate_to}
        return _owe(replace(incident, escalated_at=now), Step.ESCALATED, called, now)
    if _number(incident) > incident.said_alerts and now - incident.said_at >= GROWN * 2 ** min(incident.steps - 1, 10):
        return _owe(incident, Step.GROWN, handlers, now)
    return incident


def _owe(incident: Incident, step: Step, handlers: Iterable[str], now: float) -> Incident:
    number = incident.steps + 1
    owed = tuple(Delivery(number=number, step=step, handler=handler) for handler in sorted(set(handlers)))
    return replace(
        incident,
        steps=number,
        said=incident.severity,
        said_alerts=_number(incident),
        said_at=now,
        deliveries=(*incident.deliveries, *owed),
    )


def _number(incident: Incident) -> int:
    return len(incident.alerts) + len(incident.past)


def _worst(severities: Iterable[Severity]) -> Severity:
    return max(severities, key=list(Severity).index)


# --- deliveries ------------------------------------------------------------------------------------------------------


def due(incident: Incident, now: float) -> list[Delivery]:
    """Return what is to be tried now: of each handler the first that it owes, so that it says things in their order."""
    first: dict[str, Delivery] = {}
    for delivery in incident.deliveries:
        if delivery.state is DeliveryState.OWED:
            first.setdefault(delivery.handler, delivery)
    return [one for one in first.values() if not one.tries or now - one.at >= pause_after(one.tries) or now < one.at]


def pause_after(tries: int) -> float:
    """Return the seconds to wait after so many tries that failed."""
    return float(min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE))


def tried(incident: Incident, delivery: Delivery, now: float) -> Incident:
    """Return the incident once a delivery is about to be tried."""
    return _with(incident, delivery, tries=delivery.tries + 1, at=now)


def delivered(incident: Incident, delivery: Delivery, now: float, error: str) -> Incident:
    """Return the incident after a try. `error`: what went wrong; "" if nothing did."""
    if not error:
        return _with(incident, delivery, state=DeliveryState.SENT, at=now, error="")
    state = DeliveryState.GIVEN_UP if delivery.tries >= TRIES else DeliveryState.OWED
    return _with(incident, delivery, state=state, at=now, error=error)


def _with(incident: Incident, delivery: Delivery, **changes: object) -> Incident:
    changed = tuple(
        replace(one, **changes) if (one.number, one.handler) == (delivery.number, delivery.handler) else one  # type: ignore[arg-type]
        for one in incident.deliveries
    )
    return replace(incident, deliveries=changed)
