"""A joiner is what the survivors are, whatever the script does with checkpoints and parameters; or it is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from support.elastic.run import ElasticRun, exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

OPEN_END = Training(until_stopped=True, batch_norm=False, validates=False)


def joined(run: ElasticRun, *, steps: int = 4) -> None:
    """Two workers train some steps, a third comes."""
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.wait_for_draws(2 * steps)
    run.start("c")
    run.wait_for_world(3, after=before)
    run.wait_for_steps(6)
    run.stop()
    run.wait_until_over()


@pytest.mark.parametrize("recipe", ["saves_average", "saves_without_first_layer", "gathers"])
def test_checkpoint_hooks_change_nothing(make_run, recipe):
    """A hook puts an average in the place of the weights, `state_dict` leaves some out, a hook gathers from all ranks."""
    run = make_run(replace(OPEN_END, recipe=recipe))
    joined(run)
    run.check(survivors=3, complete=False)


def test_groups_that_a_callback_has_added(make_run):
    """`BackboneFinetuning` has unfrozen the backbone and given it a group of its own when the joiner comes."""
    run = make_run(replace(OPEN_END, recipe="backbone", num_samples=64))
    joined(run, steps=40)
    run.check(survivors=3, complete=False)
    assert {result["same"]["num_groups"] for result in run.results().values()} == {2}


@pytest.mark.parametrize(("recipe", "reason"), [
    ("hook_raises", "ZeroDivisionError: in the user's hook"), ("does_not_pickle", "cannot pickle '_thread.lock' object"),
])  # fmt: skip
def test_state_that_cannot_be_packed(make_run, recipe, reason):
    """The joining node is refused with the reason and exit code 1, does not begin at step 0, and the run goes on to its end."""
    run = make_run(replace(OPEN_END, recipe=recipe), min_nodes=2)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.start("c", num_workers=2)
    after = run.wait_for_world(2, after=before + 1)
    run.wait_for_steps(6)
    run.stop()
    codes = run.wait_until_over(failed=1)
    assert codes == {"a": 0, "b": 0, "c": 1}
    assert after == before + 2  # one with the joiner, which trained nothing, one without
    # The first of the node's two workers to end takes the other one with it, which may not have said it yet.
    said = "".join(run.nodes["c"].log(local_rank) for local_rank in range(2))
    assert "may not join: the state of the run could not be packed on" in said
    assert reason in said
    assert reason in run.nodes["a"].log()
    # Whose state it would have been says it; the other one may hear first from its agent that the generation is over.
    assert "c/0, c/1 may not join" in run.nodes["a"].log() + run.nodes["b"].log()
    run.check(survivors=2, complete=False)


def test_a_joiner_that_cannot_load(make_run):
    """Its own hook raises: it ends with the hook's error, and the others, who have sent it their state, go on."""
    run = make_run(replace(OPEN_END, recipe="load_raises"), min_nodes=2)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.start("c")
    run.wait_for_world(2, after=before + 1)
    run.stop()
    assert run.wait_until_over(failed=1) == {"a": 0, "b": 0, "c": 1}
    said = (
        "this worker (c/0) could not take over the run's state, and may not join: ZeroDivisionError: in the user's hook"
    )
    assert said in run.nodes["c"].log()
    run.check(survivors=2, complete=False)


@pytest.mark.parametrize(("recipe", "accumulate"), [("unfreezes", 1), ("unfreezes_in_mid_step", 2)])
def test_parameters_that_are_unfrozen(make_run, recipe, accumulate):
    """Trained from the second epoch, or from a micro-batch of the first on: the two ranks, whose gradients differ, end with
    the same weights.
    """
    training = replace(OPEN_END, until_stopped=False, max_epochs=2, recipe=recipe, accumulate=accumulate)
    run = make_run(training, min_nodes=2)
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
    assert "4 of 4 parameters are trained from here on (network.0.weight and 1 more changed)" in run.nodes["a"].log()


def test_a_joiner_that_differs(make_run):
    """A hook changes what the joiner has received: it is refused by name before a step is trained, the others go on."""
    run = make_run(replace(OPEN_END, recipe="joiner_starts_anew"), min_nodes=2)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.wait_for_steps(4)
    run.start("c")
    run.wait_for_world(2, after=before + 1)
    run.wait_for_steps(6)
    run.stop()
    assert run.wait_until_over(failed=1) == {"a": 0, "b": 0, "c": 1}
    assert "parameter network.0.bias" in run.nodes["c"].log()
    assert "this worker may not join: c/0 holds another state than" in run.nodes["c"].log()
    run.check(survivors=2, complete=False)


def test_parameters_that_one_rank_alone_unfreezes(make_run):
    """It ends with a sentence that names parameter and step; the other one goes on without it."""
    run = make_run(replace(OPEN_END, until_stopped=False, max_epochs=2, recipe="unfreezes_on_rank_zero"), **exactly(2))
    run.start("a", "b")
    run.wait_until_over(failed=1)
    run.check(survivors=1, epochs=2)
    logs = run.nodes["a"].log() + run.nodes["b"].log()
    assert "has frozen or unfrozen network.0.weight at step 17, and the others have not within 1.8 s" in logs


def test_a_worker_that_drifts(make_run):
    """`verify_every_n_steps` puts out the one of three whose weight was changed, before another step is trained."""
    run = make_run(replace(OPEN_END, until_stopped=False, max_epochs=2, recipe="drifts", verify_every=1), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    logs = [node.log() for node in run.nodes.values()]
    assert sum("StateDiffers" in log and "differs from" in log for log in logs) == 1
    # The two others say it as well, unless they hear from their agents that it has ended before they have compared.
    go_on = [log for log in logs if "Training goes on without" in log]
    assert all("parameter network.0.bias" in log for log in go_on)
    agents = "".join(node.agent_log() for node in run.nodes.values())
    assert re.search(r"fail: .#1 failed \(.*StateDiffers.*parameter network\.0\.bias", agents), agents
