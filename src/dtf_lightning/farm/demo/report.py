"""The demo's report: one table, one line, and what is not as it should be. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HEAD = ("task", "attempts", "where", "why again", "outcome")
LONGEST_REASON = 60


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task."""

    task: str
    name: str
    attempts: int
    """The number of the attempt that counts."""
    workers: tuple[str, ...]
    """Who began it, in order: those whose attempts have written something. A worker twice that began it twice."""
    why_again: str
    """Why there was more than one attempt."""
    outcome: str


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    body = [(row.name, str(row.attempts), ", ".join(row.workers), _short(row.why_again), row.outcome) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEAD, *body, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (HEAD, *body)
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:], rule]


def summary(accepted: Sequence[str], recorded: Mapping[str, Counter[str]], rows: Sequence[Row]) -> str:
    """Say in one line what the books say. `recorded`: coordinator -> task -> how often it is among its results."""
    once = sum(all(results[task] == 1 for results in recorded.values()) for task in accepted)
    twice = sum(len(row.workers) > 1 for row in rows)
    return f"accepted {len(accepted)}, recorded {once} once, executed twice {twice}"


def problems(accepted: Sequence[str], recorded: Mapping[str, Counter[str]], rows: Sequence[Row]) -> list[str]:
    """Return what is not as it should be; nothing if the books balance."""
    found: list[str] = []
    for coordinator, results in sorted(recorded.items()):
        for what, tasks in (
            ("are not recorded", [task for task in accepted if not results[task]]),
            ("are recorded more than once", [task for task in results if results[task] > 1]),
            ("are recorded and were not accepted", sorted(results.keys() - set(accepted))),
        ):
            if tasks:
                found.append(f"{len(tasks)} tasks {what} by {coordinator}, such as {tasks[0]}")
    for row in rows:
        if row.outcome != "completed":
            found.append(f"{row.name} is {row.outcome}: {row.why_again or 'no reason is known'}")
        elif not row.workers:
            found.append(f"{row.name} is completed, and no worker began it")
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
