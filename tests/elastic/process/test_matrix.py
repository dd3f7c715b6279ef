"""Lightning's callbacks and strategies in real processes, through each event at each place: members are equal at every step.

What an event is, and where it happens, is data; `matrix.scripts` has the groups that go through. By default each group meets
one event at one place, and each event and each place is met by two groups or more; `make test-matrix` runs every cell.
"""

from __future__ import annotations

from typing import Any

import pytest

from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.testkit.faults import Action, Fault, Phase
from support.elastic.matrix.scripts import SCRIPTS, differences, logged_steps
from support.elastic.matrix.table import EVENTS, PLACES
from support.elastic.run import ElasticRun, exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

SAMPLES, BATCH, EPOCHS, SAVE_EVERY = 72, 4, 3, 3
PHASES = {
    "step": Phase.FORWARD, "validation": Phase.VALIDATION, "epoch end": Phase.EPOCH_END, "save": Phase.CHECKPOINT_SAVE,
}  # fmt: skip


def cells(*, sampled: bool) -> list[Any]:
    """Scripts, events and places: those that are run by default, or the others."""
    found = []
    for row, script in enumerate(SCRIPTS):
        for column, place in enumerate(PLACES):
            for number, event in enumerate(EVENTS):
                chosen = (row + row // len(PLACES)) % len(EVENTS) == number and row % len(PLACES) == column
                if chosen is sampled:
                    found.append(pytest.param(script, event, place, id=f"{script}-{event}-{place}"))
    return found


def fault(place: str, world: int, **how: Any) -> Fault:
    """In the first epoch, or at its end."""
    per_epoch = SAMPLES // BATCH // world
    return Fault(at=PHASES[place], step={"step": 4, "save": SAVE_EVERY}.get(place, per_epoch), **how)


def train_through(run: ElasticRun, training: dict[str, Any], event: str, place: str) -> set[int]:
    """Train while this happens; returns the processes that were killed."""
    if event == "join":
        return join(run, training, place)
    action = Action.KILL if event == "kill -9" else Action.LEAVE
    # A death of rank 0 at every second place: it is the one that validates last, logs and saves.
    rank = PLACES.index(place) % 2 if event == "kill -9" else int(event == "leave")
    run.training = Training(**training, faults=(fault(place, 3, rank=rank, action=action),))
    run.start("a", "b", "c")
    run.wait_until_over(failed=int(action is Action.KILL))
    return {node.worker_pids()[0] for node in run.nodes.values() if node.exit_codes()[0] == -9}


def join(run: ElasticRun, training: dict[str, Any], place: str) -> set[int]:
    """Two train; at the place the first one waits until the third has been let in, and goes on from there."""
    there, comes = str(run.folder / "there"), str(run.folder / "comes")
    late = Training(**training, faults=(Fault(at="setup", action="hold", until=comes),))
    run.training = Training(**training, faults=(fault(place, 2, rank=0, action="hold", until=there),))
    run.start("a", "b")
    run.wait_for_held("there", 0)
    run.start("c", training=late)
    run.release("comes")
    run.wait_for(lambda view: view.directive is not None and view.directive.kind is DirectiveKind.PREPARE, "the join")
    run.release("there")
    run.wait_until_over()
    return set()


def go_through(make_run: Any, script: str, event: str, place: str) -> None:
    training: dict[str, Any] = {
        "script": script, "num_samples": SAMPLES, "batch_size": BATCH, "max_epochs": EPOCHS, "num_validated": 24,
        "checkpoint_every": SAVE_EVERY, **SCRIPTS[script].training,
    }  # fmt: skip
    run = make_run(**{"min_nodes": 2, "max_nodes": 3} if event == "join" else exactly(3))
    killed = train_through(run, training, event, place)
    assert differences(run.folder, without=killed) == []
    run.check(survivors=3 if event == "join" else 2, epochs=EPOCHS + SCRIPTS[script].extra_epochs)
    num_steps = next(iter(run.results().values()))["same"]["global_step"]
    steps = [step for step in logged_steps(run.folder) if step < num_steps]  # those of an extra epoch have no number
    assert steps == list(range(num_steps))


@pytest.mark.parametrize(("script", "event", "place"), cells(sampled=True))
def test_members_are_equal(make_run, script, event, place):
    """Weights, optimizer, schedulers and callbacks after every step, validation and epoch; every sample and row once."""
    go_through(make_run, script, event, place)


@pytest.mark.matrix
@pytest.mark.parametrize(("script", "event", "place"), cells(sampled=False))
def test_every_other_cell(make_run, script, event, place):
    """The rest of the matrix, for `make test-matrix`."""
    go_through(make_run, script, event, place)
