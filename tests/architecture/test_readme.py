"""What can be done is said where people look for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dtf_lightning.__main__ import build_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_readme_names_every_command():
    """Each `dtf` command has its row."""
    commands = build_parser().format_help().partition("  COMMAND\n")[2]
    names = re.findall(r"^    (\w+) ", commands, re.MULTILINE)
    assert names
    assert [name for name in names if f"`dtf {name}" not in README] == []


def test_readme_names_every_make_target():
    """Each target of the Makefile has its row, and no row is without its target."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"help"}
    assert targets == set(re.findall(r"^\| `make ([a-z-]+)", README, re.MULTILINE))


PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Links to files of ours; `make docs` checks anchors too."""
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["Makefile", ".ci/run", "pyproject.toml", "docs/compatibility_table.py"])
def test_tests_that_are_run_by_name_are_there(page):
    """Files and folders below tests/."""
    paths = re.findall(r"(?<![\w/])tests/[\w/.]*\w", (ROOT / page).read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_decision_is_listed():
    """In the index of decisions and in the documentation's navigation."""
    index = (ROOT / "docs/decisions/README.md").read_text()
    navigation = (ROOT / "mkdocs.yml").read_text()
    records = [path.name for path in (ROOT / "docs/decisions").glob("0*.md")]
    assert [name for name in records if name not in index or name not in navigation] == []


PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
TEST = re.compile(r"`(tests/[\w/]+(?:\.py)?(?:::\w+)*)(?:\[[^`]*\])?`")


def _is_there(name: str) -> bool:
    path, *parts = name.split("::")
    text = (ROOT / path).read_text() if parts and (ROOT / path).is_file() else ""
    return (ROOT / path).exists() and all(
        re.search(rf"^ *(?:def|class) {part}\b", text, re.MULTILINE) for part in parts
    )


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page):
    """A promise that names its test names one that is there."""
    assert [name for name in TEST.findall((ROOT / page).read_text()) if not _is_there(name)] == []
