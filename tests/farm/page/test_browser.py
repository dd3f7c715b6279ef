"""The page in a real browser, on one farm of two coordinators: one browser with light and one with dark colours."""

from __future__ import annotations

import contextlib
import time
from urllib.parse import urlsplit

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.sign_in import SignIn
from dtf_lightning.farm.tokens import read_token
from support.browser_session import BrowserSession
from support.farm.server import CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process

LIVE = "document.readyState === 'complete' && document.querySelector('#connection')?.textContent === 'live'"
"""With its scripts: the one for keys comes last."""
LINES = b"".join(b"\x1b[3%dmline %d\x1b[0m <b>&\n" % (number % 8, number) for number in range(20_000))


class Farm:
    """Two coordinators, a worker, a plan that runs, a task that failed, one that waits for what nobody has."""

    def __init__(self, folder) -> None:
        self.store = MemoryStore()
        self.coordinators = [CoordinatorInThread(self.store, folder, name=f"c{number}") for number in (0, 1)]
        for coordinator in self.coordinators:
            coordinator.loop.start_threads()
        self.urls = tuple(coordinator.url for coordinator in self.coordinators)
        self.token = read_token(self.coordinators[0].token_file)
        self.worker = PlayedWorker(self.urls[::-1], self.token, cpu=8.0, gpu=2.0)
        self.worker.wait_until_welcome()
        self.client = self.coordinators[1].client()
        self.plan = new_task_id(time.time())
        self.running = self.begin("numbers", plan=self.plan)
        self.worker.write(self.running, 0, LINES)
        squares = [
            self.client.submit(["x"], name=f"squares[{number}]", plan=self.plan, after=[self.running.task])
            for number in range(3)
        ]
        self.client.submit(["x"], name="sum", plan=self.plan, after=squares)
        self.worker.end(self.begin("broken <b>"), OutcomeKind.FAILED, reason="exit code 1")
        for number in range(12):
            self.worker.end(self.begin("bench"), metrics={"latency": 5.0 + number % 3 / 10 + number // 9})
        self.waiting = self.client.submit(["x"], name="too much", needs={"gpu": 8})

    def begin(self, name: str, **fields):
        self.client.submit(["python", name], name=name, **fields)
        order = self.worker.next()
        self.worker.start(order)
        return order

    def screens(self) -> dict[str, str]:
        return {
            "now": "/",
            "tasks": "/tasks?sort=-status",
            "task": f"/tasks/{self.running.task}",
            "plan": f"/plans/{self.plan}",
            "fleet": "/fleet",
            "cluster": "/cluster",
            "grid": "/grid",
            "test": "/test?name=bench&metric=latency:ms",
            "failed": "/test?name=broken+%3Cb%3E",
            "compare": "/compare",
            "trainings": "/trainings",
        }

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        for coordinator in self.coordinators:
            coordinator.stop()
        self.store.close()


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    farm = Farm(tmp_path_factory.mktemp("farm"))
    yield farm
    farm.close()


@contextlib.contextmanager
def signed_in(farm, tmp_path):
    """At the first coordinator. Without a console error or a request to another host in the end."""
    browser = BrowserSession(tmp_path / "browser")
    try:
        browser.open(SignIn(farm.token).link(farm.urls[0], time.time()))
        browser.until(LIVE)
        yield browser
        last = browser.seen()
        assert last["errors"] == []
        assert {urlsplit(address).hostname for address in last["requests"]} == {"127.0.0.1"}
    finally:
        browser.close()


@pytest.fixture
def browser(farm, tmp_path):
    with signed_in(farm, tmp_path) as browser:
        yield browser


def go(browser, farm, path):
    browser.open(farm.urls[0] + path)
    browser.until(LIVE)


def test_every_screen_wide_and_on_a_phone(browser, farm, tmp_path):
    """With its data, nothing wider than the window, nothing serious for axe-core, and no blank picture.

    The link has led to the first screen; without the cookie, which no script can read, there is only the form.
    """
    assert browser.js("[location.pathname, document.cookie]") == ["/", ""]
    told = {
        "now": [
            "1 task runs, 1 waits for a worker, 4 for other tasks",
            "1 of the latest 13 results failed",
            "broken <b>",
        ],
        "tasks": ["too much", "waits for 8 x gpu", "numbers"],
        "task": ["python numbers", "line 19999 <b>&"],
        "plan": ["0 of 5 tasks have ended", "squares[2]"],
        "fleet": ["1 of 8", "Cordon", "Drain"],
        "cluster": ["c0 leads the farm f", farm.urls[1]],
        "grid": ["broken <b>", "gpu", "No verdicts yet"],
        "test": ["12 runs: 0 failed", "is noise", "PNG"],
        "failed": ["Failures by their texts", "exit code 1"],
        "compare": ["No verdicts yet"],
        "trainings": ["There is no training"],
    }
    for screen, path in farm.screens().items():
        go(browser, farm, path)
        for text in told[screen]:
            browser.until(f"document.body.innerText.includes({text!r})")
        for width in (1280, 390):
            browser.resize(width)
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (screen, width)
            browser.picture(
                tmp_path / f"{screen}-{width}.png", lambda told: told["colors"] > 20 and told["brightness"] > 0.8
            )
        browser.resize(1280)
        assert browser.axe() == [], screen
    browser.js("(document.querySelector('#sign-out').click(), 0)")
    browser.until("location.pathname === '/sign-in' && !!document.querySelector('#token')")
    assert browser.axe() == []


def test_dark(farm, tmp_path):
    browser = BrowserSession(tmp_path / "dark", dark=True)
    try:
        browser.open(SignIn(farm.token).link(farm.urls[0], time.time()))
        for screen in ("plan", "test"):
            go(browser, farm, farm.screens()[screen])
            browser.picture(
                tmp_path / f"{screen}-dark.png", lambda told: told["colors"] > 20 and told["brightness"] < 0.3
            )
            assert browser.axe() == [], screen
        assert browser.seen()["errors"] == []
    finally:
        browser.close()


def test_what_a_person_does(tmp_path):
    """One browser from the first look to the end of the coordinator that serves it: on a farm of its own."""
    farm = Farm(tmp_path)
    try:
        with signed_in(farm, tmp_path) as browser:
            for step in (what_changes, output, by_keyboard, a_drawing, it_asks, cordon, the_coordinator_goes):
                step(browser, farm)
    finally:
        farm.close()


def what_changes(browser, farm):
    """Without loading anew: what has the focus keeps it, and what is in a list is the same element as before."""
    go(browser, farm, "/")
    browser.js("(window.here = true, document.querySelector('#tile-failed').focus(), 0)")
    order = farm.begin("newcomer")
    browser.until("document.querySelector('#live').innerText.includes('newcomer')")
    browser.until("window.here && document.activeElement.id === 'tile-failed'")
    farm.worker.end(order)
    browser.until("!document.querySelector('#live').innerText.includes('newcomer')")


def output(browser, farm):
    """Its end first, with colours; its beginning, a search that marks, and what comes while one looks."""
    go(browser, farm, f"/tasks/{farm.running.task}")
    browser.until("document.querySelector('#output').textContent.endsWith('line 19999 <b>&\\n')")
    assert browser.js("document.querySelectorAll('#output .fg7').length") > 10
    assert browser.js("document.querySelector('#output').textContent.length") < 70_000
    browser.js("(document.querySelector('#output-begin').click(), 0)")
    browser.until("document.querySelector('#output').textContent.startsWith('line 0 <b>&\\n')")
    browser.keys("/", *"LINE 12345", "Enter")
    assert browser.until("document.querySelector('#output mark')?.textContent") == "line 12345"
    browser.js("(document.querySelector('#output-end').click(), 0)")
    browser.until("document.querySelector('#output').textContent.endsWith('line 19999 <b>&\\n')")
    farm.worker.write(farm.running, len(LINES), b"and more\n")
    browser.until("document.querySelector('#output').textContent.endsWith('and more\\n')")


def by_keyboard(browser, farm):
    """From screen to screen, through rows to the next failed task, into it, and to the list of keys."""
    go(browser, farm, "/")
    browser.keys("g", "t")
    browser.until(f"location.pathname === '/tasks' && {LIVE}")
    browser.keys("j", "j")
    browser.until("document.activeElement.classList.contains('open')")
    browser.keys("n")
    browser.until("document.activeElement.textContent === 'broken <b>'")
    browser.keys("Enter")
    browser.until(f"document.querySelector('h1')?.textContent === 'broken <b>' && {LIVE}")
    browser.keys("?")
    browser.until("document.querySelector('#help').open")
    browser.keys("Escape")
    browser.until("!document.querySelector('#help').open")
    browser.keys("g", "t")
    browser.until(f"location.pathname === '/tasks' && {LIVE}")
    browser.keys("/", *"too much", "Enter")
    browser.until(
        "location.search.includes('search=too+much') && document.querySelectorAll('#live tbody tr').length === 1"
    )


def a_drawing(browser, farm):
    """From the grid by keyboard to a test; its drawing as PNG, which the browser makes; a run is in it at once."""
    go(browser, farm, "/")
    browser.keys("g", "r")
    browser.until(f"location.pathname === '/grid' && {LIVE}")
    browser.keys("/", *"bench", "Enter")
    browser.until(
        f"location.search.includes('search=bench') && document.querySelectorAll('#live tbody tr').length === 1 && {LIVE}"
    )
    browser.keys("j", "Enter")
    browser.until(f"location.pathname === '/test' && document.querySelector('h1').textContent === 'bench' && {LIVE}")
    browser.until("document.querySelectorAll('svg.chart .point').length === 12")
    browser.js("(document.querySelector('#png-series').click(), 0)")
    browser.until("/^series.png: [1-9]/.test(document.querySelector('#said').textContent)")
    farm.worker.end(farm.begin("bench"))
    browser.until("document.querySelectorAll('svg.chart .point').length === 13")


def it_asks(browser, farm):
    """Before what cannot be undone."""
    go(browser, farm, f"/tasks/{farm.waiting}")
    browser.answer_questions(yes=False)
    browser.js("(document.querySelector('#cancel').click(), 0)")
    assert browser.js("document.querySelector('#said').textContent") == ""
    assert farm.client.task(farm.waiting).status == "pending"
    browser.answer_questions(yes=True)
    browser.js("(document.querySelector('#cancel').click(), 0)")
    browser.until("document.querySelector('#said').textContent === 'Cancelled.'")
    browser.until("document.querySelector('.state.cancelled') && !document.querySelector('#cancel')")
    assert (
        browser.seen()["questions"]
        == ["Cancel too much? What it has done so far is lost, and it is not tried again."] * 2
    )


def cordon(browser, farm):
    go(browser, farm, "/fleet")
    browser.js("(document.querySelector('[aria-label=\"Cordon w\"]').click(), 0)")
    browser.until("document.querySelector('[aria-label=\"Uncordon w\"]')")
    browser.js("(document.querySelector('[aria-label=\"Uncordon w\"]').click(), 0)")
    browser.until("document.querySelector('[aria-label=\"Cordon w\"]')")


def the_coordinator_goes(browser, farm):
    """The page goes on with another one, at the same view, signed in, and shows what has happened meanwhile."""
    go(browser, farm, f"/tasks/{farm.running.task}")
    farm.coordinators.pop(0).stop()
    farm.worker.end(farm.running)
    browser.until(f"location.origin === {farm.urls[1]!r} && {LIVE}")
    browser.until("document.querySelector('.state.completed')")
    assert browser.js("location.pathname") == f"/tasks/{farm.running.task}"
