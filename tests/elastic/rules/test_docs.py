"""Pages that come from the code are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATE = Path(__file__).parents[3] / "docs" / "generate.py"


def test_generated_pages_are_up_to_date():
    """Tables of states, settings, rooms, of what Lightning ships, of a plan's keys; if they are not: python docs/generate.py."""
    pages = runpy.run_path(str(GENERATE))["pages"]()
    written = {
        "state-diagram.md",
        "settings.md",
        "architecture.md",
        "compatibility.md",
        "guarantees.md",
        "farm.md",
        "farm-settings.md",
        "plan.schema.json",
        "security.md",
        "observability.md",
    }
    assert {path.name for path in pages} == written
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: run python docs/generate.py"
