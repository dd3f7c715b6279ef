"""Lets go of the parsed sources when the tests of this folder are over, and keeps the garbage collector off them meanwhile.

They are half a million objects, through which every garbage collection of the process would look: parsing takes three times as
long with it, and what trains behind them took twice as long. Syntax trees hold no cycles, so that there is nothing to collect.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import source_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != HERE:
        source_tree.forget()
        gc.collect()
