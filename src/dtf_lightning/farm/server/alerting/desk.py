"""`AlertDesk`: what people do with alerts, at any coordinator: they see, acknowledge and silence them, and try handlers."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.farm.alerts.notice import notice_of_a_test
from dtf_lightning.farm.record.alerts.writes import WriteIncident, WriteSilence
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.rules.watching.incidents import AlertOf, Delivery, DeliveryState, Incident, Silence
from dtf_lightning.farm.server.alerting.alerting import Alerting
from dtf_lightning.farm.server.alerting.sending import Sender, UnknownHandler
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool

TRIES = 10
SHOWN = 5.0
MAX_SILENCE = 90 * 86400.0
MAX_SILENCES = 1_000
MAX_WORDS = 500


class UnknownAlert(DtfError):
    """There is no such incident, silence or handler."""


class AlertDesk:
    """Runs on the coordinator's event loop."""

    def __init__(self, alerting: Alerting, sender: Sender, pool: Pool, record: FarmRecord, clock: Clock) -> None:
        self._alerting = alerting
        self._sender = sender
        self._pool = pool
        self._record = record
        self._clock = clock

    def show(self, *, everything: bool = True) -> dict[str, Any]:
        """Return the incidents, open ones first and then the latest, the silences, rules and handlers, as the API shows them.

        `everything`: also those that are over.
        """
        incidents = self._alerting.incidents()
        order = sorted(incidents, key=lambda name: (not incidents[name].is_open, -incidents[name].opened, name))
        return {
            "incidents": [
                self._incident(name, incidents[name]) for name in order if everything or incidents[name].is_open
            ],
            "silences": [self._silence(name, one) for name, one in self._alerting.silences().items()],
            "rules": [
                {
                    "name": rule.name, "watches": rule.metric or rule.finding, "subject": rule.subject, "above": rule.above,
                    "below": rule.below, "lasting": rule.lasting, "severity": rule.severity.value, "owner": rule.owner,
                    "incident": rule.incident, "handlers": list(rule.handlers), "escalate_after": rule.escalate_after,
                    "escalate_to": list(rule.escalate_to),
                }
                for rule in self._alerting.plan.rules
            ],
            "handlers": list(self._sender.names),
        }  # fmt: skip

    async def acknowledge(self, incident: str, by: str) -> dict[str, Any]:
        """Let an incident not escalate. Raises `UnknownAlert`, and what etcd raises."""
        for _ in range(TRIES):
            found = self._alerting.incidents().get(incident)
            if found is None:
                raise UnknownAlert(f"no incident is called {incident!r}; `dtf farm alerts list` names them")
            if found.acknowledged_at:
                return self._incident(incident, found)
            seen = self._pool.mirror.seen(Kind.ALERT, incident)
            after = replace(found, acknowledged_at=self._clock.wall(), acknowledged_by=by)
            made = await self._record.answer(WriteIncident(incident=incident, record=after, seen=seen))
            await self._pool.wait_for_change(Kind.ALERT, incident, seen, SHOWN if made else 1.0)
            if made:
                return self._incident(incident, after)
        raise StoreUnavailable(f"the incident {incident} changes all the time, try again")

    async def silence(self, rule: str, subject: str, *, seconds: float, reason: str, by: str) -> dict[str, Any]:
        """Let nothing be said of some alerts for a while. Raises `SettingsError`, and what etcd raises."""
        if not 0 < seconds <= MAX_SILENCE:
            raise SettingsError(f"a silence ends after {MAX_SILENCE / 86400:.0f} days at most, got {seconds:g} s")
        for word, told in (("the rule", rule), ("the subject", subject), ("the reason", reason)):
            if not 0 < len(told.strip()) <= MAX_WORDS:
                raise SettingsError(f"{word} of a silence has 1 to {MAX_WORDS} signs, got {len(told.strip())}")
        if len(self._alerting.silences()) >= MAX_SILENCES:
            raise SettingsError(f"there are {MAX_SILENCES} silences, which is all that a farm takes: end some")
        now, name = self._clock.wall(), secrets.token_hex(4)
        record = Silence(rule=rule, subject=subject, until=now + seconds, reason=reason, by=by, added=now)
        if not await self._record.answer(WriteSilence(silence=name, record=record, seen=0)):
            raise StoreUnavailable("the silence could not be written, try again")
        await self._pool.wait_for_change(Kind.SILENCE, name, 0, SHOWN)
        return self._silence(name, record)

    async def unsilence(self, silence: str) -> None:
        """Let it be said again. Raises `UnknownAlert`, and what etcd raises."""
        for _ in range(TRIES):
            if (seen := self._pool.mirror.seen(Kind.SILENCE, silence)) == 0:
                raise UnknownAlert(f"no silence is called {silence!r}; `dtf farm alerts list` names them")
            gone = await self._record.answer(WriteSilence(silence=silence, record=None, seen=seen))
            await self._pool.wait_for_change(Kind.SILENCE, silence, seen, SHOWN if gone else 1.0)
            if gone:
                return
        raise StoreUnavailable(f"the silence {silence} changes all the time, try again")

    async def try_handler(self, handler: str) -> dict[str, Any]:
        """Let a handler say that this is a test. Raises `UnknownAlert` for one that there is not."""
        plan = self._alerting.plan
        notice = notice_of_a_test(handler, self._clock.wall(), plan.farm, plan.url)
        try:
            error = await self._sender.send(handler, notice)
        except UnknownHandler as unknown:
            raise UnknownAlert(str(unknown)) from unknown
        return {"handler": handler, "told": not error, "error": error}

    # --- as it is shown ----------------------------------------------------------------------------------------------

    def _incident(self, name: str, one: Incident) -> dict[str, Any]:
        now = self._clock.wall()
        rules = {rule.name: rule for rule in self._alerting.plan.rules}
        silences = self._alerting.silences().values()
        silenced = bool(one.alerts) and all(
            any(silence.covers(rules.get(alert.rule), alert, now) for silence in silences) for alert in one.alerts
        )
        return {
            "id": name,
            "name": one.name,
            "state": "firing" if one.is_open else "resolved",
            "severity": one.severity.value,
            "owners": list(one.owners),
            "opened": when(one.opened),
            "resolved": when(one.resolved_at or None),
            "acknowledged": when(one.acknowledged_at or None),
            "acknowledged_by": one.acknowledged_by,
            "escalated": when(one.escalated_at or None),
            "silenced": silenced,
            "alerts": [_alert(alert) for alert in one.alerts],
            "past": [_alert(alert) for alert in one.past],
            "deliveries": [_delivery(delivery) for delivery in one.deliveries],
            "trouble": _trouble(one.deliveries),
        }

    def _silence(self, name: str, one: Silence) -> dict[str, Any]:
        return {
            "id": name, "rule": one.rule, "subject": one.subject, "until": when(one.until), "reason": one.reason, "by": one.by,
            "added": when(one.added), "active": self._clock.wall() < one.until,
        }  # fmt: skip


def _alert(alert: AlertOf) -> dict[str, Any]:
    return {"rule": alert.rule, "subject": alert.subject, "reason": alert.reason, "since": when(alert.since)}


def _delivery(one: Delivery) -> dict[str, Any]:
    return {
        "step": one.step.value, "handler": one.handler, "state": one.state.value, "tries": one.tries, "at": when(one.at or None),
        "error": one.error,
    }  # fmt: skip


def _trouble(deliveries: tuple[Delivery, ...]) -> list[str]:
    """What could not be told, in words."""
    return [
        f"{one.handler} could not tell that it is {one.step.value} ({one.tries} tries"
        f"{', given up' if one.state is DeliveryState.GIVEN_UP else ''}): {one.error}"
        for one in deliveries
        if one.error and one.state is not DeliveryState.SENT
    ]
