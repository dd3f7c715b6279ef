"""What an epoch leaves out on purpose, and why: the rest is lost.

A loader may leave samples out by itself (a rest that does not fill a batch, an order that does not contain them), and
training may end an epoch before its loader does (a limit, a stop). Only these reasons excuse samples that nobody drew.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What an epoch has not consumed when its batches are done."""

    size: int | None
    """The samples of the data set; `None` where nobody knows (iterable data)."""
    unseen: int | None
    """The number of those that no batch of the epoch held; `None` where nobody knows."""
    dropped: int = 0
    """The number that the loaders leave out by themselves, in an epoch that is trained to its end."""
    why_dropped: str = ""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The samples of an epoch that were left out on purpose."""

    number: int | None
    """`None`: all that were not drawn, of unknown number."""
    why: str
    """Empty if there are none."""


def left_out(rest: Rest, cut_short: str | None) -> LeftOut:
    """Return what was left out. `cut_short`: why the epoch ended before its loaders did; `None` if it did not."""
    if rest.unseen is None:
        return LeftOut(number=None, why=cut_short) if cut_short else LeftOut(number=0, why="")
    if cut_short and rest.unseen > rest.dropped:
        return LeftOut(number=rest.unseen, why=cut_short)
    number = min(rest.unseen, rest.dropped)
    return LeftOut(number=number, why=rest.why_dropped if number else "")
