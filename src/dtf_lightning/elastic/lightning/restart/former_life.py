"""What a life of a run in restart mode must have in common with the one before, and what it says where they differ.

Rules that this file guards:

* a run never begins anew in silence: what its former life has left is found whatever was edited meanwhile, and either
  training goes on from it and the log says what differs, or the workers are refused with what to do;
* the text of the script, versions and settings may change: training goes on from the state, as from a checkpoint;
* what a promise was made about may not (`virtual_ranks`: the same bits), and a state must fit the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.elastic.rules.resume import Position

MAY_NOT_CHANGE = {
    "ElasticCallback(virtual_ranks)": "it defines the training, whose bits would be those of neither setting",
}
"""Settings that stay as they are from life to life, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that is not what it was in the former life."""

    name: str
    before: str
    now: str

    def __str__(self) -> str:
        if "SHA-256" in self.name:
            return self.name.partition(" (")[0]
        return f"{self.name} ({self.before or 'nothing'} before, {self.now or 'nothing'} now)"


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """Return what differs, in the order of the names; a former life that remembered no settings differs in none."""
    if not before:
        return []
    names = dict.fromkeys((*before, *now))
    found = [Change(name=name, before=before.get(name, ""), now=now.get(name, "")) for name in names]
    return [change for change in found if change.before != change.now]


def refusal(run_id: str, found: Sequence[Change], places: str) -> str:
    """Return why the workers may not go on with what the former life has left; empty if they may.

    `places`: where that lies, for the message.
    """
    forbidden = [change for change in found if change.name in MAY_NOT_CHANGE]
    if not forbidden:
        return ""
    change = forbidden[0]
    return (
        f"run {run_id!r} cannot go on with {change}: {MAY_NOT_CHANGE[change.name]}. Set it back, or begin a run of its own "
        f"under another --rdzv-id; to begin this one anew at step 0, remove what it has left ({places})"
    )


def first_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Return in words the first line in which two lists of parameters and optimizers differ; empty if they are alike."""
    if list(before) == list(now):
        return ""
    if not before:  # written by a release that kept the digest only
        return "its parameters or optimizers"
    mine, theirs = (dict(_named(line) for line in lines) for lines in (now, before))
    for name in dict.fromkeys((*theirs, *mine)):
        if theirs.get(name) != mine.get(name):
            return (
                f"{name} is {theirs.get(name, 'not there')} in the state and {mine.get(name, 'not there')} in the model"
            )
    return "the order of its parameters"


def _named(line: str) -> tuple[str, str]:
    name, _, shape = line.partition(" ")
    return name, shape


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A snapshot of the run that does not fit the model which is to train now."""

    position: Position
    where: str
    difference: str

    def describe(self, run_id: str) -> str:
        """Return the error's message."""
        return (
            f"run {run_id!r} has a snapshot of step {self.position.global_step} ({self.where}), and the model or its "
            f"optimizers are not those that it was taken of: {self.difference}. Nothing was removed. Put the model back as "
            "it was, or begin a run of its own under another --rdzv-id; to begin this one anew, remove the snapshot"
        )
