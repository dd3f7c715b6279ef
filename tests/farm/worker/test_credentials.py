"""A worker that has joined keeps its tokens, and gets the next ones in time."""

from __future__ import annotations

import json
import stat

import pytest

from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.security.tokens import role_told
from dtf_lightning.farm.worker.service import credentials as credentials_module
from dtf_lightning.farm.worker.service.credentials import Credentials, worker_token
from dtf_lightning.farm.worker.service.link import Refused

JOINING = "join"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class PlayedFarm:
    """In the place of a connection: gives numbered tokens, and what is in `next` once in place of that."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.next: list[Exception] = []
        self.token = ""

    def __call__(self, urls: tuple[str, ...], token: str, **_: object) -> PlayedFarm:
        self.token = token
        return self

    def ask(self, method: str, path: str, body: dict) -> dict:
        self.asked.append((path, self.token, body["nonce"]))
        if self.next:
            raise self.next.pop(0)
        number = len(self.asked)
        return {"token": f"t{number}", "refresh": f"r{number}", "seconds": 3600.0}

    def close(self) -> None:
        pass

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(path, token) for path, token, _ in self.asked]


@pytest.fixture
def farm(monkeypatch):
    farm = PlayedFarm()
    monkeypatch.setattr(credentials_module, "Connection", farm)
    return farm


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(farm, clock, tmp_path):
    """A worker's process begins."""
    return lambda name="w", joining=JOINING: Credentials(joining, name, tmp_path / "credentials.json", (), clock=clock)


def no(status: int, text: str = "no") -> FarmRefused:
    return FarmRefused(status, text, {})


def test_joined_once_and_renewed_at_half_time(farm, clock, start):
    credentials = start()
    assert [credentials.token(), credentials.token()] == ["t1", "t1"]
    clock.now += 1799
    assert start().token() == "t1"  # another process of the same worker goes on with it
    clock.now += 1
    assert start().token() == "t2"
    assert farm.told == [("/api/join", JOINING), ("/api/refresh", "r1")]


def test_the_file_is_its_owners_alone(start, tmp_path):
    start().token()
    file = tmp_path / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["refresh"] == "r1"


def test_an_answer_that_was_lost_is_asked_for_again(farm, clock, start):
    """By the next process, too: with the same number."""
    farm.next = [FarmUnreachable("away")]
    with pytest.raises(FarmUnreachable):
        start().token()
    assert start().token() == "t2"
    clock.now += 1800
    farm.next = [FarmUnreachable("away")]
    assert start().token() == "t2"  # which is still good
    assert start().token() == "t4"
    (first, again), (third, fourth) = ([nonce for *_, nonce in farm.asked[at : at + 2]] for at in (0, 2))
    assert (first == again, third == fourth, first == third) == (True, True, False)


def test_nobody_answers_and_no_token_is_good(farm, clock, start):
    start().token()
    clock.now += 3600
    farm.next = [no(503)]
    with pytest.raises(FarmRefused):
        start().token()
    assert start().token() == "t3"


def test_away_for_too_long(farm, clock, start):
    """It joins anew if its token to join with has a use left; else it hears which command makes one."""
    start().token()
    clock.now += 40 * 86400
    farm.next = [no(401, "time is over")]
    assert start().token() == "t3"
    assert farm.told[1:] == [("/api/refresh", "r1"), ("/api/join", JOINING)]
    clock.now += 40 * 86400
    farm.next = [no(401, "time is over"), no(401, "used up: `dtf farm token create --role worker --uses 1`")]
    with pytest.raises(Refused, match=r"take the worker 'w': time is over; and used up: `dtf farm token create"):
        start().token()


def test_another_token_to_join_with(farm, start):
    """Somebody gives a new one because the old tokens were revoked, or for no reason: those that are good stay."""
    start().token()
    assert [start(joining="new").token(), start(joining="new").token()] == ["t2", "t2"]
    farm.next = [no(401, "revoked")]
    assert start(joining="newer").token() == "t4"
    assert farm.told[1:] == [("/api/refresh", "r1"), ("/api/refresh", "r2"), ("/api/join", "newer")]


def test_a_clock_that_went_back(farm, clock, start):
    start().token()
    clock.now -= 100
    assert start().token() == "t2"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"worker": "w", "new": 1}', '{"worker": "other", "token": "t"}'])
def test_what_cannot_be_read_or_is_anothers(farm, start, tmp_path, text):
    (tmp_path / "credentials.json").write_text(text)
    assert start().token() == "t1"
    assert farm.told == [("/api/join", JOINING)]


def test_which_token_a_worker_goes_by(farm, tmp_path):
    """A farm's own, and one that is the worker's already, as it is; one to join with for the worker's own."""
    for given in ("secret", "a.eyJyb2xlIjoid29ya2VyIn0.c"):
        assert worker_token(given, "w", tmp_path / "none", ()) == given
    own = worker_token("a.eyJyb2xlIjoiam9pbiJ9.c", "w", tmp_path / "w", ())
    assert [own(), own()] == ["t1", "t1"]
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "a.W10.c", "a.bnVsbA.c", "a.eyJyb2xlIjoxfQ.c", "é.é.é"])
def test_no_role(text):
    assert role_told(text) == ""
