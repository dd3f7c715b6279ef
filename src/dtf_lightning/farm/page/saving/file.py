"""A view as one file, and a drawing as one: style inside, no script, nothing from elsewhere.

Rules that this file guards:
- The file asks for nothing when it is opened, which its own Content-Security-Policy holds, too. Links lead to the coordinator.
- What only works on a live page is left out: buttons and forms. Only templates write `<button`: names are escaped.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_STATIC = Path(__file__).parent.parent / "static"
_BUTTON = re.compile(r"<(button|form|dialog)\b.*?</\1>", re.DOTALL)
_LIVE = re.compile(r' (?:hx-[a-z]+|data-addresses)="[^"]*"')
_LINK = re.compile(r'(<a [^>]*?href=")(?=[/?])')
_LIGHT = re.compile(r":root \{.*?\n\}", re.DOTALL)


@cache
def style() -> str:
    """Return the page's style."""
    return "".join((_STATIC / name).read_text("utf-8") for name in ("page.css", "chart.css"))


@cache
def chart_style() -> str:
    """Return the style of drawings alone, in light colours."""
    light = _LIGHT.search((_STATIC / "page.css").read_text("utf-8"))
    assert light is not None
    return light[0] + "\n" + (_STATIC / "chart.css").read_text("utf-8")


def without_actions(html: str, origin: str, path: str) -> str:
    """Return a view's HTML as it stands in a file.

    Args:
        origin: of the coordinator, where links lead.
        path: of the view, for links that are a query only.
    """
    html = _LIVE.sub("", _BUTTON.sub("", html))
    return _LINK.sub(lambda found: found[1] + origin + (path if html[found.end()] == "?" else ""), html)


def drawing_file(svg: str) -> str:
    """Return a drawing as a file of its own. `svg`: as it stands in a page."""
    head, end, rest = svg.strip().partition(">")
    if " xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}{end}<style>{chart_style()}</style>{rest}\n"
