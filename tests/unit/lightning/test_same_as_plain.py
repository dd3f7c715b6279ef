"""An elastic run of one that nothing disturbs does exactly what plain Lightning does."""

from __future__ import annotations

from pathlib import Path

from support.run_of_one import RunOfOne, assert_same_training, fit


def test_undisturbed(tmp_path: Path, run: RunOfOne) -> None:
    """Lightning's defaults, three epochs: equal losses, weights, hooks and metrics."""
    plain = fit(tmp_path, elastic=False)
    elastic = fit(tmp_path, elastic=True, run=run)
    assert_same_training(elastic, plain)
    assert elastic.trace == plain.trace
    assert run.kinds() == ["hello", "ready", "active", "finished"]
