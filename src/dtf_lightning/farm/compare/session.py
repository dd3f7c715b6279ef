"""`compare`: buys pairs for several metrics at once, as long as one of them may still be decided and the budget lasts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.clock import Clock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.measuring import CPU, WALL, Run, RunFailed
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison, Sample
from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
from dtf_lightning.farm.verdicts.pairs.verdict import Verdict, judge, progress
from dtf_lightning.farm.verdicts.series import checked


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The outcome for one metric."""

    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of all metrics of two programs."""

    compared: tuple[Compared, ...]
    seconds: float


def compare(
    run: Callable[[Side], Run],
    metrics: Sequence[Metric],
    plan: Plan,
    *,
    seed: str,
    budget: float | None,
    clock: Clock,
    warm_up: int = 1,
    told: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Run pairs until every metric is decided.

    Args:
        run: runs a side's program once, in a fresh process.
        plan: of one metric; with several, each has its share of alpha, so that all together err as seldom.
        seed: of the order; random.
        budget: seconds for all runs; `None`: until decided.
        warm_up: runs of each side before the first pair, which are not counted.
        told: hears what each look says.

    Raises `RunFailed` for a program that fails before the first pair is complete, `SettingsError` for a metric that it does
    not report. A program that fails later ends the comparison, whose verdicts say so.
    """
    plan = dataclasses.replace(plan, alpha=plan.alpha / len(metrics))
    samples: dict[str, list[Sample]] = {metric.name: [] for metric in metrics}
    began = clock.monotonic()
    for _ in range(warm_up):
        for side in Side:
            _values(run(side), side, metrics)
    ended, pair, longest = "", 0, 0.0
    wanted = 0
    while not ended:
        if pair >= wanted:
            wanted = _next_look(metrics, plan, seed, samples, told)
            if not wanted:
                break
        start = clock.monotonic()
        if budget is not None and start - began + longest > budget:
            ended = f"the budget of {budget:g} s is spent"
            break
        try:
            taken = _pair(run, metrics, seed, pair)
        except KeyboardInterrupt:
            ended = "it was ended by Ctrl-C"
        except RunFailed as error:
            if not pair:
                raise
            ended = f"pair {pair + 1} failed: {error}"
        else:
            for name, both in taken.items():
                samples[name] += both
            pair += 1
            longest = max(longest, clock.monotonic() - start)
    compared = []
    for metric in metrics:
        comparison = _comparison(metric, plan, seed, samples[metric.name])
        compared.append(Compared(comparison=comparison, verdict=judge(comparison, ended=ended)))
    return Outcome(compared=tuple(compared), seconds=clock.monotonic() - began)


def _pair(run: Callable[[Side], Run], metrics: Sequence[Metric], seed: str, pair: int) -> dict[str, list[Sample]]:
    first = first_of_pair(seed, pair)
    second = Side.CANDIDATE if first is Side.BASE else Side.BASE
    taken: dict[str, list[Sample]] = {metric.name: [] for metric in metrics}
    for side in (first, second):
        gave = run(side)
        for name, value in _values(gave, side, metrics).items():
            taken[name].append(Sample(pair=pair, side=side, process=gave.process, value=value))
    return taken


def _values(gave: Run, side: Side, metrics: Sequence[Metric]) -> Mapping[str, float]:
    values = {}
    for metric in metrics:
        if metric.name not in gave.metrics:
            reported = ", ".join(sorted(gave.metrics.keys() - {WALL, CPU}))
            raise SettingsError(
                f"the {side.value} reported no metric {metric.name!r}: "
                + (f"it reported {reported}" if reported else "it reported nothing")
                + ". A program reports by dtf_lightning.farm.report(latency=0.3), or by a line of JSON in a file *.jsonl in "
                "$DTF_FARM_RESULTS"
            )
        values[metric.name] = checked(gave.metrics[metric.name], f"{metric.name} of the {side.value}", 0)
    return values


def _next_look(
    metrics: Sequence[Metric], plan: Plan, seed: str, samples: Mapping[str, list[Sample]], told: Callable[[str], object]
) -> int:
    """Pairs at the next look; 0 if all metrics are decided."""
    wanted = 0
    for metric in metrics:
        comparison = _comparison(metric, plan, seed, samples[metric.name])
        now = progress(comparison.differences, plan)
        if now.looks:
            told(
                f"{metric.name}: {now.looks[-1].num_pairs} pairs, {now.state.value if now.state else 'not decided yet'}"
            )
        if now.state is None:
            wanted = max(wanted, now.next_look)
    return wanted


def _comparison(metric: Metric, plan: Plan, seed: str, samples: Sequence[Sample]) -> Comparison:
    return Comparison(
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        plan=plan,
        seed=seed,
        samples=tuple(samples),
    )
