"""The farm: one pool of machines that trains, tests and measures AI models.

The public names load on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtf_lightning.farm.async_client import AsyncClient, AsyncFuture
    from dtf_lightning.farm.client import Client, TaskInfo
    from dtf_lightning.farm.functions.future import Future
    from dtf_lightning.farm.functions.values import TaskFailed
    from dtf_lightning.farm.generate.generate import generate_tests
    from dtf_lightning.farm.generate.submitting import generate_and_submit_tests
    from dtf_lightning.farm.worker.report import report

__all__ = [
    "AsyncClient",
    "AsyncFuture",
    "Client",
    "Future",
    "TaskFailed",
    "TaskInfo",
    "generate_and_submit_tests",
    "generate_tests",
    "report",
]

_HOME = {
    "AsyncClient": "dtf_lightning.farm.async_client",
    "AsyncFuture": "dtf_lightning.farm.async_client",
    "Client": "dtf_lightning.farm.client",
    "Future": "dtf_lightning.farm.functions.future",
    "TaskFailed": "dtf_lightning.farm.functions.values",
    "TaskInfo": "dtf_lightning.farm.client",
    "generate_and_submit_tests": "dtf_lightning.farm.generate.submitting",
    "generate_tests": "dtf_lightning.farm.generate.generate",
    "report": "dtf_lightning.farm.worker.report",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
