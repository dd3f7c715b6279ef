"""What `dtf farm run PLAN.yaml` shows while it waits."""

from __future__ import annotations

import io

from dtf_lightning.farm.cli.plan import Progress
from dtf_lightning.farm.client import TaskInfo


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


REQUESTS = [{"task_id": "1", "name": "one"}, {"task_id": "2", "name": "two"}]
ENDS = [
    TaskInfo(
        "2", "completed", {"worker_id": "w", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:02Z"}
    ),
    TaskInfo("1", "failed", {"error": "exit code 3"}),
]


def shown(out: io.StringIO) -> str:
    progress = Progress(REQUESTS, out)
    for info in ENDS:
        progress.ended(info)
    progress.close()
    return out.getvalue()


def test_a_line_a_task_on_a_pipe():
    assert shown(io.StringIO()) == "[1/2] two: completed on w in 2.0 s\n[2/2] one: failed: exit code 3\n"


def test_one_line_that_changes_on_a_terminal():
    """What failed gets a line that stays; at the end nothing else is left."""
    erase = "\r\x1b[K"
    assert shown(Terminal()).split(erase)[1:] == [
        "0 of 2 tasks have ended",
        "1 of 2 tasks have ended: 1 completed",
        "[2/2] one: failed: exit code 3\n",
        "2 of 2 tasks have ended: 1 completed, 1 failed",
        "",
    ]
