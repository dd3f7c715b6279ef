"""Workers that join: a token with a number of uses, tokens for an hour, and what a theft comes to."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from dtf_lightning.clock import SystemClock, poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.follower import Follower, RecordChanged, RecordRead
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.tokens.values import FamilyRecord, RevokedRecord, SigningKeyRecord, TokenRecord
from dtf_lightning.farm.security.identity import Identity
from dtf_lightning.farm.security.keys import LONGEST_LIFE
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.tokens import role_told
from dtf_lightning.farm.server.doors.authenticator import Authenticator
from dtf_lightning.farm.server.doors.office import ACCESS_LIFE, TokenOffice
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.worker.service.credentials import Credentials
from support.farm.doors import Farm, refused
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


def join(farm: Farm, token: str, worker: str, nonce: str = "", at: int = 0) -> dict:
    return farm.connect(token, at).ask("POST", "/api/join", body(worker, nonce))


def refresh(farm: Farm, token: str, worker: str, nonce: str = "", at: int = 0) -> dict:
    return farm.connect(token, at).ask("POST", "/api/refresh", body(worker, nonce))


def body(worker: str, nonce: str = "") -> dict:
    return {"worker_id": worker, "nonce": nonce or secrets.token_hex(16)}


def row(farm: Farm, worker: str) -> dict:
    (found,) = (one for one in farm.admin.ask("GET", "/api/tokens")["tokens"] if one["subject"] == worker)
    return found


def test_so_many_can_join(farm):
    made = farm.make("worker", uses=2, subject="lab")
    for worker in ("j1", "j2"):
        told = join(farm, made["token"], worker)
        worker_of_it = PlayedWorker((farm.urls[1],), told["token"], name=worker)
        worker_of_it.wait_until_welcome()
        worker_of_it.close()
    refusal = refused(join, farm, made["token"], "j3", at=1)
    assert (refusal.status, "is used up: `dtf farm token create --role worker" in str(refusal)) == (401, True)
    assert (row(farm, "lab")["kind"], row(farm, "lab")["uses_left"]) == ("join", 0)
    assert (row(farm, "j1")["kind"], row(farm, "j1")["role"]) == ("joined", "worker")


def test_a_token_to_join_with_is_good_for_nothing_else(farm):
    token = farm.token("worker", uses=1)
    assert "needs the role worker or admin; this token's role is join" in str(
        refused(farm.connect(token).ask, "POST", "/api/register", {"worker_id": "j"})
    )
    told = join(farm, token, "j4")
    for one in (told["refresh"], token):
        assert refused(farm.connect(one).ask, "GET", "/api/status").status == 403
    assert refused(refresh, farm, told["token"], "j4").status == 403
    assert refused(refresh, farm, told["refresh"], "j5").status == 403
    assert refused(farm.admin.ask, "POST", "/api/join", body("j")).status == 403


def test_a_name_that_has_joined_is_taken(farm):
    """Nobody becomes another worker by a token to join with; until that one's tokens are revoked."""
    token = farm.token("worker", uses=3)
    told = join(farm, token, "j6")
    refusal = refused(join, farm, token, "j6")
    family = row(farm, "j6")["token_id"]
    assert (refusal.status, f"`dtf farm token revoke {family}`" in str(refusal)) == (409, True)
    farm.admin.ask("DELETE", f"/api/tokens/{family}")
    assert refused(farm.connect(told["token"]).ask, "GET", "/api/sources/x").status == 401
    assert refused(refresh, farm, told["refresh"], "j6").status == 401
    again = join(farm, token, "j6")
    assert farm.connect(again["token"]).ask("GET", "/api/openapi.json")["openapi"]


def test_again_and_again(farm):
    told = join(farm, farm.token("worker", uses=1), "j7")
    for at in (0, 1, 0):
        told = poll_until(lambda: try_refresh(farm, told["refresh"], "j7", at), DEADLINE, "to hear of it")  # noqa: B023
    farm.connect(told["token"]).ask("GET", "/api/openapi.json")


def try_refresh(farm: Farm, token: str, worker: str, at: int) -> dict | None:
    """A coordinator that has not heard of a token yet says so, with 503."""
    try:
        return refresh(farm, token, worker, at=at)
    except FarmRefused as refusal:
        if refusal.status != 503:
            raise
        return None


def test_a_lost_answer_is_asked_for_again(farm):
    """With the same number the same is asked: at whichever coordinator, one use is one use."""
    token, nonce = farm.token("worker", uses=1), "n" * 16
    join(farm, token, "j8", nonce)
    told = poll_until(lambda: join(farm, token, "j8", nonce), DEADLINE, "the same again")
    first = refresh(farm, told["refresh"], "j8", nonce)
    second = refresh(farm, told["refresh"], "j8", nonce)
    farm.connect(first["token"]).ask("GET", "/api/openapi.json")
    assert refresh(farm, second["refresh"], "j8")["worker_id"] == "j8"


def test_a_token_that_is_used_twice_was_stolen(farm):
    """Whoever of the two comes second, both lose everything; it stands in the audit file."""
    told = join(farm, farm.token("worker", uses=1), "j9")
    stolen = refresh(farm, told["refresh"], "j9")
    refusal = refused(refresh, farm, told["refresh"], "j9")
    assert (refusal.status, "was used twice: it, or the one after it, was stolen. All" in str(refusal)) == (401, True)
    for one in (told, stolen):
        assert "used twice" in str(refused(farm.connect(one["token"]).ask, "GET", "/api/openapi.json"))
        assert refused(refresh, farm, one["refresh"], "j9").status == 401
    (line,) = (one for one in farm.audit() if one.get("event") == "token_theft")
    assert line["sub"] == "j9"


