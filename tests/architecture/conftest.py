"""Lets go of the parsed sources when the tests of this folder are over.

They are half a million objects, through which every later garbage collection of the process would look: what trains behind
them took twice as long.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from support import source_tree

if TYPE_CHECKING:
    import pytest

HERE = Path(__file__).parent


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != HERE:
        source_tree.forget()
        gc.collect()
