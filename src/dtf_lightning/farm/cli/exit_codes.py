"""Which exit code stands for how a task ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from dtf_lightning.farm.client import TaskInfo

BAD_INPUT, UNREACHABLE, TIMEOUT = 2, 75, 124
"""Exit codes beside the command's own (sysexits.h, GNU timeout)."""


def exit_code(task: TaskInfo) -> int:
    """Return `code_of` a task, and say on stderr what the command itself has not said."""
    by_itself = _ended_by_itself(task)
    if task.reason and task.status != "completed" and not (by_itself and task.reason.startswith("exit code ")):
        print(f"dtf farm: task {task.task_id}: {task.reason}", file=sys.stderr)
    return code_of(task)


def code_of(task: TaskInfo) -> int:
    """Return the exit code that stands for how a task ended."""
    if task.status == "completed":
        return DONE
    if by_itself := _ended_by_itself(task):
        return by_itself
    if task.status == "cancelled":
        return INTERRUPTED
    if (task.raw.get("results") or {}).get("kind") == "timeout":
        return TIMEOUT
    return FAILED


def _ended_by_itself(task: TaskInfo) -> int:
    """Return the exit code of a command that failed by itself; 0 for any other end."""
    failed = (task.raw.get("results") or {}).get("kind") == "failed"
    return task.exit_code or 0 if failed else 0
