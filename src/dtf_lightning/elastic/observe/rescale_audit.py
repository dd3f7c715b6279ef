"""Computes what each rescale cost, from the workers' ledgers alone: steps and samples, generation by generation.

Every loss is charged to one generation, so that the rows add up to what is lost in the whole run:

* a step is **lost** when a worker that lives on had committed it and the new generation began before it (charged to the
  new generation), or when nobody drew it (charged to the generation that should have);
* a step is **redone** when it was in flight at a death: drawn, never committed, drawn again by the new generation;
* a sample is **repeated** when a committed step consumes it once more in its epoch (charged to that step's generation;
  padding left out);
* a sample is **lost** when no committed step of its epoch consumed it, and it was not left out on purpose (charged to the
  generation that ended the epoch).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dtf_lightning.elastic.observe.ledger import History, read_history, read_ledger


@dataclass(frozen=True, kw_only=True)
class GenerationCost:
    """One generation, and what it cost to form it."""

    generation: int
    world_size: int
    step: int
    """The optimizer step at which the generation began."""
    steps: int
    """The number of optimizer steps that it committed."""
    steps_lost: int
    steps_redone: int
    samples_lost: int
    samples_repeated: int
    padding: int
    """The number of samples drawn once more to fill an epoch's tail."""
    instance: str = ""
    """The run's instance, of which there are several if it was resumed under its id in its folder."""


@dataclass
class _Trace:
    """The ledger lines of one generation."""

    place: int
    """Its place in the order of time."""
    number: int
    instance: str
    step: int
    world_size: int
    limit: int
    """The generation's draws count below this step."""
    reached: dict[Path, int] = field(default_factory=dict)
    """For each worker's ledger, the last step that it drew; the worker had committed the steps before."""
    draws: list[dict[str, Any]] = field(default_factory=list)


def rescale_costs(paths: Sequence[Path], dataset_size: int) -> list[GenerationCost]:
    """Return one row per generation, in the order of time. Raises `ValueError` for a broken ledger."""
    traces, history = _read(paths)
    undone = {new.place: _undone(old, new) for old, new in pairwise(traces)}
    redone = {new.place: _redone(old) - undone[new.place] for old, new in pairwise(traces)}
    repeated, lost = _samples(traces, history, dataset_size)
    rows = []
    for trace in traces:
        committed = [draw for draw in trace.draws if draw["step"] < trace.limit]
        steps = {draw["step"] for draw in committed}
        rows.append(
            GenerationCost(
                generation=trace.number,
                world_size=trace.world_size,
                step=trace.step,
                steps=len(steps),
                steps_lost=undone.get(trace.place, 0) + len(set(range(trace.step, trace.limit)) - steps),
                steps_redone=redone.get(trace.place, 0),
                samples_lost=lost[trace.place],
                samples_repeated=repeated[trace.place],
                padding=sum(draw["padding"] for draw in committed),
                instance=trace.instance,
            )
        )
    return rows


def _read(paths: Sequence[Path]) -> tuple[list[_Trace], History]:
    records = [(path, record) for path in paths for record in read_ledger(path)]
    history = read_history(record for _, record in records)
    traces = [
        _Trace(place, one.number, one.instance, one.step, one.world_size, limit)
        for place, (one, limit) in enumerate(zip(history.generations, history.limits, strict=True))
    ]
    for path, record in records:
        place = history.place(record)
        if record["kind"] == "begin":
            assert place is not None
            traces[place].reached[path] = record["step"]
        elif record["kind"] == "draw":
            if place is None or path not in traces[place].reached:
                raise ValueError(f"{path}: draws for generation {record['generation']}, which this worker never began")
            traces[place].draws.append(record)
            traces[place].reached[path] = record["step"]
    return traces, history


def _undone(old: _Trace, new: _Trace) -> int:
    """Return the number of steps that a survivor had committed in the old generation and that the new one lacks."""
    survivors = old.reached.keys() & new.reached.keys()
    return max((max(0, old.reached[worker] - new.step) for worker in survivors), default=0)


def _redone(old: _Trace) -> int:
    return len({draw["step"] for draw in old.draws if draw["step"] >= old.limit})


def _samples(traces: list[_Trace], history: History, dataset_size: int) -> tuple[Counter[int], Counter[int]]:
    """Return the numbers of repeated and of lost samples, by the generation's place."""
    repeated: Counter[int] = Counter()
    seen: dict[int, set[int]] = {}
    ended_by: dict[int, int] = {}
    for trace in traces:
        for draw in trace.draws:
            if draw["step"] >= trace.limit:
                continue
            consumed = seen.setdefault(draw["epoch"], set())
            samples = draw["samples"][: len(draw["samples"]) - draw["padding"]]
            repeated[trace.place] += len(samples) - len(set(samples) - consumed)
            consumed.update(samples)
            ended_by[draw["epoch"]] = trace.place
    lost: Counter[int] = Counter()
    endings, place = history.endings(), 0
    for epoch in range(min(seen, default=0), max(seen, default=-1) + 1):
        place = ended_by.get(epoch, place)
        unseen = dataset_size - len(seen.get(epoch, ()))
        left_out = endings[epoch].left_out if epoch in endings else 0
        lost[place] += max(0, unseen - (unseen if left_out is None else left_out))
    return repeated, lost
