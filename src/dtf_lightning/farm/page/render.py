"""Views as HTML: Jinja2 templates, in which everything is escaped that a template does not write itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from dtf_lightning import __version__
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.page.graph import HEIGHT, WIDTH
from dtf_lightning.farm.page.saving.file import drawing_file, style, without_actions
from dtf_lightning.farm.page.saving.tables import TABLES
from dtf_lightning.farm.page.screens import FILTERS, STATUSES, View, title_of

SYMBOLS = {
    "waiting": "◌",
    "pending": "○",
    "assigned": "◔",
    "running": "▶",
    "completed": "✓",
    "failed": "✗",
    "cancelled": "⊘",
    "skipped": "↷",
    "expired": "⌛",
    "online": "●",
    "busy": "▶",
    "draining": "◑",
    "offline": "✗",
    "error": "!",
    "leader": "★",
    "follower": "●",
    "passed": "✓",
    "timeout": "⌛",
    "lost": "!",
    "healthy": "●",
    "warning": "!",
    "critical": "✗",
}
"""Besides its colour each state has a sign and its word: nobody needs to tell colours apart."""


FOLDERS = {
    **dict.fromkeys(("grid", "test", "compare"), "verdicts/"),
    **dict.fromkeys(("trainings", "training"), "trainings/"),
}
"""Screen -> the folder of its template."""
CHARTS: Mapping[str, Mapping[str, str]] = {
    "plan": {"graph": "graph"},
    "test": {"series": "drawing"},
    "training": {"borrowings": "drawing"},
}
"""Screen -> its drawings, each with what in its data it is made of."""


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dtf_lightning.farm.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "amount": amount,
        "bytes": size,
        "part": _part,
        "title": title_of,
        "short": _short,
        "many": many,
        "percent": percent,
        "amount_of": amount_of,
    }
    environment.globals |= {
        "SYMBOLS": SYMBOLS,
        "VERSION": __version__,
        "NODE": (WIDTH, HEIGHT),
        "STATUSES": STATUSES,
        "FILTERS": FILTERS,
        "TABLES": TABLES,
        "link": link,
    }
    return environment


def link(path: str, query: Mapping[str, str], **changes: str | None) -> str:
    """Return an address with some of its query changed; what is empty is left out."""
    asked = {name: value for name, value in {**query, **changes}.items() if value}
    return f"{quote(path)}?{urlencode(asked)}" if asked else quote(path)


def amount(number: float) -> str:
    """Return a number without digits that say nothing."""
    return f"{number:.2f}".rstrip("0").rstrip(".") if number < 1e6 else f"{number:.3g}"


def size(number: float) -> str:
    """Return bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def percent(fraction: float) -> str:
    """Return a fraction in percent, with digits that say something."""
    return f"{100 * fraction:.1f} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def amount_of(number: float, unit: str) -> str:
    """Return a number with its unit."""
    return f"{number:.4g} {unit}"


def many(one: str, number: int, several: str) -> str:
    """Return a number with what is counted: one, or several."""
    return f"{number} {one if number == 1 else several}"


def _part(text: str) -> str:
    """Of an address what stands between two slashes."""
    return quote(text, safe="")


def _short(task: str) -> str:
    return task if len(task) <= 12 else f"…{task[-8:]}"


class Renderer:
    """Makes whole pages, and the part of them that changes."""

    def __init__(self) -> None:
        self._environment = _environment()

    def live(self, view: View, query: Mapping[str, str]) -> str:
        """Return the part that changes."""
        folder = FOLDERS.get(view.screen, "")
        return self._environment.get_template(f"{folder}{view.screen}.html").render(view.data, query=query)

    def page(self, view: View, query: Mapping[str, str], live: str, *, seen: str, address: str) -> str:
        """Return a whole page. `seen`: the view's id; "" for a page that is not live. `address`: the view's."""
        return self._environment.get_template("frame.html").render(
            view.data,
            screen=view.screen,
            title=view.title,
            query=query,
            live=live,
            seen=seen,
            address=address,
            path=unquote(urlsplit(address).path),
        )

    def file(self, view: View, query: Mapping[str, str], live: str, *, origin: str, path: str, at: str) -> str:
        """Return a view as one file. `live`: the part that changes; `origin`: of the coordinator; `at`: the time, for people."""
        return self._environment.get_template("file.html").render(
            title=view.title,
            query=query,
            live=without_actions(live, origin, quote(path)),
            style=style(),
            address=origin + link(path, query),
            at=at,
        )

    def drawing(self, view: View, query: Mapping[str, str], name: str) -> str:
        """Return one of a view's drawings as a file. Raises `SettingsError` for one that it does not have."""
        there = CHARTS.get(view.screen, {})
        if name not in there or not view.data.get(there[name]):
            raise SettingsError(
                f"chart: this view has no {name[:80]!r}; a screen may have {', '.join(there) or 'none'}"
            )
        return drawing_file(self._environment.get_template(f"charts/{name}.html").render(view.data, query=query))

    def sign_in(self, *, back: str, problem: str = "") -> str:
        """Return the page that asks for the token."""
        return self._environment.get_template("sign_in.html").render(back=back, problem=problem)

    def signed_in(self, back: str) -> str:
        """Return the page that a browser gets its cookie with, which goes on by itself.

        A redirect would not do: after a link of another program or site the cookie is not sent along (SameSite=Strict).
        """
        return self._environment.get_template("signed_in.html").render(back=back)

    def problem(self, status: int, text: str) -> str:
        """Return a page that says what is wrong."""
        view = View(screen="problem", title="That did not work", data={"status": status, "text": text})
        return self.page(view, {}, self.live(view, {}), seen="", address="")


def as_json(view: View) -> str:
    """Return a view's data."""
    return json.dumps({"screen": view.screen, "title": view.title, **view.data})
