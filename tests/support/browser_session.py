"""A headless browser that a test talks to: the same Chromium as `browser.py`, kept open, told one thing after the other.

Run as a program it reads commands from its standard input, one JSON object a line, and answers each with one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.clock import poll_until
from support.browser import FLAGS, HINT, NO_BROWSER

DEADLINE = 60.0
AXE = Path(__file__).with_name("axe-4.14.1.min.js")
"""Of npm's axe-core, under the MPL 2.0 (`axe.LICENSE`)."""


class BrowserSession:
    """One window, on a system with light or dark colours. Skips the test where there is no browser.

    Its cookies go with it.
    """

    def __init__(self, folder: Path, *, dark: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self._log = (folder / "browser.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "QT_QPA_PLATFORM": "offscreen",
                "QTWEBENGINE_CHROMIUM_FLAGS": f"{FLAGS} --blink-settings=preferredColorScheme={int(not dark)}",
                "HOME": str(folder),
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
        )
        try:
            self._answer()
        except EOFError:
            code = self._process.wait(DEADLINE)
            self.close()
            why = (folder / "browser.log").read_text(errors="replace").strip()
            if code == NO_BROWSER:
                pytest.skip(f"{HINT}: {why}")
            raise AssertionError(f"the browser ended with {code}: {why}") from None

    def open(self, url: str) -> None:
        """Go to an address, until it is loaded."""
        self._tell(do="open", url=url)

    def js(self, script: str) -> Any:
        """The value of an expression."""
        return self._tell(do="js", script=script)

    def until(self, script: str, timeout: float = DEADLINE) -> Any:
        """The value of an expression as soon as it is true."""
        told = self._tell(do="until", script=script, timeout=timeout)
        assert told, (
            f"not within {timeout} s: {script}\nat {self.js('location.href')}:\n{self.js('document.body.innerText')}"
        )
        return told

    def axe(self) -> list[str]:
        """What axe-core finds that is serious or worse: rule, element, and why."""
        self._tell(do="run", path=str(AXE))
        self.js("(axe.run(document, {resultTypes: ['violations']}).then((told) => { window.axeTold = told; }), 0)")
        self.until("!!window.axeTold")
        return self.js(
            "axeTold.violations.filter((one) => ['serious', 'critical'].includes(one.impact)).flatMap((one) => "
            "one.nodes.map((node) => `${one.id}: ${node.html}: ${node.failureSummary}`))"
        )

    def keys(self, *keys: str) -> None:
        """Press keys: characters, or names such as `Enter` and `Tab`."""
        for key in keys:
            self._tell(do="key", key=key)

    def resize(self, width: int, height: int = 900) -> None:
        assert self._tell(do="resize", width=width, height=height), f"the window does not get {width} wide"

    def picture(self, path: Path, looks: Callable[[dict[str, float]], bool]) -> None:
        """Write a PNG of the window as soon as it looks so: by its `colors` and `brightness` as in `browser.Seen`."""
        told: dict[str, float] = {}

        def painted() -> bool:
            told.update(self._tell(do="picture", path=str(path)))
            return looks(told)

        poll_until(painted, DEADLINE, lambda: f"{path.name} to look otherwise than {told}")

    def answer_questions(self, yes: bool) -> None:
        """What `confirm` returns from now on."""
        self._tell(do="confirm", yes=yes)

    def seen(self) -> dict[str, list[str]]:
        """Since the last call: `errors` of the console, `requests` of addresses, and `questions` that were asked."""
        return self._tell(do="seen")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _tell(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError("the browser has ended")
        return json.loads(line)["value"]


LOOK = 25
"""Milliseconds between two looks whether something is true."""
LOST = 2000
"""Milliseconds after which it is looked again: a page that makes way for another one may answer nothing."""


def main() -> None:
    """Be the browser until the standard input ends."""
    try:
        from PyQt6.QtCore import QSocketNotifier, Qt, QTimer, QUrl
        from PyQt6.QtTest import QTest
        from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWidgets import QApplication
    except ImportError as error:
        print(error, file=sys.stderr)
        raise SystemExit(NO_BROWSER) from None

    seen: dict[str, list[str]] = {"errors": [], "requests": [], "questions": []}
    state = {"yes": True}

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source) -> None:
            if level is QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel:
                seen["errors"].append(f"{source}:{line}: {message}")

        def javaScriptConfirm(self, origin, message) -> bool:
            seen["questions"].append(message)
            return state["yes"]

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info) -> None:
            seen["requests"].append(info.requestUrl().toString())

    application = QApplication(["browser"])
    profile = QWebEngineProfile()  # off the record: nothing is stored
    interceptor = Requests()
    profile.setUrlRequestInterceptor(interceptor)
    window = QWebEngineView()
    page = Page(profile, window)
    window.setPage(page)
    window.resize(1280, 900)
    window.show()
    names = {"Enter": Qt.Key.Key_Return, "Tab": Qt.Key.Key_Tab, "Escape": Qt.Key.Key_Escape}

    def answer(value: Any = None) -> None:
        sys.stdout.write(json.dumps({"value": value}) + "\n")
        sys.stdout.flush()

    def answer_json(text: str | None) -> None:
        answer(json.loads(text) if text else None)

    def look_until(script: str, left: float, then: Callable[[Any], None] = answer) -> None:
        looking = {"now": True}

        def end_look() -> bool:
            """Whether this look is the one that counts."""
            counts, looking["now"] = looking["now"], False
            return counts

        def told(text: str | None) -> None:
            value = json.loads(text) if text else None
            if end_look():
                if value or left <= 0:
                    then(value)
                else:
                    QTimer.singleShot(LOOK, lambda: look_until(script, left - LOOK / 1000, then))

        def look_again() -> None:
            if end_look():
                look_until(script, left - LOST / 1000, then)

        QTimer.singleShot(LOST, look_again)
        # An element is true, and no JSON.
        page.runJavaScript(f"((it) => JSON.stringify(it instanceof Node ? true : it))({script})", told)

    def open_page(url: str) -> None:
        """Until it is loaded: what was loading before does not count, and no script meets the page before it."""

        def go(_: Any) -> None:
            page.setUrl(QUrl(url))
            look_until("!window.beforeOpen && document.readyState === 'complete'", DEADLINE)

        page.triggerAction(QWebEnginePage.WebAction.Stop)
        look_until("(window.beforeOpen = true)", DEADLINE, go)

    def obey(command: dict[str, Any]) -> None:
        match command["do"]:
            case "open":
                open_page(command["url"])
            case "js":
                page.runJavaScript(f"JSON.stringify({command['script']})", answer_json)
            case "run":
                page.runJavaScript(Path(command["path"]).read_text(), lambda _: answer())
            case "until":
                look_until(command["script"], command["timeout"])
            case "key":
                target = window.focusProxy() or window
                key = command["key"]
                if key in names:
                    QTest.keyClick(target, names[key])
                else:
                    QTest.keyClicks(target, key)
                answer()
            case "resize":
                window.resize(command["width"], command["height"])
                look_until(f"innerWidth === {command['width']}", DEADLINE)
            case "picture":
                picture = window.grab().toImage()
                picture.save(command["path"])
                points = [
                    picture.pixelColor(x, y)
                    for x in range(0, picture.width(), 7)
                    for y in range(0, picture.height(), 7)
                ]
                answer(
                    {
                        "colors": len({point.rgb() for point in points}),
                        "brightness": sum(point.lightnessF() for point in points) / len(points),
                    }
                )
            case "confirm":
                state["yes"] = command["yes"]
                answer()
            case "seen":
                answer({name: list(told) for name, told in seen.items()})
                for told in seen.values():
                    told.clear()

    def readable() -> None:
        line = sys.stdin.readline()
        if line:
            obey(json.loads(line))
        else:
            application.quit()

    notifier = QSocketNotifier(0, QSocketNotifier.Type.Read)
    notifier.activated.connect(readable)
    QTimer.singleShot(0, answer)
    application.exec()
    window.close()
    page.deleteLater()
    application.processEvents()


if __name__ == "__main__":
    main()
