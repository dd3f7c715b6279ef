"""`TokenOffice`: makes tokens, revokes them, and lets workers in that join.

Rules that this file guards:
- A token is told to who asks for it, once, and kept nowhere. etcd holds what lists show, and what was revoked.
- A worker that joins gets a token for an hour and one that is good once, for the next two. Where that one is used again,
  somebody has stolen it or its successor: all tokens of that worker are revoked. Asking again for an answer that was lost
  is told apart by a number that the worker chose for this one request.
- What another coordinator has written is waited for before a token is refused: it is signed, and so it is known to one.
- A name that has joined is taken until its tokens are revoked or over: nobody becomes another worker by a token to join.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreError, StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.tokens.values import FamilyRecord, RevokedRecord, SigningKeyRecord, TokenRecord
from dtf_lightning.farm.record.tokens.writes import AddKey, ForgetTokens, Join, NoteToken, Renew, Revoke
from dtf_lightning.farm.record.writes import Write
from dtf_lightning.farm.security.identity import Forbidden, Identity, Unauthorised
from dtf_lightning.farm.security.keys import LONGEST_LIFE, SigningKey, past, signer
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.tokens import make_token
from dtf_lightning.farm.server.doors.authenticator import Authenticator
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event

log = logging.getLogger(__name__)

ACCESS_LIFE = 3600.0
"""Seconds of a joined worker's token."""
TASK_LIFE, TASK_GRACE = 7 * 86400.0, 600.0
"""Seconds of the token of an attempt whose task has no timeout, and beyond one; it is good for no longer than the attempt."""
REFRESH_LIFE = 30 * 86400.0
"""Seconds for which a joined worker may be away."""
SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
INTERVAL = 3600.0
"""Seconds between two looks for records that nothing needs any more."""


class UnknownToken(DtfError):
    """No token has this id."""


class NameTaken(DtfError):
    """Another worker has joined under this name."""


