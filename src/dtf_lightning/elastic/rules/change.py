"""What kind of change leads from one world to the next, in one word. The same words in live and in restart mode."""

from __future__ import annotations

from enum import Enum


class ChangeKind(Enum):
    """Why a world was formed."""

    START = "start"  # the run's first
    JOIN = "join"
    LEAVE = "leave"
    FAILURE = "failure"  # a member died, or reported its world as broken
    MIXED = "mixed"  # several of these at once, or none


def kind_of_change(*, first: bool, joined: bool, left: bool, failed: bool) -> ChangeKind:
    """The word for a change in which these things happened; whatever did, the `first` world is a start."""
    if first:
        return ChangeKind.START
    happened = ((ChangeKind.JOIN, joined), (ChangeKind.LEAVE, left), (ChangeKind.FAILURE, failed))
    kinds = [kind for kind, is_so in happened if is_so]
    return kinds[0] if len(kinds) == 1 else ChangeKind.MIXED