@pytest.mark.parametrize("wrong", [{"worker_id": "", "nonce": "n" * 16}, {"worker_id": "w", "nonce": "n"}, {"uses": 1}])
def test_what_is_no_request(farm, wrong):
    assert refused(farm.connect(farm.token("worker", uses=1)).ask, "POST", "/api/join", wrong).status == 422


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"role": "developer", "uses": 1}, "is for workers to join with"),
        ({"role": "worker", "subject": "w", "projects": ["a"]}, "cannot be limited to projects"),
        ({"role": "viewer", "seconds": 4e7}, "seconds"),
        ({"role": "join"}, "role"),
        ({"role": "worker", "uses": 0}, "uses"),
    ],
)
def test_what_is_no_token(farm, fields, match):
    refusal = refused(farm.make, **fields)
    assert (refusal.status, match in str(refusal)) == (422, True)


def test_what_is_over_goes():
    """Records of tokens that are over, and keys by which none can be good any more; nothing else."""
    store, keys, now = MemoryStore(), FarmKeys("f"), 10 * LONGEST_LIFE

    async def story() -> int:
        pool = Pool(keys)
        authenticator = Authenticator("secret", "f", pool.mirror, FixedClock(now))
        records = {}
        for name, until in (("over", now - 1), ("good", now + 1)):
            records |= {
                (Kind.TOKEN, name): TokenRecord(subject="s", role="viewer", created=0.0, expires=until),
                (Kind.REVOKED, name): RevokedRecord(at=0.0, until=until),
                (Kind.FAMILY, name): FamilyRecord(id="f", number=1, nonce="", joined=0.0, expires=until),
            }
        for created in (0.0, 1.0, now):
            name, sealed = authenticator.sealer().seal_new()
            records[Kind.SIGNING_KEY, name] = SigningKeyRecord(sealed=sealed, created=created)
        for (kind, name), value in records.items():
            store.put(keys.key(kind, name), encode(value))
        found = store.range(keys.prefix)
        pool.load(found.kvs, found.revision)
        with FarmRecord(store, "f") as record:
            office = TokenOffice(pool, record, authenticator, FixedClock(now), lambda **_: None)
            return await office.tidy()

    try:
        assert asyncio.run(story()) == 4
        left = [keys.parse(kv.key) for kv in store.range(keys.prefix).kvs]
        assert [names for kind, names in left if kind is not Kind.SIGNING_KEY] == [("good",)] * 3
        assert len([kind for kind, _ in left if kind is Kind.SIGNING_KEY]) == 2
    finally:
        store.close()


def test_a_coordinator_that_hears_of_a_token_later():
    """It was made, or was used, at another one: it is waited for, and not refused."""
    store, keys = MemoryStore(), FarmKeys("f")

    async def story() -> None:
        loop, pool, clock = asyncio.get_running_loop(), Pool(keys), SystemClock()
        authenticator = Authenticator("secret", "f", pool.mirror, clock)
        pool.listeners.append(authenticator.changed)

        def hear(told: object) -> None:
            if isinstance(told, RecordRead):
                pool.load(told.kvs, told.revision)
            elif isinstance(told, RecordChanged):
                pool.apply(told.events)

        with FarmRecord(store, "f", deliver=loop.call_soon_threadsafe) as record:
            office = TokenOffice(pool, record, authenticator, clock, lambda **_: None)
            made = TokenRecord(subject="lab", role="worker", created=0.0, expires=clock.wall() + 100, uses=1)
            store.put(keys.key(Kind.TOKEN, "t"), encode(made))
            asked = Identity(subject="lab", role=Role.JOIN, token="t", expires=made.expires)
            joining = asyncio.create_task(office.join(asked, "w", "n" * 16))
            family = FamilyRecord(id="x", number=3, nonce="", joined=0.0, expires=made.expires)
            store.put(keys.key(Kind.FAMILY, "v"), encode(family))
            used = Identity(subject="v", role=Role.REFRESH, token="r", expires=made.expires, family="x", number=3)
            refreshing = asyncio.create_task(office.refresh(used, "n" * 16))
            # Both look before this loop hears of anything: they stand before it in its queue.
            follower = Follower(store, keys, lambda told: loop.call_soon_threadsafe(hear, told))
            follower.start()
            try:
                async with asyncio.timeout(DEADLINE):
                    assert [(await one)["worker_id"] for one in (joining, refreshing)] == ["w", "v"]
            finally:
                await asyncio.to_thread(follower.close)

    try:
        asyncio.run(story())
    finally:
        store.close()


class FixedClock:
    def __init__(self, now: float) -> None:
        self._now = now

    def wall(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now


def test_a_worker_joins_works_and_stays(farm, tmp_path):
    """By a token to join with alone; when its token is over, it goes on with the next."""
    clock = SteppedClock()
    joining = farm.token("worker", uses=1)
    assert role_told(joining) == "join"
    credentials = Credentials(joining, "j10", tmp_path / "credentials.json", farm.urls, clock=clock)
    worker = PlayedWorker(farm.urls, credentials.token, name="j10")
    try:
        worker.wait_until_welcome()
        first = credentials.token()
        clock.step = ACCESS_LIFE
        worker.reconnect()
        worker.wait_until_welcome()
        assert credentials.token() != first
    finally:
        worker.close()


class SteppedClock(SystemClock):
    step = 0.0

    def wall(self) -> float:
        return super().wall() + self.step
