"""`Alerting`: the leader opens, changes and ends incidents by `rules.watching.incidents`, and tells what is owed of them.

Rules that this file guards:
- What is decided is in the record before anything of it is said, under the leadership's fence, and against the record as seen.
- A delivery is claimed in the record before it is tried, and its end is written after: a leader that was deposed says nothing
  more. Between the two a leader may die; then the next one says it again, under the same key.
- What was said is not said again because it could not be written down: it writes until it is written, or it ends.
- The next decision is made when the mirror shows the last one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dtf_lightning.clock import Clock
from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.alerts.notice import notice_of
from dtf_lightning.farm.record.alerts.writes import WriteIncident, WriteSilence
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.rules.watching.alerts import AlertRule, AlertWatch
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.incidents import (
    Delivery,
    DeliveryState,
    Incident,
    Silence,
    delivered,
    due,
    next_incidents,
    tried,
)
from dtf_lightning.farm.rules.watching.measures import Sample
from dtf_lightning.farm.server.alerting.sending import Sender
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event

log = logging.getLogger(__name__)

KEPT, MAX_KEPT = 7 * 86400.0, 200
"""Seconds for which, and how many of, the incidents that are over are kept."""
SILENCES_KEPT = 86400.0
"""Seconds for which a silence is shown that is over."""
WRITE, SHOWN = 5.0, 5.0
AGAIN = 1.0
"""Seconds between two looks at what is owed."""


@dataclass(frozen=True, kw_only=True)
class AlertPlan:
    """What the settings say."""

    rules: tuple[AlertRule, ...] = ()
    calm: float = 60.0
    farm: str = ""
    url: str = ""
    """Of the farm's page."""


