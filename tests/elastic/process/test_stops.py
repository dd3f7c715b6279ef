"""One worker stops by itself: the run ends in words, or all stop where it did. Nobody waits for ever."""

from __future__ import annotations

import pytest

from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

HOOKS = {
    "mid_epoch": ("on_train_batch_end", 5, {}),
    "with_checkpoints": ("on_train_batch_end", 5, {"checkpoint_every": 5, "callbacks": ("lr_monitor",)}),
    "epoch_end": ("on_validation_end", 17, {}),
}


def training(hook: str, step: int, stop: str, options: dict) -> Training:
    callbacks = (f"stops_alone:{hook}:{step}", *options.get("callbacks", ()))
    return Training(stop=stop, **{**options, "callbacks": callbacks})


def test_stopped_apart(make_run):
    """The message names who stopped, at which step and why, and the line to write; both nodes end by it.

    Three runs at once, which stop in three places: each stands still for five seconds before it is ended.
    """
    runs = {
        place: make_run(training(hook, step, "together", options), **exactly(2))
        for place, (hook, step, options) in HOOKS.items()
    }
    for run in runs.values():
        run.start("a", "b")
    for place, run in runs.items():
        run.wait_until_over(failed=2)
        for name in "ab":
            text = run.nodes[name].log()
            step = HOOKS[place][1]
            assert f"stopped (worker 0 after step {step}: trainer.should_stop was set)" in text, place
            assert 'ElasticCallback(stop="any")' in text, place
        assert run.results() == {}, place


@pytest.mark.parametrize(("hook", "step", "options"), HOOKS.values(), ids=HOOKS)
def test_all_stop_with_the_first(make_run, hook, step, options):
    """`stop="any"`: same step, same weights, on both; what was trained was trained once."""
    run = make_run(training(hook, step, "any", options), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, complete=False)
    assert {result["same"]["global_step"] for result in run.results().values()} == {step}
