"""A headless browser for the tests: Chromium, as Qt packages it for PyPI (`PyQt6-WebEngine`, of the extra `dev`).

Run as a program it shows one page several times (`python browser.py JOB.json`) and writes down what it saw. In a process
of its own: Qt wants the main thread, and leaves processes behind when it is not ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

DEADLINE = 300.0
"""Seconds for all views of a page; only a failing test waits this long."""

FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-quic --disable-sync "
    "--hide-scrollbars"
)

HINT = (
    "no browser: pip install PyQt6-WebEngine, of the extra 'dev' (it needs the system's libnss3, libxkbcommon, libEGL and "
    "libGL: with apt, libnss3 libxkbcommon0 libegl1 libgl1 libxcomposite1 libxdamage1 libxrandr2 libasound2)"
)


@dataclass(frozen=True, kw_only=True)
class View:
    """One look at the page."""

    name: str
    page: str = ""
    """Another page's address."""
    width: int = 1200
    height: int = 1000
    fragment: str = ""
    dark: bool | None = None
    """Whether the picture becomes a dark or a light one, which is waited for."""
    script: str = "null"
    """Its value, as JSON, is the view's `value`, once it and the picture are the same in two looks in a row."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one look saw."""

    value: Any
    errors: list[str]
    """Of the page's console, and what it could not load."""
    requests: list[str]
    """Addresses that the page asked for, itself excepted."""
    picture: Path
    """A PNG of the window."""
    colors: int
    """Different ones among the picture's points, every seventh in both directions."""
    brightness: float
    """The mean of those points: 0 is black, 1 is white."""


def look(page: Path, views: Sequence[View], folder: Path, *, dark: bool = False) -> dict[str, Seen]:
    """Show the page in each view, on a system with light or dark colours. Skips the test where there is no browser."""
    flags = f"{FLAGS} --blink-settings=preferredColorScheme={int(not dark)}"
    job = folder / "job.json"
    job.write_text(
        json.dumps({"page": page.as_uri(), "folder": str(folder), "views": [asdict(view) for view in views]})
    )
    result = subprocess.run(
        [sys.executable, __file__, str(job)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": flags, "HOME": str(folder)},
    )
    if result.returncode == NO_BROWSER:
        pytest.skip(f"{HINT}: {result.stderr.strip()}")
    assert result.returncode == 0, result.stdout + result.stderr
    seen = json.loads((folder / "seen.json").read_text())
    return {
        name: Seen(**{**found, "value": json.loads(found["value"]), "picture": folder / f"{name}.png"})
        for name, found in seen.items()
    }


NO_BROWSER = 77
LOOK = 100
"""Milliseconds between two looks: charts draw themselves in animation frames, and pictures come later than pages."""
PATIENCE = 300
"""Looks; what does not come to rest in so many is taken as it is."""
FRAMES = 12
"""Animation frames that a page has had before it is looked at: charts draw themselves in them, however long each takes."""
COUNT = """
window.seenFrames = 0;
if (!window.countsFrames) {
  window.countsFrames = () => { window.seenFrames += 1; requestAnimationFrame(window.countsFrames); };
  requestAnimationFrame(window.countsFrames);
}
"""


def main(job: dict[str, Any]) -> None:
    """Show the views one after the other, in one browser."""
    try:
        from PyQt6.QtCore import QTimer, QUrl
        from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWidgets import QApplication
    except ImportError as error:
        print(error, file=sys.stderr)
        raise SystemExit(NO_BROWSER) from None

    pages = {view["page"] or job["page"] for view in job["views"]}
    errors: list[str] = []
    requests: list[str] = []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source) -> None:
            if level is QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel:
                errors.append(f"{source}:{line}: {message}")

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info) -> None:
            address = info.requestUrl().toString()
            if not address.startswith(("data:", "blob:")) and address.partition("?")[0] not in pages:
                requests.append(address)

    application = QApplication(["browser"])
    profile = QWebEngineProfile()  # off the record: nothing is stored
    interceptor = Requests()
    profile.setUrlRequestInterceptor(interceptor)
    window = QWebEngineView()
    page = Page(profile, window)
    window.setPage(page)
    window.show()
    left, seen = list(job["views"]), {}

    def next_view() -> None:
        if not left:
            Path(job["folder"], "seen.json").write_text(json.dumps(seen))
            application.quit()
            return
        view = left[0]
        errors.clear()
        requests.clear()
        window.resize(view["width"], view["height"])
        # A page that is shown already only scrolls to another fragment.
        page.setUrl(QUrl(f"{view['page'] or job['page']}?{view['name']}{view['fragment']}"))

    def loaded(good: bool) -> None:
        if not good:
            errors.append("the page did not load")
        page.runJavaScript(COUNT)
        look_on(None, PATIENCE)

    def look_on(before: Any, looks: int) -> None:
        drawn = f"window.seenFrames >= {FRAMES} && innerWidth === {left[0]['width']}"
        script = f"{drawn} ? JSON.stringify({left[0]['script']}) : ''"
        QTimer.singleShot(LOOK, lambda: page.runJavaScript(script, lambda value: note(value, before, looks)))

    def note(value: str, before: Any, looks: int) -> None:
        view = left[0]
        picture = window.grab().toImage()
        points = [picture.pixelColor(x, y) for x in range(0, picture.width(), 7) for y in range(0, picture.height(), 7)]
        brightness = sum(point.lightnessF() for point in points) / len(points)
        now = value, points
        as_wanted = view["dark"] is None or view["dark"] == (brightness < 0.5)
        if looks and not (value and now == before and as_wanted):
            look_on(now, looks - 1)
            return
        left.pop(0)
        picture.save(str(Path(job["folder"], f"{view['name']}.png")))
        seen[view["name"]] = {
            "value": value or "null",
            "errors": list(errors),
            "requests": list(requests),
            "colors": len({point.rgb() for point in points}),
            "brightness": brightness,
        }
        next_view()

    page.loadFinished.connect(loaded)
    QTimer.singleShot(0, next_view)
    application.exec()
    window.close()
    page.deleteLater()
    application.processEvents()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
