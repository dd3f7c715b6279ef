"""`dtf farm results changes`: steps and drifts in what the farm's tasks have reported so far."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table

if TYPE_CHECKING:
    from dtf_lightning.farm.verdicts.history.review import Reviewed

_SQL = """
    SELECT coalesce(nullif(name, ''), array_to_string(command, ' ')) AS test, value, ended
    FROM (
        SELECT results.name, results.command, metrics.value, results.ended, results.task
        FROM farm.metrics JOIN farm.results USING (task)
        WHERE metrics.name = '{metric}' AND outcome = 'completed' AND ended IS NOT NULL AND coalesce(reused_from, '') = ''
        ORDER BY ended DESC, task LIMIT 10000
    ) ORDER BY ended, task
"""


def add_changes(kinds: Commands) -> None:
    """Add the command to those of `dtf farm results`."""
    changes = add_farm_command(kinds, "changes", _changes, "steps and drifts in a metric of all tasks, by their names")
    changes.add_argument("metric", metavar="NAME:UNIT", help="such as latency:ms, or items:1/s")
    add_json(changes)
    add_farm(changes)


def _changes(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.verdicts.metrics import Metric

    metric = Metric.parse(arguments.metric)
    with connect(arguments) as farm:
        answer = farm.query(_SQL.format(metric=metric.name.replace("'", "''")))
    reviewed = _review(answer["rows"], metric.name, metric.unit, metric.higher_is_better)
    if arguments.json:
        print(json.dumps([_shown(test, ended, one) for test, ended, one in reviewed], allow_nan=False))
        return DONE
    if not reviewed:
        print(f"dtf farm: no task has reported {metric.name!r} twice", file=sys.stderr)
    print_table(
        ("TASK", "RUNS", "NOISE", "VISIBLE", "LAST STEP", "SINCE (UTC)", "DRIFT"),
        [_row(test, ended, one) for test, ended, one in reviewed],
    )
    return DONE


def _review(
    rows: Sequence[Sequence[Any]], metric: str, unit: str, higher_is_better: bool
) -> list[tuple[str, list[str], Reviewed]]:
    """Each test with the ends of its runs and what they tell. Raises `SettingsError` for values that are no numbers above 0."""
    from dtf_lightning.farm.verdicts.history.review import review
    from dtf_lightning.farm.verdicts.series import Series

    values: dict[str, list[float]] = {}
    ends: dict[str, list[str]] = {}
    for test, value, ended in rows:
        values.setdefault(test, []).append(float("nan") if value is None else float(value))
        ends.setdefault(test, []).append(str(ended))
    tests = [test for test in sorted(values) if len(values[test]) >= 2]
    series = []
    for test in tests:
        try:
            series.append(Series.of(metric, values[test], unit, higher_is_better=higher_is_better))
        except SettingsError as error:
            raise SettingsError(f"{test}: {error}") from error
    return list(zip(tests, [ends[test] for test in tests], review(series), strict=True))


def _shown(test: str, ended: Sequence[str], one: Reviewed) -> dict[str, Any]:
    return {
        "task": test,
        "runs": len(one.series.values),
        "sigma": one.floor.sigma,
        "smallest_visible": one.floor.smallest_visible,
        "steps": [{"run": step.onset, "ended": ended[step.onset], "log_ratio": step.log_ratio} for step in one.steps],
        "drift": one.drift.log_ratio if one.drift is not None and one.drift.found else None,
    }


def _row(test: str, ended: Sequence[str], one: Reviewed) -> tuple[str, ...]:
    from dtf_lightning.farm.verdicts.series import percent

    step = since = ""
    if one.steps:
        last = one.steps[-1]
        step = f"{abs(percent(last.log_ratio)):.1f} % {'worse' if last.log_ratio > 0 else 'better'}"
        since = ended[last.onset]
    drift = one.drift.sentence if one.drift is not None and one.drift.found else ""
    return (
        test, str(len(one.series.values)), f"{percent(one.floor.sigma):.2g} %", f"{100 * one.floor.smallest_visible:.2g} %",
        step, since, drift,
    )  # fmt: skip
