"""`Cluster`: a coordinator among the others: its presence, its terms, how its machine is, and what is told of them all.

Rules that this file guards:
- What is known of other coordinators comes from the record: any of them answers for all.
- A term is written by the leader itself, with its fence; at most `TERMS` of them are kept.
- A disabled coordinator takes no work: no leadership, no workers, no submissions. The last that is enabled stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, StoreError, StoreUnavailable
from dtf_lightning.etcd.store import Compare, Store
from dtf_lightning.farm.record.cluster.writes import BeginTerm, Disable, Enable, EndTerm, ForgetNode, TellNode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import DisabledRecord, NodeRecord, TermRecord
from dtf_lightning.farm.server.cluster.left_behind import sign_off_left_behind
from dtf_lightning.farm.server.cluster.view import (
    EtcdMembers,
    leader_of,
    nodes_of,
    show_health,
    show_node,
    show_status,
    terms_of,
)
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace, Presence, wait_for_event
from dtf_lightning.farm.server.updates.changes import CLUSTER, LEADERSHIP, Updates
from dtf_lightning.hardware.meter import Meter

log = logging.getLogger(__name__)

BEAT = 10.0
"""Seconds between two words about this machine."""
TERMS = 50
"""Leaderships that are remembered."""
NODE_RETENTION = 86_400.0
"""Seconds for which a coordinator that has gone is remembered."""
HAND_OVER = 5.0
"""Seconds for another coordinator to lead."""
LAST_WORD = 1.0
"""Seconds for etcd to take why a leadership ends."""
WRITE = 3.0


class UnknownNode(DtfError):
    """There is no such coordinator."""


class LastNode(DtfError):
    """No other coordinator could do what this one does."""


class Disabled(StoreUnavailable):
    """This coordinator takes no work: ask another one."""


class Cluster:
    """Runs on the coordinator's event loop.

    Args:
        led: is called when it may lead, or may not any more.
        close_workers: closes the workers' connections, so that they go elsewhere.
    """

    def __init__(
        self,
        store: Store,
        record: FarmRecord,
        pool: Pool,
        place: CoordinatorPlace,
        updates: Updates,
        clock: Clock,
        *,
        led: Callable[[], None],
        close_workers: Callable[[], Awaitable[None]],
    ) -> None:
        self.presence = Presence(store, pool, place, led, self._end_term)
        self.etcd = EtcdMembers()
        self._store = store
        self._record = record
        self._pool = pool
        self._place = place
        self._updates = updates
        self._clock = clock
        self._began = clock.wall()
        self._close_workers = close_workers
        self._changing = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()

    # --- what it does ------------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Say how this machine is, and look at etcd's members, again and again, until cancelled."""
        meter = Meter(self._place.folder, self._clock)
        while True:
            with contextlib.suppress(StoreError):
                status = await asyncio.to_thread(self._store.maintenance.status)
                answering = len(status.members)
                self.etcd = EtcdMembers(answering + len(status.unreachable), answering)
            numbers = await asyncio.to_thread(meter.measure)
            await self._tell(numbers)
            if self._pool.mirror.get(Kind.LEADER) is not None and self.presence.epoch:
                await self._forget_nodes()
            await wait_for_event(asyncio.Event(), BEAT)

    async def _tell(self, numbers: dict[str, float]) -> None:
        record = NodeRecord(
            address=self._place.address,
            version=self._place.version,
            host=self._place.host,
            started=self._began,
            at=self._clock.wall(),
            health=numbers,
        )
        write = TellNode(node=self._place.name, record=record, seen=self._pool.mirror.seen(Kind.NODE, self._place.name))
        with contextlib.suppress(StoreError):  # the next word comes soon
            await self._record.answer(write, timeout=WRITE)

    async def _forget_nodes(self) -> None:
        there, now = self._pool.coordinators(), self._clock.wall()
        for (name,), held in list(self._pool.mirror.all(Kind.NODE).items()):
            assert isinstance(held.value, NodeRecord)
            if name not in there and now - held.value.at > NODE_RETENTION:
                with contextlib.suppress(StoreError):
                    write = ForgetNode(node=name, seen=held.mod_revision)
                    await self._record.answer(write, timeout=WRITE)

    def take_over(self, is_here: Callable[[str], bool]) -> None:
        """Give up the workers that an earlier process of this name has left, and that do not come back.

        `is_here`: whether a connection is one of this process.
        """
        grace = self._place.settings.health_monitor.worker_grace
        self._spawn(sign_off_left_behind(self._pool, self._record, self._place.name, is_here, grace))

    def close(self) -> None:
        """Leave what is under way."""
        for job in self._jobs:
            job.cancel()

    def leads(self, epoch: int) -> None:
        """This coordinator has begun to lead: say so in the record."""
        self._spawn(self._begin_term(epoch))

    async def _begin_term(self, epoch: int) -> None:
        record, forget = begun_term(
            self._place.name,
            self._clock.wall(),
            {one: term for one, term in terms_of(self._pool.mirror).items() if one < epoch},
        )
        while self.presence.epoch == epoch:
            write = BeginTerm(epoch=epoch, record=record, fence=self._fence(epoch), forget=forget)
            try:
                await self._record.answer(write)
            except StoreError as error:
                log.info("the term %d is not written yet: %s", epoch, error)
            else:
                return

    async def _end_term(self, epoch: int, reason: str) -> None:
        """Say why a leadership ends, as far as etcd takes it in time."""
        term = terms_of(self._pool.mirror).get(epoch)
        if term is None:
            return
        record = replace(term, ended=self._clock.wall(), end_reason=reason)
        with contextlib.suppress(StoreError, TimeoutError):
            write = EndTerm(epoch=epoch, record=record, fence=self._fence(epoch))
            await self._record.answer(write, timeout=LAST_WORD)

    def _fence(self, epoch: int) -> Compare:
        return Compare(self._pool.keys.leader, "create", "=", epoch)

    # --- what the record shows ---------------------------------------------------------------------------------------

    def changed(self, change: Change) -> None:
        """The mirror shows a change."""
        if change.kind is Kind.LEADER:
            self.presence.look()
        if change.kind is Kind.DISABLED and change.names[0] == self._place.name:
            self.presence.look()
            if change.after is not None:
                self._spawn(self._close_workers())
        if change.kind in (Kind.LEADER, Kind.COORDINATOR, Kind.DISABLED):
            node = change.names[0] if change.names else leader_of(self._pool.mirror)[0]
            told = show_status(self._pool.mirror, self.etcd, self._clock.wall())
            self._updates.publish(CLUSTER, change.revision, {"type": "cluster_status_update", **told}, node_id=node)
        elif change.kind is Kind.NODE and change.after is not None:
            nodes = [show_health(node) for node in nodes_of(self._pool.mirror)]
            body = {"type": "cluster_health_update", "nodes": nodes, "timestamp": when(self._clock.wall())}
            self._updates.publish(CLUSTER, change.revision, body, node_id=change.names[0])
        elif change.kind is Kind.TERM and change.before is None and change.after is not None:
            term = change.after.value
            assert isinstance(term, TermRecord)
            self._updates.publish(
                LEADERSHIP,
                change.revision,
                {
                    "type": "leadership_update",
                    "previous_leader_id": term.previous or None,
                    "new_leader_id": term.coordinator,
                    "term": int(change.names[0]),
                    "reason": term.reason,
                    "timestamp": when(term.started),
                },
                new_leader_id=term.coordinator,
                previous_leader_id=term.previous,
            )

    # --- what an operator asks ---------------------------------------------------------------------------------------

    def check_takes_work(self) -> None:
        """Raises `Disabled`."""
        if not self.presence.enabled:
            raise Disabled(f"the coordinator {self._place.name} is disabled by an operator: ask another one")

    async def disable(self, name: str, reason: str) -> dict[str, Any]:
        """Take work away from a coordinator; returns it when it does not lead any more.

        Raises `UnknownNode`, `LastNode`, and what etcd raises.
        """
        async with self._changing:
            self._known(name)
            other = last_other(name, self._enabled())
            write = Disable(node=name, other=other, record=DisabledRecord(at=self._clock.wall(), reason=reason))
            if not await self._record.answer(write, timeout=WRITE):
                raise LastNode(
                    f"{other}, which was to stay, has just been disabled: enable it, or leave {name} as it is"
                )
            await self._pool.wait_for(name, lambda: self._pool.mirror.get(Kind.DISABLED, name) is not None, HAND_OVER)
        await self._pool.wait_for("", lambda: leader_of(self._pool.mirror)[0] not in ("", name), HAND_OVER)
        return self.node(name)

    async def enable(self, name: str) -> dict[str, Any]:
        """Let a coordinator work again. Raises `UnknownNode`, and what etcd raises."""
        async with self._changing:
            self._known(name)
            await self._record.answer(Enable(node=name), timeout=WRITE)
            await self._pool.wait_for(name, lambda: self._pool.mirror.get(Kind.DISABLED, name) is None, HAND_OVER)
        return self.node(name)

    def node(self, name: str) -> dict[str, Any]:
        """A coordinator as the API shows it. Raises `UnknownNode`."""
        _, term = leader_of(self._pool.mirror)
        for node in nodes_of(self._pool.mirror):
            if node.name == name:
                return show_node(node, term, self._clock.wall())
        raise UnknownNode(f"this farm knows no coordinator {name!r}")

    def _known(self, name: str) -> None:
        names = [node.name for node in nodes_of(self._pool.mirror)]
        if name not in names:
            raise UnknownNode(f"this farm knows no coordinator {name!r}; it has {', '.join(names) or 'none'}")

    def _enabled(self) -> list[str]:
        disabled = self._pool.mirror.all(Kind.DISABLED)
        return [name for name in self._pool.coordinators() if (name,) not in disabled]

    def _spawn(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


def begun_term(name: str, now: float, before: dict[int, TermRecord]) -> tuple[TermRecord, tuple[int, ...]]:
    """Return the record of a leadership that begins, and the epochs of those that are to be forgotten.

    `before`: the leaderships until now, by their epochs, the oldest first.
    """
    last = list(before.values())[-1] if before else None
    reason = "first_leader" if last is None else last.end_reason or "leader_timeout"
    forget = tuple(list(before)[: max(len(before) - TERMS + 1, 0)])
    return TermRecord(coordinator=name, started=now, previous=last.coordinator if last else "", reason=reason), forget


def last_other(name: str, enabled: Iterable[str]) -> str:
    """Return an enabled coordinator that is there, other than `name`. Raises `LastNode`."""
    others = sorted(one for one in enabled if one != name)
    if not others:
        raise LastNode(f"no other coordinator is there and enabled: {name} must stay")
    return others[0]
