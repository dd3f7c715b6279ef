"""Who may see the page, and who may do something on it."""

from __future__ import annotations

import json
import time
from urllib.parse import quote, urlencode

import pytest

from dtf_lightning.farm.page.app import security_policy
from dtf_lightning.farm.page.signing_in import way_back
from dtf_lightning.farm.sign_in import SignIn
from support.farm.browsing import Browsing

pytestmark = pytest.mark.process


@pytest.fixture
def stranger(coordinator):
    return Browsing(coordinator.url)


@pytest.fixture
def browser(coordinator, token):
    """One that has signed in."""
    farm = SignIn(token)
    return Browsing(coordinator.url, cookie=f"{farm.cookie}={farm.session(time.time())}")


class TestWithoutSigningIn:
    @pytest.mark.parametrize("path", ["/", "/tasks?status=failed&search=%26", "/fleet", "/cluster", "/nothing"])
    def test_a_browser_is_asked_to_sign_in(self, stranger, path):
        answer = stranger.get(path)
        assert (answer.status, answer.headers["location"]) == (303, f"/sign-in?next={quote(path, safe='/')}")

    @pytest.mark.parametrize("path", ["/", "/tasks?format=json"])
    def test_a_program_is_refused(self, stranger, path):
        answer = stranger.ask("GET", path, Accept="application/json")
        assert (answer.status, "token is needed" in answer.text) == (401, True)

    def test_only_what_is_the_same_for_every_farm(self, stranger):
        assert stranger.get("/sign-in").status == 200
        for file in ("page.css", "live.js", "htmx-2.0.11.min.js", "idiomorph-0.8.0.min.js", "htmx.LICENSE"):
            assert stranger.get(f"/static/{file}").status == 200
        assert stranger.get("/static/../app.py").status in (303, 404)
        assert stranger.get("/static/%2e%2e/app.py").status == 404

    def test_no_action(self, stranger):
        assert stranger.act("drain", "w").status == 401


class TestSigningIn:
    def sign_in(self, stranger, token, back="/", **headers):
        body = urlencode({"token": token, "next": back}).encode()
        told = {"Origin": stranger.url, "Content_Type": "application/x-www-form-urlencoded", **headers}
        return stranger.ask("POST", "/sign-in", body, **told)

    def test_by_the_token(self, stranger, token):
        answer = self.sign_in(stranger, f" {token}\n", "/tasks?status=failed")
        assert answer.status == 200
        cookie = answer.headers["set-cookie"]
        assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
        assert 'content="0;url=/tasks?status=failed"' in answer.text
        stranger.cookie = cookie.partition(";")[0]
        assert stranger.get("/").status == 200
        assert token not in cookie

    @pytest.mark.parametrize("wrong", ["", "x", "é"])
    def test_another_token(self, stranger, wrong):
        answer = self.sign_in(stranger, wrong)
        assert (answer.status, "not the farm&#39;s token" in answer.text) == (403, True)
        assert "set-cookie" not in answer.headers

    def test_from_another_site(self, stranger, token):
        """A form elsewhere must not sign a browser in, on another port of this machine neither."""
        for origin in ("http://127.0.0.1:1", "null", "https://example.org"):
            assert self.sign_in(stranger, token, Origin=origin).status == 403

    def test_by_a_link_once(self, stranger, token):
        link = SignIn(token).link(stranger.url, time.time()).removeprefix(stranger.url)
        first, second = stranger.get(link), stranger.get(link)
        assert (first.status, "set-cookie" in first.headers) == (200, True)
        assert (second.status, "set-cookie" in second.headers) == (403, False)
        assert "was used before" in second.text

    def test_by_a_link_that_is_too_old(self, stranger, token):
        link = SignIn(token).link(stranger.url, time.time() - 601).removeprefix(stranger.url)
        assert stranger.get(link).status == 403

    def test_signing_out(self, browser):
        answer = browser.ask("POST", "/sign-out", b"", Origin=browser.url, X_DTF_Farm="page", HX_Request="true")
        assert (answer.status, answer.headers["hx-redirect"]) == (200, "/sign-in")
        assert "max-age=0" in answer.headers["set-cookie"].lower()

    @pytest.mark.parametrize(
        ("told", "path"),
        [
            ("/tasks?a=b", "/tasks?a=b"),
            ("", "/"),
            ("//example.org", "/"),
            ("/\\example.org", "/"),
            ("https://example.org", "/"),
            ("/sign-out", "/"),
            ("/a\nb", "/"),
            ("javascript:alert(1)", "/"),
        ],
    )
    def test_where_it_goes_on_to(self, told, path):
        assert way_back(told) == path


class TestWithTheCookie:
    def test_the_page_and_never_the_api(self, browser):
        assert browser.get("/tasks").status == 200
        for path in ("/api/tasks", "/api/status", "/openapi.json"):
            assert browser.get(path).status == 401
        assert browser.ask("POST", "/api/tasks/x/cancel", b"", Origin=browser.url, X_DTF_Farm="page").status == 401

    @pytest.mark.parametrize("host", ["example.org", "example.org:8080", "127.0.0.1.example.org"])
    def test_under_another_name(self, browser, host):
        """DNS rebinding: another site's name that means this machine."""
        assert browser.ask("GET", "/", Host=host).status == 403

    def test_a_cookie_that_is_wrong(self, browser):
        browser.cookie = browser.cookie[:-4] + "AAAA"
        assert browser.get("/").status == 303
        browser.cookie = "\x01;;="
        assert browser.get("/").status == 303

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"X_DTF_Farm": "page"},
            {"Origin": "http://127.0.0.1:1", "X_DTF_Farm": "page"},
            {"Origin": "https://example.org", "X_DTF_Farm": "page"},
            {"Origin": "null", "X_DTF_Farm": "page"},
        ],
    )
    def test_no_action_of_another_site(self, browser, headers):
        assert browser.ask("POST", "/do/drain?name=w", b"", **headers).status == 403

    def test_no_action_of_a_form(self, browser):
        answer = browser.ask("POST", "/do/drain?name=w", b"", Origin=browser.url)
        assert (answer.status, "X-DTF-Farm" in answer.text) == (403, True)

    def test_actions_are_in_the_audit_file(self, browser, coordinator):
        assert browser.act("cordon", "nobody").status == 404
        lines = [json.loads(line) for line in coordinator.audit.read_text().splitlines()]
        assert {name: lines[-1][name] for name in ("method", "path", "status")} == {
            "method": "POST",
            "path": "/do/cordon",
            "status": 404,
        }


class TestWhatABrowserMayLoad:
    def test_every_answer_says_it(self, browser, stranger):
        for answer in (
            browser.get("/"),
            browser.get("/nothing"),
            stranger.get("/sign-in"),
            browser.get("/static/live.js"),
        ):
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"

    def test_others_of_the_farm_under_the_name_that_the_browser_used(self):
        others = ["http://127.0.0.1:8081", "http://127.0.0.1:8082"]
        assert "connect-src 'self' http://localhost:8081 http://localhost:8082;" in security_policy(
            "localhost:8081", others
        )
        assert "connect-src 'self' http://[::1]:8081 http://[::1]:8082;" in security_policy("[::1]:80", others)
        assert "connect-src 'self';" in security_policy("localhost:8081", [])

    def test_others_of_the_farm_on_other_machines(self):
        """Where they are; what means this machine under the name that the browser used."""
        others = ["https://b.lab:8080", "https://127.0.0.1:8081"]
        assert "connect-src 'self' https://a.lab:8081 https://b.lab:8080;" in security_policy("a.lab:8080", others)
