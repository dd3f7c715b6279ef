"""The farm: one pool of machines that trains, tests and measures AI models.

Its public names load on first use, as those of the package do: tasks import it to report their metrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtf_lightning.farm.worker.report import report

__all__ = ["report"]

_HOME = {"report": "dtf_lightning.farm.worker.report"}
"""Public name -> its module."""


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
