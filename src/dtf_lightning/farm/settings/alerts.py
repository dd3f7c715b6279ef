"""Section `alerts` of `coordinator.yaml`: what is watched, how long, whose it is, and who is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TypeVar
from urllib.parse import urlsplit

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.alerts import AlertRule, Severity
from dtf_lightning.farm.rules.watching.findings import KINDS
from dtf_lightning.farm.rules.watching.measures import METRICS
from dtf_lightning.settings.fields import check, check_types, setting
from dtf_lightning.settings.marked_yaml import nearest

E = TypeVar("E", bound=Enum)

LOG = "log"
"""The handler that every farm has: the coordinator's log."""
MAX_NAME = 100


@dataclass(frozen=True, kw_only=True)
class AlertRuleSettings:
    """One of `alerts.rules`."""

    name: str = setting(MISSING, "What it is called, in messages and commands.")
    metric: str = setting(
        "", "Which [metric](observability.md#metrics-of-a-farm) is watched; needs `above` or `below`."
    )
    finding: str = setting(
        "",
        "Which kind of [finding](page.md#what-is-wrong) is watched, or a pattern such as `etcd_*`, in the place of a metric.",
    )
    level: str = setting("warning", "The finding is as bad as this at least: `warning` or `critical`.")
    above: float | None = setting(None, "The metric's limit: the rule holds above it.")
    below: float | None = setting(None, "The metric's limit: the rule holds below it.")
    subject: str = setting("*", "A pattern of the workers, classes of devices and so on that are watched.")
    lasting: float = setting(0.0, "For which it must hold before it fires.", unit="seconds")
    severity: str = setting("warning", "`info`, `warning` or `critical`.")
    owner: str = setting("", "Who mends it.")
    group: str = setting("", "Rules of one group make one incident; without it the rule makes its own.")
    handlers: tuple[str, ...] = setting(
        (), "Who is told: names of `alerts.handlers`, or `log`; without it all of them."
    )
    escalate_after: float = setting(
        0.0, "After which `escalate_to` is told if nobody has acknowledged it; 0: never.", unit="seconds"
    )
    escalate_to: tuple[str, ...] = setting((), "Who is told then.")

    def __post_init__(self) -> None:
        check_types(self)
        check(0 < len(self.name) <= MAX_NAME, f"name of a rule must have 1 to {MAX_NAME} signs, got {self.name!r}")
        check(
            bool(self.metric) != bool(self.finding),
            f"{'metric' if self.metric else 'name'} {self.name!r}: a rule watches either a metric or a finding",
        )
        if self.metric:
            self._check_metric()
        else:
            known = any(fnmatchcase(kind, self.finding) for kind in KINDS)
            check(known, f"finding {self.finding!r} is not known{nearest(self.finding, KINDS)}")
            for name in ("above", "below"):
                check(
                    getattr(self, name) is None, f"{name} is the limit of a metric, and {self.name!r} watches a finding"
                )
        member_of(HealthStatus, "level", self.level, without=(HealthStatus.HEALTHY,))
        member_of(Severity, "severity", self.severity)
        for name in ("lasting", "escalate_after"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g} s")
        check(
            bool(self.escalate_after) == bool(self.escalate_to),
            f"{'escalate_after' if self.escalate_after else 'escalate_to'} was given alone: who is told, and after which time?",
        )

    def _check_metric(self) -> None:
        check(self.metric in METRICS, f"metric {self.metric!r} is not known{nearest(self.metric, METRICS)}")
        check(
            (self.above is None) != (self.below is None),
            f"metric {self.metric} needs a limit: one of above and below",
        )

    def rule(self, handlers: tuple[str, ...]) -> AlertRule:
        """Return what the rule says. `handlers`: those that are told where it does not say whom."""
        return AlertRule(
            name=self.name,
            metric=self.metric,
            finding=self.finding,
            level=HealthStatus(self.level),
            above=self.above,
            below=self.below,
            subject=self.subject,
            lasting=self.lasting,
            severity=Severity(self.severity),
            owner=self.owner,
            group=self.group,
            handlers=self.handlers or handlers,
            escalate_after=self.escalate_after,
            escalate_to=self.escalate_to,
        )


