"""Splits a job into shares, one for each subtask, by a strategy; and a share that failed into smaller ones. Pure.

| strategy | one subtask for each |
|---|---|
| `data_parallel` | stretch of `inputs` |
| `function_parallel` | of `functions` |
| `ensemble` | of `models`, or of `devices` (a label each): the same input to all |
| `auto` | whatever keeps the most devices busy; says why |
| `pipeline`, `model_parallel` | not yet: refused with the reason |

What is not divided is given whole to each subtask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.dividing import MAX_SUBTASKS, PIECES, Seat, divide, stretches

SPLIT_ANEW = 4
"""Shares into which one is cut that has failed."""
MAX_DEPTH = 2
"""How often a share may be cut anew."""
NOBODY = 4
"""Shares for a job while no worker is there that could do it."""


class Strategy(Enum):
    """How a job is split."""

    AUTO = "auto"
    DATA_PARALLEL = "data_parallel"
    FUNCTION_PARALLEL = "function_parallel"
    ENSEMBLE = "ensemble"
    PIPELINE = "pipeline"
    MODEL_PARALLEL = "model_parallel"


class CannotSplitYet(SettingsError):
    """This release does not split so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one subtask does of a job."""

    key: str
    """Unique in the job: "3"; "3.0" is a part of it that was cut anew."""
    begin: int = 0
    end: int = 0
    """Behind the last of its inputs; 0: they are not divided."""
    function: str = ""
    model: str = ""
    label: str = ""
    """Of the workers that are to do it: of an ensemble over devices they alone, else rather than others."""

    @property
    def name(self) -> str:
        """What stands in brackets behind the job's name."""
        told = self.function or self.model or (f"{self.begin}:{self.end}" if self.end else self.label)
        return told or self.key

    @property
    def weight(self) -> int:
        """How much of the job it is: inputs, where these are divided."""
        return max(self.end - self.begin, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What can be divided of a job."""

    num_inputs: int = 0
    """0: it has none that could be divided."""
    functions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    """Labels."""
    pieces: int = PIECES


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How a job was split, and why so."""

    strategy: Strategy
    reason: str
    shares: tuple[Share, ...]
    first: int = 0
    """So many of them, the first ones, are to begin before the others; 0: none."""


def split(strategy: Strategy, job: Job, seats: Sequence[Seat]) -> Split:
    """Split a job.

    Args:
        seats: room on the workers that could do a part of it; none: nobody could for now.

    Raises `SettingsError` for a job that cannot be split so, with what is missing, and `CannotSplitYet`.
    """
    if strategy in (Strategy.PIPELINE, Strategy.MODEL_PARALLEL):
        raise CannotSplitYet(
            f"the strategy {strategy.value} splits a model into stages that run at once, which this release does not; "
            "data_parallel, function_parallel and ensemble split a job whose parts do not wait for each other"
        )
    _check(job)
    why = ""
    if strategy is Strategy.AUTO:
        strategy, why = _chosen(job, len(seats))
    match strategy:
        case Strategy.DATA_PARALLEL:
            reason, shares = _by_inputs(job, seats)
        case Strategy.FUNCTION_PARALLEL:
            reason, shares = _by_functions(job)
        case _:
            reason, shares = _ensemble(job)
    first = min(len(seats), len(shares)) if strategy is Strategy.DATA_PARALLEL else 0
    return Split(strategy=strategy, reason=f"{why}{reason}", shares=tuple(shares), first=first)


def _check(job: Job) -> None:
    for what, names in (("functions", job.functions), ("models", job.models), ("devices", job.devices)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(f"{what}: {twice[0]!r} stands there twice; each is one subtask")
        if len(names) > MAX_SUBTASKS:
            raise SettingsError(f"{what}: {len(names)} of them, {MAX_SUBTASKS} are allowed: each is one subtask")
    if job.models and job.devices:
        raise SettingsError("an ensemble is over `models` or over `devices`: name one of the two")


def _chosen(job: Job, num_seats: int) -> tuple[Strategy, str]:
    """Return the strategy that keeps the most devices busy; of equal ones the first of these."""
    options: list[tuple[Strategy, int, str]] = []
    if job.functions:
        options.append((Strategy.FUNCTION_PARALLEL, len(job.functions), f"{len(job.functions)} functions"))
    members = job.models or job.devices
    if members:
        what = "models" if job.models else "devices"
        options.append((Strategy.ENSEMBLE, len(members), f"{len(members)} {what}"))
    if job.num_inputs:
        options.append((Strategy.DATA_PARALLEL, job.num_inputs, f"{job.num_inputs} inputs"))
    if not options:
        raise SettingsError(
            "there is nothing to split: give `inputs` (a number of them, or a list), `functions`, `models` or `devices`"
        )
    if len(options) == 1:
        return options[0][0], f"{options[0][2]} are all that can be divided; "
    room = max(num_seats, 1)
    best = max(options, key=lambda option: min(option[1], room))
    others = " and ".join(text for strategy, _, text in options if strategy is not best[0])
    return best[0], f"{best[2]} keep {min(best[1], room)} of {room} devices busy, and {others} no more; "


def _by_inputs(job: Job, seats: Sequence[Seat]) -> tuple[str, list[Share]]:
    if not job.num_inputs:
        raise SettingsError("data_parallel divides `inputs`, a number of them or a list, and there are none")
    if not seats:
        sizes = [size for size in divide(job.num_inputs, [1.0] * NOBODY) if size]
        begins = [sum(sizes[:number]) for number in range(len(sizes))]
        shares = [
            Share(key=str(number), begin=begin, end=begin + size)
            for number, (begin, size) in enumerate(zip(begins, sizes, strict=True))
        ]
        return f"{len(shares)} equal shares: no worker is there that could do one", shares
    made = stretches(job.num_inputs, seats, job.pieces)
    speeds = {seat.speed for seat in seats}
    by = "the speeds of their devices" if len(speeds) > 1 else "equal speeds"
    found = [Share(key=str(number), begin=one.begin, end=one.end, label=one.label) for number, one in enumerate(made)]
    return f"{len(found)} shares of {job.num_inputs} inputs for {len(seats)} devices, by {by}", found


def _by_functions(job: Job) -> tuple[str, list[Share]]:
    if not job.functions:
        raise SettingsError("function_parallel makes one subtask of each of `functions`, and there are none")
    shares = [Share(key=str(number), function=name) for number, name in enumerate(job.functions)]
    return f"{len(shares)} functions, a subtask each", shares


def _ensemble(job: Job) -> tuple[str, list[Share]]:
    if job.models:
        shares = [Share(key=str(number), model=name) for number, name in enumerate(job.models)]
        return f"the same input to {len(shares)} models", shares
    if job.devices:
        shares = [Share(key=str(number), label=label) for number, label in enumerate(job.devices)]
        return f"the same input on {len(shares)} kinds of devices", shares
    raise SettingsError(
        "an ensemble gives the same input to each of `models`, or to each of `devices`, and there are none"
    )


# --- a share that failed ----------------------------------------------------------------------------------------------


def anew(share: Share) -> tuple[Share, ...]:
    """Return the shares into which one is cut that has failed; none if it cannot be."""
    size = share.end - share.begin
    if size < 2 or share.key.count(".") >= MAX_DEPTH:
        return ()
    parts: list[Share] = []
    begin = share.begin
    for number, part in enumerate(divide(size, [1.0] * min(SPLIT_ANEW, size))):
        parts.append(replace(share, key=f"{share.key}.{number}", begin=begin, end=begin + part, label=""))
        begin += part
    return tuple(parts)


def tree(shares: Sequence[Share], ends: Mapping[str, str], *, split_anew: bool) -> Iterator[tuple[Share, bool]]:
    """Yield all shares that are to be there, each with whether it counts: one that was cut anew does not, its parts do.

    Args:
        ends: key of a share -> how its subtask ended.
        split_anew: whether a share whose subtask failed is cut.
    """
    for share in shares:
        parts = anew(share) if split_anew and ends.get(share.key) == "failed" else ()
        yield share, not parts
        yield from tree(parts, ends, split_anew=split_anew)
