"""These functions make the demo's report: one table, notes on it, and a list of what is not as it should be.

The numbers come from what the workers wrote while they trained: pauses from their event logs, steps and samples from
their ledgers (`dtf_lightning.elastic.observe.rescale_audit` says how losses are counted), accuracy from TensorBoard's log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from dtf_lightning.elastic.demo import LOG_EVERY_N_STEPS, NUM_TRAINING_SAMPLES
from dtf_lightning.elastic.demo.scenario import Act
from dtf_lightning.elastic.events import WorkerRescaled
from dtf_lightning.elastic.observe.ledger import Audit
from dtf_lightning.elastic.observe.rescale_audit import GenerationCost
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.events.registry import Event

ACCURACY_MARGIN = 0.02
"""Largest loss of accuracy against the undisturbed run that is accepted: 7 of the 360 images."""

STABILITY_WINDOW = ElasticSettings(min_nodes=1, max_nodes=1).stability_window

MAX_GAP = 3 * LOG_EVERY_N_STEPS
"""Largest number of steps between two points of the loss: rank 0 may die before it logs a point, even twice in a row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Hold one line of the table: a generation."""

    cost: GenerationCost
    reason: str
    pauses: tuple[float, ...]
    """Pause of each survivor, in seconds."""
    since_signal: float | None
    """Seconds from the signal to the end of the last survivor's first step after it; `None` without a signal."""


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """Hold what TensorBoard shows of one run."""

    folder: Path
    num_versions: int
    steps: tuple[int, ...]
    """Steps of the points of the loss, in the order of the log."""
    accuracy: float
    """Accuracy of the last validation, from 0 to 1."""


def rows(
    costs: Sequence[GenerationCost], events: Iterable[Event], acts: Iterable[Act], names: Mapping[str, str]
) -> list[Row]:
    """Return a row for each generation. `names`: the demo's name of each node id."""
    rescaled = [event for event in events if isinstance(event, WorkerRescaled)]
    done = {act.generation: act for act in acts}
    found = []
    for cost in costs:
        mine = [event for event in rescaled if event.generation == cost.generation]
        act = done.get(cost.generation)
        words = [_in_short(mine[0].reason, names)] if mine else []
        words += [f"({act.what})" if mine else act.what] if act is not None else []
        found.append(
            Row(
                cost=cost,
                reason=" ".join(words),
                pauses=tuple(event.pause for event in mine),
                since_signal=max(event.at for event in mine) - act.at if mine and act and act.at else None,
            )
        )
    return found


def read_log(folder: Path) -> TrainingLog:
    """Read the TensorBoard log in `<folder>/version_*`, as TensorBoard shows it.

    A rank 0 that dies may have written the loss of a step that is undone: its successor voids it in the log. What goes
    back without being voided is seen.

    Raises `ValueError` if there is no log, or it lacks a curve.
    """
    # Imported here, because it takes as long as all other imports of this module together.
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        SCALARS,
        EventAccumulator,
    )

    versions = sorted(folder.glob("version_*"))
    if not versions:
        raise ValueError(f"there is no TensorBoard log in {folder}")
    # 0 keeps every point.
    events = EventAccumulator(str(versions[0]), size_guidance={SCALARS: 0}).Reload()
    missing = {"train/loss", "val/accuracy"} - set(events.Tags()[SCALARS])
    if missing:
        raise ValueError(f"the TensorBoard log in {versions[0]} has no {' and no '.join(sorted(missing))}")
    return TrainingLog(
        folder=versions[0],
        num_versions=len(versions),
        steps=tuple(point.step for point in events.Scalars("train/loss")),
        accuracy=events.Scalars("val/accuracy")[-1].value,
    )


def problems(found: Sequence[Row], audit: Audit, log: TrainingLog, undisturbed: TrainingLog) -> list[str]:
    """Return what is not as it should be; empty if there is nothing."""
    missing = sum(len(epoch.missing(NUM_TRAINING_SAMPLES)) for epoch in audit.epochs.values())
    repeated = sum(sum(epoch.repeated().values()) for epoch in audit.epochs.values())
    gaps = [later - earlier for earlier, later in pairwise((0, *log.steps))]
    checks = {
        "ledgers are not here": len(audit.absent),
        "steps were lost": max(audit.steps_lost, sum(row.cost.steps_lost for row in found)),
        "samples were lost": max(missing, sum(row.cost.samples_lost for row in found)),
        "samples were repeated": max(repeated, sum(row.cost.samples_repeated for row in found)),
        "rescales are without a survivor's word on the pause": sum(not row.pauses for row in found[1:]),
        "TensorBoard versions are there beside the one expected": log.num_versions - 1,
        "points of the TensorBoard log go back": sum(gap <= 0 for gap in gaps),
        f"gaps in the TensorBoard log exceed {MAX_GAP} steps": sum(gap > MAX_GAP for gap in gaps),
    }
    wrong = [f"{count} {what}" for what, count in checks.items() if count]
    if log.accuracy < undisturbed.accuracy - ACCURACY_MARGIN:
        wrong.append(
            f"the accuracy, {log.accuracy:.3f}, is more than {ACCURACY_MARGIN} below {undisturbed.accuracy:.3f}, the "
            "undisturbed run's"
        )
    return wrong


HEADER = (
    ("", "", "world", "pause ms", "steps", "samples", "samples"),
    ("generation", "reason", "size", "(worst)", "lost", "lost", "repeated"),
)


def table(found: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    body = [
        (
            str(row.cost.generation),
            row.reason,
            str(row.cost.world_size),
            f"{_ms(median(row.pauses))} ({_ms(max(row.pauses))})" if row.pauses else "-",
            str(row.cost.steps_lost),
            str(row.cost.samples_lost),
            str(row.cost.samples_repeated),
        )
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(*HEADER, *body, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if column == 1 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (tuple(zip(cells, widths, strict=True)) for cells in (*HEADER, *body))
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [*(line.rstrip() for line in lines[:2]), rule, *lines[2:], rule]


def notes(found: Sequence[Row]) -> list[str]:
    """Return lines that say how to read the table, and what it leaves out."""
    signals = [
        f"{_ms(row.since_signal)} ms (generation {row.cost.generation})"
        for row in found
        if row.since_signal is not None
    ]
    redone = sum(row.cost.steps_redone for row in found)
    padding = sum(row.cost.padding for row in found)
    return [
        "Pause: from leaving a generation to the end of the first step in the next; median (worst) of the survivors.",
        f"From the signal to that step's end: {', '.join(signals)};",
        f"a leave first waits {_ms(STABILITY_WINDOW)} ms for others to leave with it.",
        f"Beside the table: {redone} steps in flight at a death were undone and drawn again; {padding} samples were",
        "drawn once more to fill epochs' ends, so that all workers had equally many (Lightning's way).",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def _in_short(reason: str, names: Mapping[str, str]) -> str:
    """Return the leader's reason with the demo's names, and without its counts, which have columns of their own."""
    for node, name in names.items():
        reason = re.sub(rf"{re.escape(node)}(#\d+)?", name, reason)
    return reason.partition(":")[0]