@dataclass(frozen=True, kw_only=True)
class AlertHandlerSettings:
    """One of `alerts.handlers`."""

    name: str = setting(MISSING, "What rules and commands call it.")
    type: str = setting(
        MISSING,
        "`email`, `webhook`, `slack`, `teams`, `github`, `command`, or one that an [installed package](extending.md#alert-handlers) adds.",
    )
    url: str = setting(
        "",
        "Of a webhook; of `email` its server: `smtp://HOST:25`, `smtp+starttls://USER@HOST:587`, `smtps://USER@HOST:465`; of "
        "`github` its API, without it github.com's.",
        secret=True,
    )
    secret_file: str | None = setting(
        None,
        "File that holds what signs a `webhook` (HMAC), the password of `email`, or the token of `github`, and nothing else.",
    )
    sender: str = setting("", "Address from which `email` is sent.")
    to: tuple[str, ...] = setting((), "Addresses to which `email` is sent.")
    repository: str = setting("", "`OWNER/NAME` on GitHub.")
    command: tuple[str, ...] = setting(
        (), "Program and arguments, run on the leader's machine with the alert as JSON on its standard input."
    )
    options: tuple[str, ...] = setting((), "`KEY=VALUE` each, for a handler that an installed package adds.")
    timeout: float = setting(10.0, "After which a try has failed.", unit="seconds")

    def __post_init__(self) -> None:
        check_types(self)
        check(0 < len(self.name) <= MAX_NAME, f"name of a handler must have 1 to {MAX_NAME} signs, got {self.name!r}")
        check(self.name != LOG, f"name {LOG!r} is taken: every farm has that handler")
        check(0 < self.timeout <= 300, f"timeout must be above 0 and at most 300 s, got {self.timeout:g} s")
        wanted = _NEEDS.get(self.type, ())
        for key in wanted:
            check(bool(getattr(self, key)), f"type {self.type} needs {key}")
        for one in self.options:
            check("=" in one, f"options must be KEY=VALUE each, got {one!r}")
        schemes = _SCHEMES.get(self.type, ())
        scheme = urlsplit(self.url).scheme if self.url else ""
        check(
            not scheme or not schemes or scheme in schemes,
            f"url of {self.type} begins with {' or '.join(f'{one}://' for one in schemes)}, got {scheme!r}",
        )


_NEEDS = {
    "email": ("url", "sender", "to"),
    "webhook": ("url",),
    "slack": ("url",),
    "teams": ("url",),
    "github": ("repository", "secret_file"),
    "command": ("command",),
}
_SCHEMES = {
    "email": ("smtp", "smtp+starttls", "smtps"),
    **dict.fromkeys(("webhook", "slack", "teams", "github"), ("https", "http")),
}


@dataclass(frozen=True, kw_only=True)
class AlertSettings:
    """Section `alerts`."""

    rules: tuple[AlertRuleSettings, ...] = setting((), "What is watched.", item=AlertRuleSettings)
    handlers: tuple[AlertHandlerSettings, ...] = setting((), "Who can be told.", item=AlertHandlerSettings)
    calm: float = setting(60.0, "For which what fired must not hold before it is over.", unit="seconds")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.calm >= 0, f"calm must not be negative, got {self.calm:g} s")
        known = [LOG, *(one.name for one in self.handlers)]
        for what, names in (("rules", [one.name for one in self.rules]), ("handlers", known)):
            twice = sorted({name for name in names if names.count(name) > 1})
            check(not twice, f"{what} must have different names, {', '.join(twice)} is there more than once")
        for rule in self.rules:
            for name in (*rule.handlers, *rule.escalate_to):
                check(
                    name in known,
                    f"rules must name handlers that there are, {rule.name!r} names {name!r}{nearest(name, known)}",
                )

    @property
    def alert_rules(self) -> tuple[AlertRule, ...]:
        """The rules, each with whom it tells."""
        everybody = tuple(one.name for one in self.handlers) or (LOG,)
        return tuple(one.rule(everybody) for one in self.rules)


def member_of(kind: type[E], key: str, told: str, without: Iterable[E] = ()) -> E:
    """Return what a word of the settings stands for. Raises `SettingsError` that begins with the key."""
    known = [str(one.value) for one in kind if one not in without]
    if told not in known:
        raise SettingsError(f"{key} must be one of {', '.join(known)}, got {told!r}{nearest(told, known)}")
    return kind(told)
