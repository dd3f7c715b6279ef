"""`Presence`: a coordinator's lease, its record under it, and its campaigns to lead.

Rules that this file guards:
- The coordinator's record and its leadership hang on one lease: who does not renew it is gone, and leads no more.
- It campaigns whenever the mirror shows that nobody leads. It has won only what it has heard itself: `epoch` is that of
  its own leader key under its own lease.
- A coordinator that an operator has disabled says so in its record, hands the leadership over, and does not campaign.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.election import Election, Leadership
from dtf_lightning.etcd.store import Lease, Store
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import CoordinatorRecord, LeaderRecord
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

log = logging.getLogger(__name__)

LEASE_TTL = 2.0
PAUSE = 0.3
"""Seconds before etcd is asked again that did not answer."""


@dataclass(frozen=True, kw_only=True)
class CoordinatorPlace:
    """Who a coordinator is and where."""

    farm: str
    name: str
    address: str
    """Where workers and clients reach it, such as `http://127.0.0.1:8080`."""
    folder: Path
    """Of the farm's files, which all its coordinators share."""
    version: str
    host: str = field(default_factory=socket.gethostname)
    settings: CoordinatorSettings = field(default_factory=CoordinatorSettings)
    warning: str = ""
    """What everybody should know who looks at this farm."""
    began: float = field(default_factory=time.monotonic)
    """When it began, monotonic seconds."""


class Presence:
    """Runs on the coordinator's event loop.

    Args:
        changed: is called when `epoch` has changed.
        resigning: is awaited before the leadership is given up, with its epoch and why.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        place: CoordinatorPlace,
        changed: Callable[[], None],
        resigning: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self.epoch = 0
        """Of our leadership, as long as we hold the lease under which we won it; 0: none."""
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._pool = pool
        self._place = place
        self._changed = changed
        self._resigning = resigning
        self._announced = True
        """As its record says: whether it is enabled."""
        self._election = Election(store, pool.keys.leader)
        self._lease: Lease | None = None
        self._news = asyncio.Event()

    @property
    def enabled(self) -> bool:
        """Whether no operator wants it to take no work, as the mirror shows it."""
        return self._pool.mirror.get(Kind.DISABLED, self._place.name) is None

    def look(self) -> None:
        """Whether somebody leads has changed, or whether it is enabled."""
        self._news.set()

    async def stay(self) -> None:
        """Be there, and campaign, until cancelled."""
        while True:
            try:
                lease = await asyncio.to_thread(self._appear)
            except StoreError as error:
                log.warning("etcd gives no lease: %s", error)
                await wait_for_event(asyncio.Event(), PAUSE)
                continue
            self._lease = lease
            while not lease.lost:
                self._news.clear()
                if self._announced != self.enabled and not await self._obey(lease):
                    await asyncio.to_thread(lease.revoke)  # whatever hangs on it goes, the leadership too
                    break
                open_for = self._pool.mirror.get(Kind.LEADER) is None and self.enabled
                if open_for:
                    await self._campaign(lease)
                await wait_for_event(self._news, PAUSE if open_for else None)
            log.warning("%s has no lease any more", self._place.name)
            self._lease = None
            self._set_epoch(0)

    async def leave(self) -> None:
        """Give the lease back, with all that hangs on it."""
        if epoch := self.epoch:
            self._set_epoch(0)
            await self._resigning(epoch, "leader_resigned")
        if self._lease is not None:
            await asyncio.to_thread(self._lease.revoke)
            self._lease = None

    def _appear(self) -> Lease:
        lease = self._store.lease(LEASE_TTL, on_lost=self._lost)
        try:
            self._announce(lease)
        except StoreError:
            lease.revoke()
            raise
        return lease

    def _announce(self, lease: Lease) -> None:
        enabled = self.enabled
        record = CoordinatorRecord(
            address=self._place.address, version=self._place.version, host=self._place.host, enabled=enabled
        )
        self._store.put(self._pool.keys.key(Kind.COORDINATOR, self._place.name), encode(record), lease=lease.id)
        self._announced = enabled

    async def _obey(self, lease: Lease) -> bool:
        """Say whether it is enabled; if it is not, hand the leadership over. `False`: etcd did not take all of it."""
        try:
            await asyncio.to_thread(self._announce, lease)
            if not self._announced and (epoch := self.epoch):
                self._set_epoch(0)
                await self._resigning(epoch, "leader_disabled")
                leadership = Leadership(self._election.key, b"", epoch, lease.id)
                await asyncio.to_thread(self._election.resign, leadership)
        except StoreError as error:
            log.warning("%s cannot say that an operator has disabled or enabled it: %s", self._place.name, error)
            return False
        return True

    def _lost(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            log.debug("the event loop has ended")

    async def _campaign(self, lease: Lease) -> None:
        value = encode(LeaderRecord(coordinator=self._place.name))
        try:
            leadership = await asyncio.to_thread(self._election.try_acquire, value, lease.id)
        except StoreError as error:
            log.info("campaign: %s", error)
            return
        if leadership.lease == lease.id and not lease.lost:
            self._set_epoch(leadership.epoch)

    def _set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._changed()


async def wait_for_event(event: asyncio.Event, timeout: float | None) -> None:
    """Wait for an event, for at most `timeout` seconds; `None`: as long as it takes."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return
