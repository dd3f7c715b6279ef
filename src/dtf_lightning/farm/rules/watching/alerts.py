"""Alerts: rules about metrics and findings, and for how long each of them has held, of which thing. Pure.

Rules that this file guards:
- A rule holds of a subject (a worker, a class of devices, "" for the whole farm) while its metric is beyond its limit there, or
  the finding is there. What is not known does not hold.
- It fires when it has held without a break for `lasting` seconds, as often as it was looked at.
- It is over when it has not held for `calm` seconds: what comes and goes does not fire anew each time. Whoever has just begun
  to look says of nothing that it is over before he has looked for as long.

Times are a monotonic clock's: a wall clock that jumps begins and ends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.measures import METRICS, Sample


class Severity(StrEnum):
    """How bad it is. In the order of how bad that is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """What is watched: a metric beyond a limit, or a finding."""

    name: str
    metric: str = ""
    finding: str = ""
    """A kind of finding, a pattern such as `etcd_*`."""
    level: HealthStatus = HealthStatus.WARNING
    """The finding is as bad as this at least."""
    above: float | None = None
    below: float | None = None
    subject: str = "*"
    """A pattern that the sample's or the finding's subject fits."""
    lasting: float = 0.0
    """Seconds."""
    severity: Severity = Severity.WARNING
    owner: str = ""
    group: str = ""
    """Rules of one group make one incident; "": the rule is its own."""
    handlers: tuple[str, ...] = ()
    escalate_after: float = 0.0
    """Seconds after which it is said to `escalate_to` if nobody has acknowledged it; 0: never."""
    escalate_to: tuple[str, ...] = ()

    @property
    def incident(self) -> str:
        """The name of its incidents."""
        return self.group or self.name


@dataclass(frozen=True, order=True)
class AlertKey:
    """A rule, and of what it holds."""

    rule: str
    subject: str


@dataclass(frozen=True)
class Alert:
    """A rule that holds, or has held lately."""

    key: AlertKey
    reason: str
    """One sentence without a full stop, with its numbers."""
    firing: bool
    """Whether it has held for as long as the rule says."""


def holding(rule: AlertRule, samples: Iterable[Sample], found: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Yield the subjects of which a rule holds now, each with the reason."""
    if rule.finding:
        for finding in found:
            told, wanted = (list(HealthStatus).index(level) for level in (finding.level, rule.level))
            if (
                told >= wanted
                and fnmatchcase(finding.kind, rule.finding)
                and fnmatchcase(finding.subject, rule.subject)
            ):
                # A pattern may fit several findings of one thing.
                subject = finding.subject if finding.kind == rule.finding else f"{finding.subject}: {finding.kind}"
                yield subject, finding.reason
        return
    limit = f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}"
    for sample in samples:
        if sample.metric != rule.metric or not fnmatchcase(sample.subject, rule.subject):
            continue
        above = rule.above is not None and sample.value > rule.above
        below = rule.below is not None and sample.value < rule.below
        if above or below:
            yield sample.subject, f"{_short(rule.metric)} is {sample.value:g}, {limit}"


def _short(metric: str) -> str:
    return METRICS[metric].name.removeprefix("dtf_farm_") if metric in METRICS else metric


@dataclass
class _Course:
    """How it was with one rule and subject."""

    since: float
    """When it began to hold. What stops holding before it has fired is forgotten, so there is no break before that."""
    last: float
    """When it last held."""
    reason: str
    fired: bool = False


class AlertWatch:
    """Remembers for how long what has held. Every coordinator has one, so that the next leader knows as much.

    Args:
        rules: by their names.
        calm: seconds without holding after which it is over.
        now: when looking begins; monotonic seconds.
    """

    def __init__(self, rules: Sequence[AlertRule], calm: float, now: float) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._calm = calm
        self._began = now
        self._courses: dict[AlertKey, _Course] = {}

    def take(
        self, samples: Sequence[Sample], found: Sequence[Finding], now: float, fired: Collection[AlertKey] = ()
    ) -> None:
        """Remember what is seen now. `now`: monotonic seconds. `fired`: what open incidents name, perhaps another leader's."""
        held: Mapping[AlertKey, str] = {
            AlertKey(name, subject): reason
            for name, rule in self._rules.items()
            for subject, reason in holding(rule, samples, found)
        }
        for key, reason in held.items():
            course = self._courses.setdefault(key, _Course(now, now, reason))
            course.last, course.reason = now, reason
            course.fired |= key in fired or now - course.since >= self._rules[key.rule].lasting
        for key, course in list(self._courses.items()):
            if key in held:
                continue
            if not course.fired or now - course.last >= self._calm:
                del self._courses[key]

    def alerts(self) -> list[Alert]:
        """Return what holds or has fired and is not over yet, sorted."""
        return [Alert(key, course.reason, course.fired) for key, course in sorted(self._courses.items())]

    def is_over(self, key: AlertKey, now: float) -> bool:
        """Whether what an incident names is over: its rule is gone, or has not held for `calm` seconds here."""
        if key.rule not in self._rules:
            return True
        return key not in self._courses and now - self._began >= self._calm
