"""What one worker of pytest-xdist runs in one go: a file whose tests share a fixture, all that read the source tree, or one test.

Tests are handed out the longest first, one by one, so that the workers end together. Where a file's tests share what is
expensive (a farm, what plain Lightning came to), each worker would make it, and again whenever it came back from another file.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = 'scope="module"'
TREE = "from support.source_tree import"
"""In the files that look at the syntax trees of all of our sources, which take four seconds to make."""


@cache
def _is_shared(file: str) -> bool:
    """Whether the file, or a conftest.py above it, has a fixture of its module."""
    path = ROOT / file
    above = [folder / "conftest.py" for folder in path.parents if ROOT in folder.parents]
    return any(SHARED in place.read_text() for place in (path, *above) if place.is_file())


@cache
def _reads_the_tree(file: str) -> bool:
    return Path(file).parent.name == "architecture" and TREE in (ROOT / file).read_text()


def unit_of(test: str) -> str:
    """By a test's name in full."""
    file = test.partition("::")[0]
    if _reads_the_tree(file):
        return str(Path(file).parent)
    return file if _is_shared(file) else test


def scheduling(config: Any, log: Any) -> Any:
    """Hands out units in the order of their first tests. Only where pytest-xdist is installed and used."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False  # our order is by seconds, not by numbers of tests
    return Scheduling(config, log)
