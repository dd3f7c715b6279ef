"""`SecretKeeper`: the secrets of projects, as the record has them.

Rules that this file guards:
- A value goes from the request that sets it into a seal, and from its seal into the answer to the worker that makes an attempt
  at a task which names it: nowhere else. No list, log, error or line of the audit file has it.
- A worker gets it while its attempt counts, and only what the attempt's task names, of its own project.
- Whatever asks a file or a command for keys does so in a thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.secrets.values import SecretRecord
from dtf_lightning.farm.record.secrets.writes import RemoveSecret, SetSecret
from dtf_lightning.farm.rules.needs import LONGEST_SECRET, SHORTEST_SECRET
from dtf_lightning.farm.security.identity import Forbidden, Identity
from dtf_lightning.farm.security.sealing.ring import Owner, Ring, Sealed, WrongKey
from dtf_lightning.farm.security.sealing.sources import KeySource
from dtf_lightning.farm.server.models import OWN, when
from dtf_lightning.farm.server.pool import Pool

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
MAX_SECRETS = 1000
"""Of one farm: each coordinator holds them all in memory, sealed."""
ASK_AGAIN = 10.0
"""Seconds after which a key that nobody has is looked for again."""


class NoSuchSecret(DtfError):
    """The project has no secret of this name."""


class SecretKeeper:
    """Runs on the coordinator's event loop.

    Args:
        farm: its name.
        source: of the keys.
        tell: writes a line into the audit file.
    """

    def __init__(
        self, pool: Pool, record: FarmRecord, clock: Clock, *, farm: str, source: KeySource, tell: Callable[..., None]
    ) -> None:
        self._pool = pool
        self._record = record
        self._clock = clock
        self._farm = farm
        self._source = source
        self._tell = tell
        self._ring: Ring | None = None
        self._asked = 0.0
        """When keys were read last, on the monotonic clock."""

    # --- by people ---------------------------------------------------------------------------------------------------

    def list(self, project: str = "") -> list[dict[str, Any]]:
        """Return the secrets' names, and when and by whom each was set. `project`: only of this one."""
        return [
            self._shown(of, name, record)
            for of, name in sorted(self._pool.mirror.all(Kind.SECRET))
            if project in ("", of) and (record := self._of(of, name)) is not None
        ]

    async def set(self, project: str, name: str, value: str, *, by: str) -> dict[str, Any]:
        """Set a secret. Raises `SettingsError`, and what etcd raises."""
        check_secret(name, value)
        if project != "default" and self._pool.mirror.get(Kind.PROJECT, project) is None:
            raise SettingsError(
                f"no project is called {project!r}. To make it: dtf farm project set {project} --weight 1"
            )
        if self._of(project, name) is None and len(self._pool.mirror.all(Kind.SECRET)) >= MAX_SECRETS:
            raise SettingsError(f"the farm keeps {MAX_SECRETS} secrets, which is all that it takes: remove some")
        sealed = (await self._fresh()).seal(value, self._owner(project, name))
        record = SecretRecord(sealed=sealed.text, key=sealed.key, changed=self._clock.wall(), by=by)
        for _ in range(TRIES):
            if await self._write(project, name, record):
                return self._shown(project, name, record)
        raise _unsteady(name)

    async def remove(self, project: str, name: str) -> None:
        """Forget a secret. Raises `NoSuchSecret`, and what etcd raises."""
        for _ in range(TRIES):
            if self._of(project, name) is None:
                raise NoSuchSecret(f"the project {project} has no secret {name!r}: `dtf farm secret list` shows them")
            seen = self._pool.mirror.seen(Kind.SECRET, project, name)
            gone = await self._record.answer(RemoveSecret(project=project, name=name, seen=seen))
            await self._changed(project, name, seen, SHOWN if gone else 1.0)
            if gone:
                return
        raise _unsteady(name)

    async def rotate(self) -> dict[str, Any]:
        """Seal every secret with the key that is first now. Raises `SettingsError`, and what etcd raises.

        What cannot be opened stays as it is, and is named.
        """
        ring = await self._fresh()
        resealed, failed = 0, []
        for project, name in sorted(self._pool.mirror.all(Kind.SECRET)):
            try:
                resealed += await self._reseal(ring, project, name)
            except WrongKey as error:
                failed.append(str(error))
        return {"key": ring.ids[0], "resealed": resealed, "failed": failed}

    async def _reseal(self, ring: Ring, project: str, name: str) -> bool:
        """Whether it was sealed with another key before."""
        for _ in range(TRIES):
            record = self._of(project, name)
            if record is None or record.key == ring.ids[0]:
                return False
            owner = self._owner(project, name)
            sealed = ring.seal(ring.open(Sealed(text=record.sealed, key=record.key), owner), owner)
            changed = SecretRecord(sealed=sealed.text, key=sealed.key, changed=record.changed, by=record.by)
            if await self._write(project, name, changed):
                return True
        raise _unsteady(name)

    # --- by workers --------------------------------------------------------------------------------------------------

    async def of_attempt(self, asked: Identity, task: str, revision: int) -> dict[str, str]:
        """Return name -> value of what the farm keeps of the secrets that an attempt's task names.

        Raises `Forbidden` for an attempt that does not count, or that another worker makes, and `WrongKey`.
        """
        live = self._pool.live(task)
        if live is None or live.revision != revision or not live.attempt.workers:
            raise Forbidden(f"the attempt {revision} at the task {task} does not count: it gets no secrets")
        if asked.worker is not None and asked.worker not in live.attempt.workers:
            raise Forbidden(
                f"the worker {asked.worker!r} makes no attempt at the task {task}: it gets its own secrets alone"
            )
        project = live.specification.project
        kept = {name: record for name in live.specification.secrets if (record := self._of(project, name)) is not None}
        if not kept:
            return {}
        values = {name: await self._open(project, name, record) for name, record in kept.items()}
        self._tell(
            event="secrets", task=task, revision=revision, project=project, names=sorted(values), **asked.shown()
        )
        return values

    async def _open(self, project: str, name: str, record: SecretRecord) -> str:
        ring = self._ring or await self._fresh()
        if record.key not in ring.ids and asyncio.get_running_loop().time() > self._asked + ASK_AGAIN:
            ring = await self._fresh()
        return ring.open(Sealed(text=record.sealed, key=record.key), self._owner(project, name))

    # --- the parts ---------------------------------------------------------------------------------------------------

    async def _fresh(self) -> Ring:
        """Return the keys as their source has them now. Raises `SettingsError`."""
        self._ring = await asyncio.to_thread(self._source.read)
        self._asked = asyncio.get_running_loop().time()
        return self._ring

    async def _write(self, project: str, name: str, record: SecretRecord) -> bool:
        seen = self._pool.mirror.seen(Kind.SECRET, project, name)
        made = await self._record.answer(SetSecret(project=project, name=name, record=record, seen=seen))
        await self._changed(project, name, seen, SHOWN if made else 1.0)
        return made

    async def _changed(self, project: str, name: str, seen: int, timeout: float) -> None:
        mirror = self._pool.mirror
        await self._pool.wait_for(project, lambda: mirror.seen(Kind.SECRET, project, name) != seen, timeout)

    def _of(self, project: str, name: str) -> SecretRecord | None:
        held = self._pool.mirror.get(Kind.SECRET, project, name)
        if held is None:
            return None
        assert isinstance(held.value, SecretRecord)
        return held.value

    def _owner(self, project: str, name: str) -> Owner:
        return Owner(farm=self._farm, project=project, name=name)

    def _shown(self, project: str, name: str, record: SecretRecord) -> dict[str, Any]:
        return {
            "project": project,
            "name": name,
            "changed": when(record.changed),
            "by": record.by,
            "key": record.key,
        }


def check_secret(name: str, value: str) -> None:
    """Raise `SettingsError`, without the value, for what no task could get or no output could be kept free of."""
    if not NAME.fullmatch(name) or name.startswith(OWN):
        raise SettingsError(
            f"{name!r} is no name of a secret: expected letters, digits and '_', as a variable has them, not {OWN}..."
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0  # raised below: the error would show the value
    if not SHORTEST_SECRET <= size <= LONGEST_SECRET or "\0" in value:
        raise SettingsError(
            f"the value of the secret {name} must have {SHORTEST_SECRET} to {LONGEST_SECRET} bytes of UTF-8, fewer could not be "
            "masked in output, and no NUL"
        )


def _unsteady(name: str) -> StoreUnavailable:
    return StoreUnavailable(f"the secret {name} changes all the time, try again")
