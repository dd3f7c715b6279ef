"""Computes what each rescale cost, from the workers' ledgers alone: steps and samples, generation by generation.

Every loss is charged to one generation, so that the rows add up to what is lost in the whole run:

* a step is **lost** when a worker that lives on had committed it and the new generation began before it (charged to the
  new generation), or when nobody drew it (charged to the generation that should have);
* a step is **redone** when it was in flight at a death: drawn, never committed, drawn again by the new generation;
* a sample is **repeated** when a committed step consumes it once more in its epoch (charged to that step's generation;
  padding left out);
* a sample is **lost** when no committed step of its epoch consumed it (charged to the generation that ended the epoch).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dtf_lightning.elastic.observe.ledger import committed_below, read_ledger


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


@dataclass
class _Trace:
    """The ledger lines of one generation."""

    number: int
    step: int
    world_size: int
    reached: dict[Path, int] = field(default_factory=dict)
    """For each worker's ledger, the last step that it drew; the worker had committed the steps before."""
    draws: list[dict[str, Any]] = field(default_factory=list)
    limit: int = 0
    """The generation's draws count below this step."""


def rescale_costs(paths: Sequence[Path], dataset_size: int) -> list[GenerationCost]:
    """Return one row per generation, in order. Raises `ValueError` for a broken ledger."""
    traces = _read(paths)
    undone = {new.number: _undone(old, new) for old, new in pairwise(traces)}
    redone = {new.number: _redone(old) - undone[new.number] for old, new in pairwise(traces)}
    repeated, lost = _samples(traces, dataset_size)
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
                steps_lost=undone.get(trace.number, 0) + len(set(range(trace.step, trace.limit)) - steps),
                steps_redone=redone.get(trace.number, 0),
                samples_lost=lost[trace.number],
                samples_repeated=repeated[trace.number],
                padding=sum(draw["padding"] for draw in committed),
            )
        )
    return rows


def _read(paths: Sequence[Path]) -> list[_Trace]:
    traces: dict[int, _Trace] = {}
    ends: dict[int, int] = {}
    for path in paths:
        for record in read_ledger(path):
            number, step = record["generation"], record["step"]
            if record["kind"] == "end":
                ends[number] = step
                continue
            if record["kind"] == "begin":
                traces.setdefault(number, _Trace(number, step, record["world_size"])).reached[path] = step
                continue
            if number not in traces or path not in traces[number].reached:
                raise ValueError(f"{path}: draws for generation {number}, which this worker never began")
            traces[number].draws.append(record)
            traces[number].reached[path] = step
    order = sorted(traces.values(), key=lambda trace: trace.number)
    limits = committed_below(
        {trace.number: trace.step for trace in order}, ends, [draw for trace in order for draw in trace.draws]
    )
    for trace in order:
        trace.limit = limits[trace.number]
    return order


def _undone(old: _Trace, new: _Trace) -> int:
    """Return the number of steps that a survivor had committed in the old generation and that the new one lacks."""
    survivors = old.reached.keys() & new.reached.keys()
    return max((max(0, old.reached[worker] - new.step) for worker in survivors), default=0)


def _redone(old: _Trace) -> int:
    return len({draw["step"] for draw in old.draws if draw["step"] >= old.limit})


def _samples(traces: list[_Trace], dataset_size: int) -> tuple[Counter[int], Counter[int]]:
    """Return the numbers of repeated and of lost samples, by generation."""
    repeated: Counter[int] = Counter()
    seen: dict[int, set[int]] = {}
    ended_by: dict[int, int] = {}
    for trace in traces:
        for draw in trace.draws:
            if draw["step"] >= trace.limit:
                continue
            consumed = seen.setdefault(draw["epoch"], set())
            samples = draw["samples"][: len(draw["samples"]) - draw["padding"]]
            repeated[trace.number] += len(samples) - len(set(samples) - consumed)
            consumed.update(samples)
            ended_by[draw["epoch"]] = trace.number
    lost: Counter[int] = Counter()
    generation = traces[0].number if traces else 0
    for epoch in range(min(seen, default=0), max(seen, default=-1) + 1):
        generation = ended_by.get(epoch, generation)
        lost[generation] += dataset_size - len(seen.get(epoch, ()))
    return repeated, lost
