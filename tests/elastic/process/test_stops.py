"""One worker stops by itself: the run ends in words, or all stop where it did. Nobody waits for ever."""

from __future__ import annotations

import pytest

from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

HOOKS = [
    pytest.param("on_train_batch_end", 5, {}, id="mid_epoch"),
    pytest.param("on_train_batch_end", 5, {"checkpoint_every": 5, "callbacks": ("lr_monitor",)}, id="with_checkpoints"),
    pytest.param("on_validation_end", 17, {}, id="epoch_end"),
]


def training(hook: str, step: int, stop: str, options: dict) -> Training:
    callbacks = (f"stops_alone:{hook}:{step}", *options.get("callbacks", ()))
    return Training(stop=stop, **{**options, "callbacks": callbacks})


@pytest.mark.parametrize(("hook", "step", "options"), HOOKS)
def test_stopped_apart(make_run, hook, step, options):
    """The message names who stopped, at which step and why, and the line to write; both nodes end by it."""
    run = make_run(training(hook, step, "together", options), **exactly(2))
    run.start("a", "b")
    run.wait_until_over(failed=2)
    for name in "ab":
        text = run.nodes[name].log()
        assert f"stopped (worker 0 after step {step}: trainer.should_stop was set)" in text
        assert 'ElasticCallback(stop="any")' in text
    assert run.results() == {}


@pytest.mark.parametrize(("hook", "step", "options"), HOOKS)
def test_all_stop_with_the_first(make_run, hook, step, options):
    """`stop="any"`: same step, same weights, on both; what was trained was trained once."""
    run = make_run(training(hook, step, "any", options), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, complete=False)
    assert {result["same"]["global_step"] for result in run.results().values()} == {step}
