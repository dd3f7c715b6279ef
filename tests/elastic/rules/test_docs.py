"""Pages that come from the code are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATE = Path(__file__).parents[3] / "docs" / "generate.py"


def test_generated_pages_are_up_to_date():
    """docs/state-diagram.md, the tables of docs/settings.md and of the rooms in docs/architecture.md, a plan's keys; if not: python docs/generate.py."""
    pages = runpy.run_path(str(GENERATE))["pages"]()
    assert {path.name for path in pages} == {
        "state-diagram.md",
        "settings.md",
        "architecture.md",
        "farm.md",
        "plan.schema.json",
    }
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: run python docs/generate.py"
