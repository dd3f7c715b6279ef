"""What a browser signs in with."""

from __future__ import annotations

import stat
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.sign_in import LINK_SECONDS, SESSION_SECONDS, SignIn, UsedLinks

NOW = 1_800_000_000.0


def code_of(link: str) -> str:
    return parse_qs(urlsplit(link).query)["code"][0]


def test_a_link_is_good_for_ten_minutes():
    farm = SignIn("token")
    link = farm.link("http://127.0.0.1:8080", NOW)
    assert link.startswith("http://127.0.0.1:8080/sign-in?code=")
    assert farm.link_name(code_of(link), NOW + LINK_SECONDS - 1) is not None
    assert farm.link_name(code_of(link), NOW + LINK_SECONDS) is None
    assert code_of(link) != code_of(farm.link("http://127.0.0.1:8080", NOW))


def test_a_session_is_good_for_a_week_at_every_coordinator():
    value = SignIn("token").session(NOW)
    assert SignIn("token").is_session(value, NOW + SESSION_SECONDS - 1)
    assert not SignIn("token").is_session(value, NOW + SESSION_SECONDS)


def test_none_stands_for_another():
    """Neither a link for a cookie, nor one farm's for another's, nor any of them for the token."""
    farm, other = SignIn("token"), SignIn("another token")
    code, session = code_of(farm.link("", NOW)), farm.session(NOW)
    assert not farm.is_session(code, NOW)
    assert farm.link_name(session, NOW) is None
    assert not other.is_session(session, NOW)
    assert farm.cookie != other.cookie
    assert "token" not in code + session


@given(st.text(max_size=120) | st.from_regex(r"\d{1,20}\.[A-Za-z0-9_-]{16,70}\.[A-Za-z0-9_-]{43}", fullmatch=True))
def test_nothing_else_is_good(text):
    farm = SignIn("token")
    assert not farm.is_session(text, NOW)
    assert farm.link_name(text, NOW) is None


@pytest.mark.parametrize("place", [0, 5, 15, -1, -20])
def test_not_one_character_may_differ(place):
    """The time until when it is good is signed, too."""
    value = SignIn("token").session(NOW)
    changed = list(value)
    changed[place] = "1" if changed[place] != "1" else "2"
    if place == -1:  # the last one's lower bits are not used by base64
        changed[place] = "_" if value[place] < "_" else "0"
    assert not SignIn("token").is_session("".join(changed), NOW)


class TestUsedOnce:
    def test_by_one_of_many_coordinators(self, tmp_path):
        name = SignIn("token").link_name(code_of(SignIn("token").link("", NOW)), NOW)
        told: list[bool] = []
        threads = [
            threading.Thread(target=lambda: told.append(UsedLinks(tmp_path / "used").use(name, NOW))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [False] * 7 + [True]
        assert stat.S_IMODE((tmp_path / "used").stat().st_mode) == 0o700

    def test_what_is_not_good_any_more_is_forgotten(self, tmp_path):
        used = UsedLinks(tmp_path)
        assert used.use(f"{int(NOW)}.first", NOW - 1)
        assert used.use(f"{int(NOW) + 600}.second", NOW + 1)
        assert [path.name for path in tmp_path.iterdir()] == [f"{int(NOW) + 600}.second"]