class Alerting:
    """Runs on the coordinator's event loop.

    Args:
        epoch: of the leadership by which this coordinator decides; 0: it does not lead.
    """

    def __init__(
        self, pool: Pool, record: FarmRecord, clock: Clock, sender: Sender, plan: AlertPlan, epoch: Callable[[], int]
    ) -> None:
        self._pool = pool
        self._record = record
        self._clock = clock
        self._sender = sender
        self.plan = plan
        self._epoch = epoch
        self._rules = {rule.name: rule for rule in plan.rules}
        self._watch = AlertWatch(plan.rules, plan.calm, clock.monotonic())
        self._at_work: dict[tuple[str, str], asyncio.Task[None]] = {}
        """(Incident, handler) -> what tells it."""
        self._wake = asyncio.Event()
        self._unshown: dict[str, int] = {}
        """Incident that was written -> its mod revision before, which the mirror still shows."""

    def incidents(self) -> dict[str, Incident]:
        """Return all incidents that are kept, by their ids."""
        return {names[0]: self._incident(names[0]) for names in sorted(self._pool.mirror.all(Kind.ALERT))}

    def silences(self) -> dict[str, Silence]:
        """Return all silences that are kept, by their ids."""
        found = {}
        for (name,), held in sorted(self._pool.mirror.all(Kind.SILENCE).items()):
            assert isinstance(held.value, Silence)
            found[name] = held.value
        return found

    async def look(self, samples: Sequence[Sample], found: Sequence[Finding]) -> None:
        """Take in what is seen now; the leader writes what follows. Raises what etcd raises."""
        incidents = self.incidents()
        open_ones = {one.name: name for name, one in incidents.items() if one.is_open}
        named = {alert.key for name in open_ones.values() for alert in incidents[name].alerts}
        self._watch.take(samples, found, self._clock.monotonic(), named)
        self._unshown = {name: seen for name, seen in self._unshown.items() if self._seen(name) == seen}
        epoch = self._epoch()
        if not epoch or self._unshown:
            return
        fence = Compare(self._pool.keys.leader, "create", "=", epoch)
        monotonic, now = self._clock.monotonic(), self._clock.wall()
        decided = next_incidents(
            self._rules,
            self._watch.alerts(),
            lambda key: self._watch.is_over(key, monotonic),
            {name: incidents[incident] for name, incident in open_ones.items()},
            tuple(self.silences().values()),
            now,
        )
        for name, after in decided.items():
            incident = open_ones.get(name)
            if incident is None:
                await self._write(_id_of(name, now), after, 0, fence)
            elif after != incidents[incident] and self._incident(incident) == incidents[incident]:
                # Where a delivery has ended since this was decided, the next look decides it anew.
                await self._write(incident, after, self._seen(incident), fence)
        await self._forget(incidents, now, fence)
        self._wake.set()

    async def run(self) -> None:
        """Tell what is owed, until cancelled."""
        try:
            while True:
                self._wake.clear()
                if self._epoch():
                    self._start_what_is_due()
                await wait_for_event(self._wake, AGAIN if self.plan.rules else None)
        finally:
            for job in self._at_work.values():
                job.cancel()

    # --- deliveries --------------------------------------------------------------------------------------------------

    def _start_what_is_due(self) -> None:
        now = self._clock.wall()
        for incident_id, incident in self.incidents().items():
            for delivery in due(incident, now):
                at = incident_id, delivery.handler
                if at in self._at_work or self._sender.is_busy(delivery.handler):
                    continue
                job = asyncio.create_task(self._deliver(incident_id, delivery))
                self._at_work[at] = job
                job.add_done_callback(lambda done, at=at: self._ended(at, done))  # type: ignore[misc]

    def _ended(self, at: tuple[str, str], job: asyncio.Task[None]) -> None:
        self._at_work.pop(at, None)
        self._wake.set()
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("telling %s to %s", *at, exc_info=error)

    async def _deliver(self, incident_id: str, delivery: Delivery) -> None:
        before = self._incident(incident_id)
        fence = Compare(self._pool.keys.leader, "create", "=", self._epoch())
        claimed = tried(before, delivery, self._clock.wall())
        try:
            if not await self._write(incident_id, claimed, self._seen(incident_id), fence):
                return
        except StoreError as error:
            log.info("%s is told to %s when etcd answers: %s", incident_id, delivery.handler, error)
            await wait_for_event(asyncio.Event(), AGAIN)
            return
        notice = notice_of(incident_id, before, delivery, self.plan.farm, self.plan.url)
        if delivery.handler in self._sender.names:
            error_text = await self._sender.send(delivery.handler, notice)
        else:
            error_text = "the settings have no such handler any more"
        if error_text:
            log.warning("%s: %s could not tell it: %s", incident_id, delivery.handler, error_text)
        await self._told(incident_id, delivery, error_text)

    async def _told(self, incident_id: str, delivery: Delivery, error: str) -> None:
        """Write what became of a delivery, until that is written: it is so, whoever leads by now."""
        at = self._clock.wall()
        while self._pool.mirror.get(Kind.ALERT, incident_id) is not None:
            seen, incident = self._seen(incident_id), self._incident(incident_id)
            now = _same(incident, delivery)
            if now is None or now.state is not DeliveryState.OWED:
                return
            try:
                if await self._write(incident_id, delivered(incident, now, at, error), seen):
                    return
            except StoreError as refused:
                log.info("what became of %s is written when etcd answers: %s", incident_id, refused)
                await wait_for_event(asyncio.Event(), AGAIN)

    # --- the record --------------------------------------------------------------------------------------------------

    async def _write(self, incident: str, after: Incident | None, seen: int, fence: Compare | None = None) -> bool:
        """Write it; whether that was done. Waits for the mirror to show it."""
        write = WriteIncident(incident=incident, record=after, seen=seen, fence=fence)
        written = await self._record.answer(write, timeout=WRITE)
        shown = await self._pool.wait_for_change(Kind.ALERT, incident, seen, SHOWN if written else AGAIN)
        if written and not shown:
            self._unshown[incident] = seen
        return written

    async def _forget(self, incidents: dict[str, Incident], now: float, fence: Compare) -> None:
        over = sorted((one.resolved_at, name) for name, one in incidents.items() if not one.is_open)
        for place, (at, name) in enumerate(over):
            owed = any(one.state is DeliveryState.OWED for one in incidents[name].deliveries)
            if (now - at > KEPT and not owed) or place < len(over) - MAX_KEPT:
                await self._write(name, None, self._seen(name), fence)
        for name, silence in self.silences().items():
            if now > silence.until + SILENCES_KEPT:
                seen = self._pool.mirror.seen(Kind.SILENCE, name)
                await self._record.answer(WriteSilence(silence=name, record=None, seen=seen), timeout=WRITE)

    def _seen(self, incident: str) -> int:
        return self._pool.mirror.seen(Kind.ALERT, incident)

    def _incident(self, name: str) -> Incident:
        held = self._pool.mirror.get(Kind.ALERT, name)
        assert held is not None
        assert isinstance(held.value, Incident)
        return held.value


def _same(incident: Incident, delivery: Delivery) -> Delivery | None:
    """The delivery as it is now."""
    place = delivery.number, delivery.handler
    return next((one for one in incident.deliveries if (one.number, one.handler) == place), None)


def _id_of(name: str, at: float) -> str:
    """Return the id of an incident that begins now: it can be read, and typed into a command."""
    word = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "incident"
    return f"{word[:60]}-{datetime.fromtimestamp(at, UTC):%Y%m%d-%H%M%S}"
