"""Work of one rank or of all ranks whose failure all ranks learn: nobody waits at a barrier for a rank that failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from dtf_lightning.errors import CheckpointError

T = TypeVar("T")


def from_rank_zero(work: Callable[[], T], *, rank: int, broadcast: Callable[[Any], Any]) -> T | None:
    """Run `work` on rank 0 and give its result, or its exception, to all ranks.

    Args:
        rank: the rank of this process.
        broadcast: a collective that gives rank 0's object to all ranks; every rank calls this function at the same
            place.

    Returns: the result; `None` on a rank that gets no answer (`broadcast` gave back its own `None`).

    Raises:
        Exception: on every rank, what `work` raised on rank 0; if that cannot be pickled, the other ranks get a
            `CheckpointError` with its text.
    """
    outcome: tuple[bool, Any] | None = None
    failure: BaseException | None = None
    if rank == 0:
        try:
            outcome = (True, work())
        except BaseException as error:
            failure, outcome = error, (False, _portable(error))
    outcome = broadcast(outcome)
    if failure is not None:
        raise failure
    if outcome is None:
        return None
    done, value = outcome
    if not done:
        raise value
    result: T = value
    return result


def _portable(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        try:
            copied = pickle.loads(pickle.dumps(error))
        except Exception:
            pass  # for example, an exception whose arguments hold a lock
        else:
            if isinstance(copied, type(error)):
                return error
    return CheckpointError(f"rank 0 failed: {type(error).__name__}: {error}")


def together(work: Callable[[], T], *, gather: Callable[[Any], list[Any]]) -> T:
    """Run `work` on every rank; if it fails on one, it fails on all, and nobody is left waiting in a later collective.

    Args:
        gather: a collective that gives every rank the list of all ranks' objects.

    Raises:
        BaseException: what this rank's work raised; on the other ranks, a `CheckpointError` that names the first rank.
    """
    result: Any = None
    failure: BaseException | None = None
    try:
        result = work()
    except BaseException as error:
        failure = error
    reports = gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            raise CheckpointError(f"rank {rank} failed: {report}")
    done: T = result
    return done
