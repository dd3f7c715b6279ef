"""What a run's ledgers say together: pure functions of their lines, shared by the audits in Python and in SQL.

Rules that this file guards:

* generations follow one another in the order of time: those of an instance of the run by number, instances by when
  their first generation was formed. So a run that was killed and resumed under its id in its folder is one history;
* of a generation's draws those count whose step lies below every later generation's beginning;
* an epoch's ending says how many samples were left out on purpose. It counts while its step does, and until the epoch
  goes on after it (a run that was stopped, and resumed);
* all members begin a generation before any of them draws: where steps of it count, and a rank has no beginning on
  record, that rank's ledger is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BegunGeneration:
    """A generation as its members' beginnings describe it."""

    instance: str
    """The run's instance; empty in ledgers of version 1, which do not say it."""
    number: int
    step: int
    """The optimizer step at which it began."""
    epoch: int
    world_size: int
    ranks: frozenset[int]
    """The ranks whose ledgers are here."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an epoch ended, as one worker wrote it down."""

    place: int
    """The place of its generation in the order of time."""
    epoch: int
    step: int
    """The optimizer steps that were committed then."""
    size: int | None
    """The samples of the data set; `None` where nobody knows."""
    left_out: int | None
    """The samples of the epoch that are left out on purpose; `None`: all that have not been drawn, however many."""
    why: str
    """Why, for people; empty if none are."""


@dataclass(frozen=True, kw_only=True)
class AbsentLedgers:
    """Ledgers that are not among those that were read, although steps that count are in them."""

    generation: int | None
    """The generation; `None` for steps of generations of which no ledger is here."""
    world_size: int
    ranks: tuple[int, ...]
    """The ranks without a ledger here; empty: all."""
    first_step: int
    last_step: int
    epochs: tuple[int, ...]
    """The epochs that those steps are of."""

    def describe(self) -> str:
        """Return a line for people."""
        steps = f"step {self.first_step}" if self.first_step == self.last_step else _span(self)
        if self.generation is None:
            return f"no ledger of {steps} is here"
        ranks = ", ".join(map(str, self.ranks))
        what = f"ledger of rank {ranks}" if len(self.ranks) == 1 else f"ledgers of ranks {ranks}"
        verb = "is" if len(self.ranks) == 1 else "are"
        return f"the {what} of {self.world_size} {verb} not here (generation {self.generation}, {steps})"


def _span(absent: AbsentLedgers) -> str:
    return f"steps {absent.first_step} to {absent.last_step}"


def in_order_of_time(begins: Iterable[Mapping[str, Any]]) -> list[BegunGeneration]:
    """Return the generations that the lines of kind `begin` describe, in the order of time.

    Raises `ValueError` for members that disagree about where a generation began.
    """
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    formed: dict[str, float] = {}
    for line in begins:
        instance, formed_at = line.get("instance") or "", line.get("formed_at") or 0.0
        found.setdefault((instance, line["generation"]), []).append(line)
        formed[instance] = min(formed_at, formed.get(instance, formed_at))
    order = sorted(found, key=lambda key: (formed[key[0]], *key))
    return [_generation(instance, number, found[instance, number]) for instance, number in order]


def _generation(instance: str, number: int, lines: Sequence[Mapping[str, Any]]) -> BegunGeneration:
    steps = sorted({line["step"] for line in lines})
    if len(steps) > 1:
        raise ValueError(
            f"two members began generation {number} at other steps, {' and '.join(map(str, steps))}; are these the ledgers "
            "of one run?"
        )
    return BegunGeneration(
        instance=instance,
        number=number,
        step=steps[0],
        epoch=min(line["epoch"] for line in lines),
        world_size=max(line["world_size"] for line in lines),
        ranks=frozenset(line["rank"] for line in lines),
    )


def committed_below(generations: Sequence[BegunGeneration], last_step: int | None) -> list[int]:
    """Return, for each generation in the order of time, the step below which its draws count.

    Args:
        generations: all of them, in the order of time.
        last_step: the number of steps that the last one is known to have committed, if any.
    """
    limits: list[int] = []
    lowest: int | None = None
    for generation in reversed(generations):
        if lowest is None:
            limits.append(generation.step if last_step is None else last_step)
        else:
            # Whatever any later one rolled back is void, not only what the next one did: all who had it may be gone.
            limits.append(lowest)
        lowest = generation.step if lowest is None else min(lowest, generation.step)
    return limits[::-1]


def standing_endings(
    endings: Iterable[Ending], limits: Sequence[int], last_draws: Mapping[int, tuple[int, int]]
) -> dict[int, Ending]:
    """Return the ending of each epoch that counts.

    Args:
        endings: all that the workers wrote down.
        limits: for each generation in the order of time, the step below which its draws count.
        last_draws: for each epoch, the place of the last generation of which a draw counts, and the last step there.
    """
    found: dict[int, Ending] = {}
    for ending in endings:
        last_draw = last_draws.get(ending.epoch, (-1, -1))
        if ending.step > limits[ending.place] or last_draw > (ending.place, ending.step):
            continue
        former = found.get(ending.epoch)
        # Members of one generation may know more or less of the reason: a newcomer has not stopped anything.
        if former is None or (ending.place, bool(ending.why), ending.step) > (
            former.place,
            bool(former.why),
            former.step,
        ):
            found[ending.epoch] = ending
    return found


def absent_ledgers(
    generations: Sequence[BegunGeneration], limits: Sequence[int], drawn: Mapping[int, int]
) -> list[AbsentLedgers]:
    """Return which ledgers are not here, in the order of time.

    Args:
        generations: all of them, in the order of time.
        limits: for each of them, the step below which its draws count.
        drawn: for each step with a draw that counts, its epoch.
    """
    found = []
    for place, (generation, limit) in enumerate(zip(generations, limits, strict=True)):
        ranks = tuple(rank for rank in range(generation.world_size) if rank not in generation.ranks)
        steps = range(generation.step, limit)
        lost = [step for step in steps if step not in drawn]
        after = generations[place + 1] if place + 1 < len(generations) else None
        whole = [step for step in steps if step in drawn] if lost and _others_between(generation, after) else steps
        if ranks and whole:
            found.append(
                AbsentLedgers(
                    generation=generation.number,
                    world_size=generation.world_size,
                    ranks=ranks,
                    first_step=whole[0],
                    last_step=whole[-1],
                    epochs=tuple(sorted({generation.epoch, *(drawn[step] for step in whole if step in drawn)})),
                )
            )
        if after is not None and lost and _others_between(generation, after):
            begun = max((drawn[step] for step in whole), default=generation.epoch)
            found.append(
                AbsentLedgers(
                    generation=None,
                    world_size=0,
                    ranks=(),
                    first_step=lost[0],
                    last_step=lost[-1],
                    epochs=tuple(range(begun, after.epoch + 1)),
                )
            )
    return found


def _others_between(generation: BegunGeneration, after: BegunGeneration | None) -> bool:
    """Tell whether there may have been generations between two, of which no ledger is here."""
    return after is not None and (after.instance != generation.instance or after.number > generation.number + 1)


def doubtful_epochs(generations: Sequence[BegunGeneration], absent: Iterable[AbsentLedgers]) -> frozenset[int]:
    """Return the epochs of which samples may be in ledgers that are not here: also of steps before the first."""
    before = {generations[0].epoch} if generations and generations[0].step > 0 else set()
    return frozenset(before.union(*(one.epochs for one in absent)))
