"""What pages of the docs say to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str, after: str) -> list[str]:
    """The code blocks of a page behind a heading."""
    _, _, text = (ROOT / page).read_text().partition(f"\n{after}\n")
    assert text, f"{page} has no heading {after!r}"
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