class TokenOffice:
    """That of one coordinator. Runs on its event loop.

    Args:
        tell: writes a line into the audit file.
    """

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        authenticator: Authenticator,
        clock: Clock,
        tell: Callable[..., None],
    ) -> None:
        self.authenticator = authenticator
        self._pool = pool
        self._mirror = pool.mirror
        self._record = record
        self._clock = clock
        self._tell = tell

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def create(
        self, by: Identity, *, role: Role, subject: str, projects: tuple[str, ...], life: float, uses: int | None
    ) -> dict[str, Any]:
        """Make a token. `uses`: so many workers can join with it; `None`: it is no token to join with.

        Raises `SettingsError`, and what etcd raises.
        """
        if role is Role.WORKER and projects:
            raise SettingsError(
                "a worker's token cannot be limited to projects: it makes the attempts that it is given"
            )
        if uses is not None and role is not Role.WORKER:
            raise SettingsError(
                f"a token with a number of uses is for workers to join with, not for the role {role.value}"
            )
        if role is Role.WORKER and uses is None and not subject:
            raise SettingsError(
                "a worker's token is for one worker: give its name, or a number of uses for workers to join with"
            )
        now = self._clock.wall()
        if not 1 <= life <= LONGEST_LIFE:
            raise SettingsError(f"a token can be good for 1 s to {LONGEST_LIFE / 86400:.0f} days, not for {life:g} s")
        identity = Identity(
            subject=subject or by.subject,
            role=role if uses is None else Role.JOIN,
            token=secrets.token_hex(8),
            projects=frozenset(projects),
            expires=float(int(now + life)),
        )
        record = TokenRecord(
            subject=identity.subject,
            role=role.value,
            projects=tuple(sorted(projects)),
            created=now,
            expires=now + life,
            by=by.subject,
            uses=uses,
        )
        token = await self._sign(identity)
        await self._write(NoteToken(name=identity.token, record=record), Kind.TOKEN, identity.token)
        return {"token": token, **self._shown(identity.token, record)}

    def all(self) -> list[dict[str, Any]]:
        """The tokens that were made and are not over, and the workers that have joined, the oldest first."""
        now, rows = self._clock.wall(), []
        for (name,), held in self._mirror.all(Kind.TOKEN).items():
            assert isinstance(held.value, TokenRecord)
            if held.value.expires > now:
                rows.append(self._shown(name, held.value))
        for (worker,), held in self._mirror.all(Kind.FAMILY).items():
            assert isinstance(held.value, FamilyRecord)
            if held.value.expires > now:
                rows.append(self._shown_family(worker, held.value))
        return sorted(rows, key=lambda row: (row["created"], row["token_id"]))

    async def revoke(self, by: str, name: str, reason: str) -> dict[str, Any]:
        """Make a token good no more, or all of a worker's that has joined. Raises `UnknownToken`, and what etcd raises."""
        held = self._mirror.get(Kind.TOKEN, name)
        worker, until = "", 0.0
        if held is not None:
            assert isinstance(held.value, TokenRecord)
            until = held.value.expires
        else:
            for (joined,), family in self._mirror.all(Kind.FAMILY).items():
                assert isinstance(family.value, FamilyRecord)
                if family.value.id == name:
                    worker, until = joined, family.value.expires
        if not until and self._mirror.get(Kind.REVOKED, name) is None:
            raise UnknownToken(f"no token of this farm has the id {name!r}: `dtf farm token list` shows them")
        record = RevokedRecord(at=self._clock.wall(), until=until, reason=reason, by=by)
        await self._write(Revoke(name=name, record=record, worker=worker), Kind.REVOKED, name)
        return {"token_id": name, "revoked": True}

    async def rotate(self, *, forget: bool) -> dict[str, Any]:
        """Add a key, which signs from now on. `forget`: what older ones have signed is refused at once."""
        older = tuple(sorted(name for (name,) in self._mirror.all(Kind.SIGNING_KEY)))
        name = await self._add_key(older if forget else ())
        keys = self.authenticator.keys().values()
        return {"key": name, "keys": [{"key": one.name, "created": when(one.created)} for one in _ordered(keys)]}

    # --- workers that join -------------------------------------------------------------------------------------------

    async def join(self, asked: Identity, worker: str, nonce: str) -> dict[str, Any]:
        """Let a worker in. Raises `Unauthorised` where no use is left, `NameTaken`, and what etcd raises."""
        await self._pool.wait_for(asked.token, lambda: self._mirror.get(Kind.TOKEN, asked.token) is not None, SHOWN)
        for _ in range(TRIES):
            now = self._clock.wall()
            held, family = self._mirror.get(Kind.TOKEN, asked.token), self._mirror.get(Kind.FAMILY, worker)
            if family is not None:
                assert isinstance(family.value, FamilyRecord)
                if family.value.by == asked.token and family.value.nonce == _digest(nonce):
                    return await self._tokens(worker, family.value)  # the answer was lost
                if family.value.expires > now:
                    raise NameTaken(
                        f"a worker named {worker!r} has joined already: choose another name with --name, or end the other's "
                        f"tokens with `dtf farm token revoke {family.value.id}`"
                    )
            told = None if held is None else held.value
            if not isinstance(told, TokenRecord) or not told.uses:
                raise Unauthorised(
                    "this token to join with is used up: `dtf farm token create --role worker --uses 1` makes a new one"
                )
            assert held is not None
            record = FamilyRecord(
                id=secrets.token_hex(8),
                number=1,
                nonce=_digest(nonce),
                joined=now,
                expires=now + REFRESH_LIFE,
                by=asked.token,
            )
            write = Join(
                token=asked.token,
                record=replace(told, uses=told.uses - 1),
                seen=held.mod_revision,
                worker=worker,
                family=record,
                family_seen=0 if family is None else family.mod_revision,
            )
            if await self._try(write, Kind.FAMILY, worker):
                return await self._tokens(worker, record)
        raise StoreUnavailable(f"the token to join with changes all the time: try again as {worker}")

    async def refresh(self, asked: Identity, nonce: str) -> dict[str, Any]:
        """Give a worker its next tokens. Raises `Unauthorised` for a token that was used before, and what etcd raises."""
        worker = asked.subject
        await self._pool.wait_for(worker, lambda: self._has_heard_of(asked), SHOWN)
        for _ in range(TRIES):
            held = self._mirror.get(Kind.FAMILY, worker)
            told = None if held is None else held.value
            if not isinstance(told, FamilyRecord) or told.id != asked.family:
                raise Unauthorised(f"the worker {worker!r} has not joined by this, or joined anew since")
            assert held is not None
            if told.number == asked.number + 1 and told.nonce == _digest(nonce):
                return await self._tokens(worker, told)  # the answer was lost
            if told.number != asked.number:
                if told.number < asked.number:
                    raise StoreUnavailable("this coordinator has not heard of this token yet: try again")
                await self._stolen(worker, told)
            record = replace(
                told,
                number=told.number + 1,
                nonce=_digest(nonce),
                expires=self._clock.wall() + REFRESH_LIFE,
            )
            if await self._try(Renew(worker=worker, family=record, seen=held.mod_revision), Kind.FAMILY, worker):
                return await self._tokens(worker, record)
        raise StoreUnavailable(f"the tokens of {worker} change all the time, try again")

    def _has_heard_of(self, asked: Identity) -> bool:
        """Whether this coordinator knows of a token to refresh with, which may come from another one."""
        held = self._mirror.get(Kind.FAMILY, asked.subject)
        told = None if held is None else held.value
        return isinstance(told, FamilyRecord) and told.id == asked.family and told.number >= asked.number

    async def _stolen(self, worker: str, told: FamilyRecord) -> None:
        reason = f"a token of the worker {worker!r} was used twice: it, or the one after it, was stolen"
        record = RevokedRecord(at=self._clock.wall(), until=told.expires, reason=reason, by="farm")
        await self._write(Revoke(name=told.id, record=record, worker=worker), Kind.REVOKED, told.id)
        self._tell(event="token_theft", sub=worker, family=told.id, reason=reason)
        log.warning("%s; all its tokens are revoked", reason)
        raise Unauthorised(
            f"{reason}. All its tokens are revoked: `dtf farm token create --role worker --uses 1` makes one to join with"
        )

    async def _tokens(self, worker: str, family: FamilyRecord) -> dict[str, Any]:
        now = self._clock.wall()
        access = Identity(
            subject=worker,
            role=Role.WORKER,
            token=secrets.token_hex(8),
            expires=float(int(now + ACCESS_LIFE)),
            family=family.id,
            number=family.number,
        )
        following = replace(access, role=Role.REFRESH, token=secrets.token_hex(8), expires=float(int(family.expires)))
        return {
            "worker_id": worker,
            "token": await self._sign(access),
            "refresh": await self._sign(following),
            "seconds": ACCESS_LIFE,
        }

    # --- attempts ----------------------------------------------------------------------------------------------------

    async def of_attempt(self, asked: Identity, task: str, revision: int) -> dict[str, Any]:
        """Make a token for an attempt's command, which ends with the attempt. Raises `Forbidden`, and what etcd raises."""
        live = self._pool.live(task)
        if live is None or live.revision != revision or asked.worker not in (None, *live.attempt.workers):
            raise Forbidden(f"the attempt {revision} at the task {task} does not count, or another worker makes it")
        if not live.specification.permissions:
            raise Forbidden(f"the task {task} was submitted without `permissions`: its command gets no token")
        life = TASK_LIFE if live.specification.timeout is None else live.specification.timeout + TASK_GRACE
        identity = Identity(
            subject=task,
            role=Role.TASK,
            token=secrets.token_hex(8),
            projects=frozenset((live.specification.project,)),
            expires=float(int(self._clock.wall() + min(life, LONGEST_LIFE))),
            family=task,
            number=revision,
        )
        return {"token": await self._sign(identity)}

    # --- keys --------------------------------------------------------------------------------------------------------

    async def _sign(self, identity: Identity) -> str:
        now = self._clock.wall()
        if not self.authenticator.keys():
            await self._add_key(())
        key = signer(self.authenticator.keys().values(), now)
        if key is None:
            raise StoreUnavailable("the record does not show a key to sign with yet: try again")
        return make_token(identity, key, farm=self.authenticator.farm, now=now)

    async def _add_key(self, instead_of: tuple[str, ...]) -> str:
        name, sealed = self.authenticator.sealer().seal_new()
        record = SigningKeyRecord(sealed=sealed, created=self._clock.wall())
        await self._write(AddKey(name=name, record=record, instead_of=instead_of), Kind.SIGNING_KEY, name)
        return name

    # --- what nothing needs any more ----------------------------------------------------------------------------------

    async def run(self, leads: Callable[[], bool]) -> None:
        """Look again and again, until cancelled. `leads`: whether this coordinator is to do it."""
        while True:
            await wait_for_event(asyncio.Event(), INTERVAL)
            if leads():
                with contextlib.suppress(StoreError):  # the next look finds it again
                    await self.tidy()

    async def tidy(self) -> int:
        """Delete records of tokens that are over, and keys that signed nothing else. Returns how many."""
        now = self._clock.wall()
        over: list[tuple[Kind, str]] = [
            (kind, name)
            for kind, until in ((Kind.TOKEN, "expires"), (Kind.REVOKED, "until"), (Kind.FAMILY, "expires"))
            for (name,), held in self._mirror.all(kind).items()
            if getattr(held.value, until) < now
        ]
        over += [(Kind.SIGNING_KEY, key.name) for key in past(self.authenticator.keys().values(), now)]
        writes = [ForgetTokens(kind=kind, name=name, seen=self._mirror.seen(kind, name)) for kind, name in over]
        return sum(await asyncio.gather(*map(self._record.answer, writes)))

    # --- the parts ---------------------------------------------------------------------------------------------------

    async def _try(self, write: Write[bool], kind: Kind, name: str) -> bool:
        seen = self._mirror.seen(kind, name)
        made = await self._record.answer(write)
        await self._pool.wait_for_change(kind, name, seen, SHOWN if made else 1.0)
        return made

    async def _write(self, write: Write[bool], kind: Kind, name: str) -> None:
        """Write what nothing stands against, and wait until this coordinator knows it."""
        await self._record.answer(write)
        await self._pool.wait_for(name, lambda: self._mirror.get(kind, name) is not None, SHOWN)

    def _shown(self, name: str, record: TokenRecord) -> dict[str, Any]:
        return {
            "token_id": name,
            "subject": record.subject,
            "role": record.role,
            "kind": "token" if record.uses is None else "join",
            "projects": list(record.projects),
            "created": when(record.created),
            "expires": when(record.expires),
            "created_by": record.by,
            "uses_left": record.uses,
            "revoked": self._mirror.get(Kind.REVOKED, name) is not None,
        }

    def _shown_family(self, worker: str, family: FamilyRecord) -> dict[str, Any]:
        record = TokenRecord(
            subject=worker, role=Role.WORKER.value, created=family.joined, expires=family.expires, by=family.by
        )
        return self._shown(family.id, record) | {"kind": "joined"}


def _ordered(keys: Any) -> list[SigningKey]:
    return sorted(keys, key=lambda key: key.revision)


def _digest(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()
