"""What was collected here, as shards need it: which tests stay together, what each needs, where it lies in the repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.pytest_runs.marks import Marked, read_marks

_SCOPES: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module, "package": pytest.Package}


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A test that was collected here."""

    nodeid: str
    file: str
    """In which it lies, relative to the repository."""
    marked: Marked
    unit: Hashable


def collected(items: Sequence[pytest.Item], top: Path) -> list[Collected]:
    """Return the tests of a run.

    Raises `pytest.UsageError` for a mark that says what it cannot, a test outside of the repository, and two tests with one id.
    """
    twice = [nodeid for nodeid, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"--farm knows tests by their ids, and {twice[0]} was collected twice")
    return [_collected(item, top) for item in items]


def _collected(item: pytest.Item, top: Path) -> Collected:
    try:
        marked = read_marks([(mark.args, mark.kwargs) for mark in item.iter_markers("farm")])
        file = item.path.relative_to(top).as_posix()
    except SettingsError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from error
    except ValueError:
        raise pytest.UsageError(
            f"{item.nodeid} lies outside of {top}, whose files are those that workers get: run it without --farm"
        ) from None
    return Collected(nodeid=item.nodeid, file=file, marked=marked, unit=_unit(item, marked.together))


def _unit(item: pytest.Item, together: str | None) -> Hashable:
    """Return with which tests one stays: by its mark, by pytest-xdist's, or by the fixtures that it shares with them."""
    if together is not None:
        return "mark", together
    group = item.get_closest_marker("xdist_group")
    if group is not None:
        return "xdist_group", str(group.args[0] if group.args else group.kwargs.get("name", "default"))
    scopes = _shared_scopes(item)
    for scope, kind in reversed(_SCOPES.items()):
        node = item.getparent(kind)
        if scope in scopes and node is not None:
            return scope, node.nodeid
    return "test", item.nodeid


def _shared_scopes(item: pytest.Item) -> set[str]:
    """Return the scopes of the fixtures that a test uses. pytest has no public way to ask; without it tests stay alone."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = getattr(info, "name2fixturedefs", {})
    return {str(found[-1].scope) for found in definitions.values() if found}
