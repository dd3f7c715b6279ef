"""The routes of quarantines: tests whose failures do not count for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import Field

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from dtf_lightning.farm.record.quarantine.writes import RemoveQuarantine, SetQuarantine
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server.models import StrictModel, when
from dtf_lightning.farm.verdicts.quarantine import DAY, MAX_WORDS, check

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
MAX_QUARANTINED = 5_000
"""Tests of one farm."""
REMEMBERED = 30 * DAY
"""Seconds for which it is told of a quarantine that it has expired."""
Project = Annotated[str, Path(min_length=1, max_length=100)]
Test = Annotated[str, Path(min_length=1, max_length=MAX_WORDS)]


class QuarantineRequest(StrictModel):
    """How a test is put into quarantine."""

    owner: str
    """Who mends it."""
    reason: str
    seconds: float = Field(gt=0)
    """From now, after which it counts again."""


def add_quarantine(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    pool, clock = coordinator.pool, SystemClock()

    def record_of(project: str, test: str) -> QuarantineRecord | None:
        held = pool.mirror.get(Kind.QUARANTINE, project, test)
        if held is None:
            return None
        assert isinstance(held.value, QuarantineRecord)
        return held.value

    def shown(project: str, test: str, record: QuarantineRecord) -> dict[str, Any]:
        return {
            "project": project,
            "test": test,
            "owner": record.owner,
            "reason": record.reason,
            "added": when(record.added),
            "expires": when(record.expires),
            "active": clock.wall() < record.expires,
            "by": record.by,
        }

    async def changed(project: str, test: str, seen: int, timeout: float) -> None:
        await pool.wait_for(project, lambda: pool.mirror.seen(Kind.QUARANTINE, project, test) != seen, timeout)

    async def remove(project: str, test: str) -> bool:
        seen = pool.mirror.seen(Kind.QUARANTINE, project, test)
        gone = await coordinator.record.answer(RemoveQuarantine(project=project, test=test, seen=seen))
        await changed(project, test, seen, SHOWN if gone else 1.0)
        return gone

    async def forget_old() -> None:
        """Those that have expired long ago are told of no more."""
        for project, test in list(pool.mirror.all(Kind.QUARANTINE)):
            record = record_of(project, test)
            if record is not None and clock.wall() > record.expires + REMEMBERED:
                await remove(project, test)

    @app.get("/api/quarantine", operation_id="quarantine.list")
    async def list_quarantine(project: str = "") -> dict[str, Any]:
        """Return the tests in quarantine, and those whose quarantine has expired lately. `project`: only of this one."""
        found = [
            shown(of, test, record)
            for of, test in sorted(pool.mirror.all(Kind.QUARANTINE))
            if project in ("", of) and (record := record_of(of, test)) is not None
        ]
        return {
            "quarantine": [one for one in found if one["active"]],
            "expired": [one for one in found if not one["active"]],
        }

    @app.put("/api/quarantine/{project}/{test:path}", operation_id="quarantine.set")
    async def set_quarantine(
        project: Project, test: Test, asked: QuarantineRequest, request: Request
    ) -> dict[str, Any]:
        """Let a test fail for a while, or change until when; its owner mends it."""
        identity = identity_of(request.scope)
        refuse_projects(identity, [project])
        check(test=test, owner=asked.owner, reason=asked.reason, seconds=asked.seconds)
        await forget_old()
        if record_of(project, test) is None and len(pool.mirror.all(Kind.QUARANTINE)) >= MAX_QUARANTINED:
            raise SettingsError(f"{MAX_QUARANTINED} tests are in quarantine, which is all that a farm takes: mend some")
        now = clock.wall()
        record = QuarantineRecord(
            owner=asked.owner, reason=asked.reason, added=now, expires=now + asked.seconds, by=identity.subject
        )
        for _ in range(TRIES):
            seen = pool.mirror.seen(Kind.QUARANTINE, project, test)
            made = await coordinator.record.answer(SetQuarantine(project=project, test=test, record=record, seen=seen))
            await changed(project, test, seen, SHOWN if made else 1.0)
            if made:
                return shown(project, test, record)
        raise StoreUnavailable(f"the quarantine of {test} changes all the time, try again")

    @app.delete("/api/quarantine/{project}/{test:path}", operation_id="quarantine.remove")
    async def remove_quarantine(project: Project, test: Test, request: Request) -> dict[str, Any]:
        """Let a test count again."""
        refuse_projects(identity_of(request.scope), [project])
        for _ in range(TRIES):
            if record_of(project, test) is None:
                raise HTTPException(404, f"the test {test!r} of the project {project} is in no quarantine")
            if await remove(project, test):
                return {"project": project, "test": test, "removed": True}
        raise StoreUnavailable(f"the quarantine of {test} changes all the time, try again")
