"""What is known of the tests of a run while shards tell of them, and what becomes of a shard's rest. Pure.

Rules that this file guards:
- A test is told of once: what a second attempt says of a test that is finished is not heard.
- A test during which its process ended has failed, and says so by its name; the tests behind it run elsewhere.
- A lost worker is not the test's fault: what it had not finished runs again elsewhere, the test that ran then by itself. A
  test with which a second worker is lost has failed.
- A shard that ends before any of its tests has begun would do so again: it is not tried again, the run ends. One whose worker is lost
  before is left to the farm, which tries a task with three workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MAX_LOSSES = 2
"""Workers that may be lost with a test."""

Line = Mapping[str, Any]
"""What a shard says; its `kind` is one of those that `runner.py` names."""


@dataclass
class Course:
    """What was said of one test."""

    lines: list[Line] = field(default_factory=list)
    """Reports and warnings, in order."""
    finished: bool = False
    ends_run: Line | None = None
    """What ended the whole run within this test, such as `pytest.exit`."""
    seconds: float | None = None
    losses: int = 0
    """Workers that were lost while it ran."""


class End(Enum):
    """How a shard's task has ended."""

    BY_ITSELF = "its process ended"
    LOST = "its worker was lost"


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What becomes of a shard that has ended."""

    failed: int | None = None
    """The test that is to blame; its process, or its second worker, ended with it."""
    again: tuple[tuple[int, ...], ...] = ()
    """New shards."""
    left_to_the_farm: bool = False
    """All of it is tried again, as the task that it is."""
    hopeless: bool = False
    """Nothing of it has begun: its process cannot run tests."""


class Courses:
    """Of all tests of a run, by their numbers."""

    def __init__(self, number: int) -> None:
        self.of = [Course() for _ in range(number)]

    def hear(self, test: int, line: Line) -> None:
        """A shard has said this of a test."""
        course = self.of[test]
        if course.finished:
            return
        match line["kind"]:
            case "start":
                course.lines.clear()  # of an attempt that was lost in its midst
            case "report" | "warning":
                course.lines.append(line)
            case "finish":
                course.finished = True
                course.seconds = line["seconds"]
                if line.get("stop") or line.get("fail"):
                    course.ends_run = line
            case "exit" | "interrupt" | "internal":
                course.finished = True
                course.ends_run = line
            case other:
                raise AssertionError(other)

    def fail(self, test: int, line: Line) -> None:
        """A test has failed by the end of its process. `line`: what is shown in the place of its report."""
        course = self.of[test]
        course.lines.append(line)
        course.finished = True

    def rest(self, shard: Sequence[int], *, running: int | None, begun: bool, end: End) -> Rest:
        """Return what becomes of a shard that has ended.

        Args:
            shard: its tests.
            running: the one that had begun and was not finished.
            begun: whether any of its tests had begun.
            end: how it ended.
        """
        left = tuple(test for test in shard if not self.of[test].finished)
        if not left or any(self.of[test].ends_run for test in shard):
            return Rest()
        others = _shards(test for test in left if test != running)
        if end is End.BY_ITSELF:
            return Rest(failed=running, again=others, hopeless=not begun)
        if not begun:
            return Rest(left_to_the_farm=True)
        if running is None:
            return Rest(again=others)
        self.of[running].losses += 1
        if self.of[running].losses >= MAX_LOSSES:
            return Rest(failed=running, again=others)
        return Rest(again=((running,), *others))


def _shards(tests: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    told = tuple(tests)
    return (told,) if told else ()
