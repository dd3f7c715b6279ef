"""Joins, leaves, failures without a death, and several of them at once."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.testkit.faults import Fault, held_mark
from support.cells import rest
from support.elastic.run import PATIENCE, exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

ALL_CALLBACKS = ("early_stopping", "lr_monitor", "ema", "best")
OPEN_END = Training(until_stopped=True, callbacks=("ema",))


# --- several at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [
        Fault(at="forming", rank=0, generation=2),
        Fault(at="forming", rank=2, generation=2),
        Fault(at="forward", rank=0, generation=2),
        Fault(at="backward", rank=1, generation=2),
    ],
    ids=lambda fault: f"{fault.at.value}-{fault.rank}",
)
def test_two_deaths_in_a_row(make_run, second):
    """Rank 0 of four dies, then another while the next world forms, or in its first step."""
    run = make_run(Training(faults=(Fault(at="backward", step=4, rank=0), second)), **exactly(4))
    run.start("a", "b", "c", "d")
    run.wait_until_over(failed=2)
    run.check(survivors=2, epochs=2)


def test_all_but_one_die(make_run):
    """Two of three die in the same step; the third goes on alone."""
    run = make_run(**exactly(3))
    both = str(run.folder / "both")
    run.training = Training(
        batch_norm=False,
        faults=tuple(
            fault
            for rank in (0, 2)
            for fault in (
                Fault(at="forward", step=4, rank=rank, action="hold", until=both),  # the one waits for the other
                Fault(at="forward", step=4, rank=rank),
            )
        ),
    )
    run.start("a", "b", "c")
    poll_until(lambda: all(held_mark(both, rank).exists() for rank in (0, 2)), PATIENCE, "both to be in the step")
    run.release("both")
    run.wait_until_over(failed=2)
    run.check(survivors=1, epochs=2)


# --- planned ---------------------------------------------------------------------------------------------------------


def test_join(make_run):
    """A third worker comes in mid-training: it holds what the others hold, and takes its share."""
    run = make_run(OPEN_END)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.start("c")
    run.wait_for_world(3, after=before)
    run.stop()
    run.wait_until_over()
    run.check(survivors=3)


def test_everybody_configures_for_the_world_in_which_the_run_began(make_run):
    """A learning rate scaled by `world_size` and a closure over `estimated_stepping_batches`: both look at the world in
    `configure_optimizers`, which every worker calls alone, the first one for a world of one, a joiner for one of three.
    """
    run = make_run(replace(OPEN_END, schedule="lambda", max_epochs=10_000), min_nodes=2)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.start("c")
    run.wait_for_world(3, after=before)
    run.stop()
    run.wait_until_over()
    run.check(survivors=3)  # among it: the same learning rate and the same weights
    scaled = [result["same"]["lr"] for result in run.results().values()]
    assert scaled[0] == pytest.approx(2e-3, rel=0.01)  # two workers began


def test_join_during_validation(make_run):
    """A worker is ready to join while the others validate: it comes in at the next step boundary."""
    run = make_run(min_nodes=3)
    held = Fault(at="validation", step=11, rank=0, action="hold", until=str(run.folder / "go"))
    run.training = Training(faults=(held,), callbacks=ALL_CALLBACKS)
    run.start("a", "b", "c")
    run.wait_for_held("go", 0)
    run.start("d")
    run.wait_for(lambda view: view.directive is not None and view.directive.boundary, "the stop")
    run.release("go")
    run.wait_until_over()
    run.check(survivors=4, epochs=2)
    assert [event.step for event in run.rescales() if event.world_size == 4 and event.rank == 0] == [13]


@pytest.mark.parametrize("rank", [0, 1])
def test_leave_during_validation(make_run, tmp_path, rank):
    """A worker is asked to leave while it validates: it finishes that, and goes at a step boundary."""
    faults = (
        Fault(at="validation", step=11, rank=rank, action="leave"),
        Fault(at="validation", step=11, rank=2, action="hold", until=str(tmp_path / "go")),
    )
    run = make_run(Training(faults=faults, callbacks=ALL_CALLBACKS), **exactly(3))
    run.start("a", "b", "c")
    run.wait_for(lambda view: view.directive is not None and view.directive.leaving, "the stop")
    (tmp_path / "go").touch()
    run.wait_until_over()
    run.check(survivors=2, epochs=2)


@pytest.mark.parametrize("leaver", ["leader", "other"])
def test_leave_on_sigterm(make_run, leaver):
    """SIGTERM to a node's agent, the leader's among them: exit code 0, the others go on."""
    run = make_run(OPEN_END)
    run.start("a", "b")
    before = run.wait_for_world(2)
    leads = run.wait_for(lambda view: view.leader is not None, "a leader").leader.node
    name = next(n for n in run.nodes if (n == leads) == (leaver == "leader"))
    run.nodes[name].send(signal.SIGTERM)
    run.wait_for_world(1, after=before)
    run.stop()
    run.wait_until_over()
    run.check(survivors=1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(at="receiving", generation=2, action="kill"),
        Fault(at="checkpoint_save", rank=0, generation=1, action="kill"),
        Fault(at="forming", rank=2, generation=2, action="kill"),
        Fault(at="train_start", rank=2, generation=2, action="kill"),
    ],
    ids=lambda fault: fault.at.value,
)
def test_death_while_joining(make_run, fault):
    """The joiner dies while it forms, receives or begins; or one that packs its state for it, at the agreed boundary."""
    training = Training(until_stopped=True, faults=(fault,), callbacks=("ema",))
    run = make_run(training, min_nodes=2)
    run.start("a", "b")
    before = run.wait_for_world(2)
    run.start("c")
    run.wait_for_world(2, after=before)
    run.stop()
    run.wait_until_over(failed=1)
    run.check(survivors=2)


# --- failures without a death ----------------------------------------------------------------------------------------


FAILURES = [
    rest("forward", 4, "fail", 0, {}),
    ("forward", 4, "lag", 1, {}),
    rest("before_optimizer_step", 4, "lag", 0, {}),
    ("after_optimizer_step", 4, "fail", 1, {}),
    ("batch_end", 5, "lag", 0, {}),
    rest("validation", 17, "fail", 1, {}),
    ("validation", 17, "lag", 0, {}),
    rest("epoch_end", 17, "fail", 1, {}),
    ("epoch_end", 17, "fail", 0, {"schedule": "plateau"}),
    rest("forward", 19, "fail", 1, {"schedule": "plateau"}),
    rest("epoch_end", 34, "lag", 0, {}),
    ("backward", 2, "fail", 1, {"accumulate": 3}),
    ("before_optimizer_step", 2, "lag", 0, {"accumulate": 3}),
    ("validation", 4, "fail", 1, {"val_check_interval": 0.25}),
    rest("forward", 19, "fail", 0, {"schedule": "epoch"}),
    ("epoch_end", 17, "lag", 1, {"schedule": "epoch"}),
    rest("epoch_end", 17, "lag", 0, {"schedule": "plateau"}),
    rest("epoch_end", 17, "lag", 1, {"schedule": "plateau", "callbacks": ()}),
    rest("validation", 17, "fail", 0, {"schedule": "plateau"}),
    rest("before_optimizer_step", 4, "lag", 1, {}),
    rest("batch_end", 5, "lag", 1, {}),
]


@pytest.mark.parametrize(("at", "step", "action", "rank", "options"), FAILURES)
def test_failure_without_a_death(make_run, undisturbed, at, step, action, rank, options):
    """A collective fails on one rank, alone ("lag": its peers are ahead then). All go on: as if nothing had happened."""
    calm = Training(**{"dropout": 0.0, "batch_norm": False, "callbacks": ALL_CALLBACKS, **options})
    # Two workers: a + b is b + a to the last bit, whatever way gloo adds.
    expected = undisturbed(calm, 2)
    run = make_run(replace(calm, faults=(Fault(at=at, step=step, rank=rank, action=action),)), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
    same = next(iter(run.results().values()))["same"]
    assert {key: (same[key], value) for key, value in expected.items() if same[key] != value} == {}


def test_a_step_of_one_rank_alone(make_run, tmp_path):
    """A hook behind one rank's optimizer step fails, and the other has not stepped: the step is kept, by both.

    So is what the other one has gathered in it: its samples do not come again.
    """
    held = Fault(at="after_backward", step=4, rank=0, action="hold", until=str(tmp_path / "go"))
    failing = Fault(at="after_optimizer_step", step=4, rank=1, action="fail")
    run = make_run(Training(faults=(held, failing), recipe="gathers_outputs", max_epochs=1), **exactly(2))
    run.start("a", "b")
    run.wait_for_held(tmp_path / "go", 0)
    run.wait_for_log("a", "members go on", of_agent=True)
    run.wait_for_log("b", "members go on", of_agent=True)
    run.release(tmp_path / "go")
    run.wait_until_over()
    run.check(survivors=2, epochs=1)
    assert [result["own"]["metrics"]["num_outs"] for result in run.results().values()] == [34] * 2  # 17 steps


def test_frozen_worker(make_run):
    """A worker is stopped by SIGSTOP in mid-step: its agent ends it after `heartbeat_timeout`, the others go on."""
    run = make_run(
        Training(faults=(Fault(at="backward", step=4, rank=1, action="freeze"),)),
        **exactly(3),
    )
    run.start("a", "b", "c")
    codes = run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    (frozen,) = (run.nodes[name] for name, code in codes.items() if code)
    assert "worker 0 is frozen: nothing heard from it for 10 s" in frozen.agent_log()


@pytest.mark.parametrize("at", ["validation", "epoch_end"])
def test_a_newcomer_that_comes_at_the_end_of_an_epoch(make_run, at):
    """Two are needed, one dies when the epoch's batches are done, and the next one logs nothing in it: nobody waits."""
    run = make_run(Training(faults=(Fault(at=at, step=17, rank=1),)), min_nodes=2, **exactly(2))
    run.start("a", "b", num_restarts=1)
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
    assert all("loss_epoch" in result["own"]["metrics"] for result in run.results().values())


@pytest.mark.parametrize("at", ["forward", "validation", "data_loading"])
def test_user_exception(make_run, at):
    """The user's code raises on one rank: its node fails with that traceback, the others go on."""
    step = {"forward": 4, "validation": 11, "data_loading": 16}[at]
    run = make_run(Training(faults=(Fault(at=at, step=step, rank=1, action="raise"),)), **exactly(3))
    run.start("a", "b", "c")
    codes = run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    failed = next(name for name, code in codes.items() if code)
    assert "dtf_lightning.elastic.testkit.faults.FaultInjected" in run.nodes[failed].log()


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_agent_dies(make_run):
    """kill -9 of an agent alone: its worker ends itself, nobody is orphaned, the others go on."""
    run = make_run(OPEN_END)
    run.start("a", "b", "c")
    before = run.wait_for_world(3)
    (orphan,) = map(psutil.Process, run.nodes["b"].worker_pids())
    run.nodes["b"].kill_agent()
    run.wait_for_world(2, after=before)
    psutil.wait_procs([orphan], timeout=PATIENCE)
    assert not orphan.is_running()
    run.stop()
    assert run.wait_until_over(failed=1)["b"] == -signal.SIGKILL
    run.check(survivors=2)


@pytest.mark.parametrize("victim", ["leader", "other"])
def test_node_dies(make_run, victim):
    """A whole node is gone at once, the leader's among them: another agent takes over."""
    run = make_run(OPEN_END)
    run.start("a", "b", "c")
    before = run.wait_for_world(3)
    leads = run.wait_for(lambda view: view.leader is not None, "a leader").leader.node
    name = next(n for n in run.nodes if (n == leads) == (victim == "leader"))
    (worker,) = map(psutil.Process, run.nodes[name].worker_pids())
    run.nodes[name].kill_agent()
    worker.kill()
    run.wait_for_world(2, after=before)
    run.stop()
    run.wait_until_over(failed=1)
    run.check(survivors=2)


def test_sibling_dies(make_run):
    """Nodes of two workers: one worker's death takes its whole node out; restarted, both come back as joiners."""
    fault = Fault(at="backward", step=4, rank=1)
    run = make_run(Training(until_stopped=True, batch_norm=False, faults=(fault,)), **exactly(2))
    run.start("a", "b", num_workers=2, num_restarts=1)
    run.wait_for_world(4, after=2)
    run.stop()
    run.wait_until_over()
    run.check(survivors=4)
    assert Counter(event.world_size for event in run.rescales())[2] == 2


# --- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "cycles"), [(6, 4), rest(26, 12)])
def test_rescales_leak_nothing(make_run, failures, cycles):
    """Failures without a death, then joins that end in a death or a leave: two workers hold what they held after the first.

    14 rescales by default, 50 in `make test-matrix`.
    """
    faults = tuple(
        Fault(at="batch_end", step=step, rank=0, generation=None, action="fail")
        for step in range(5, 5 + failures * 2, 2)
    )
    run = make_run(
        Training(until_stopped=True, faults=faults, validates=False),
        min_nodes=2,
        max_consecutive_failures=1000,
        failure_tolerance=99,
    )
    run.start("a", "b")
    generation = run.wait_for_world(2, after=failures)
    pids = [pid for node in ("a", "b") for pid in run.nodes[node].worker_pids()]
    early = None
    for cycle in range(cycles):
        name = f"n{cycle}"
        run.start(name, training=Training(until_stopped=True, validates=False))
        generation = run.wait_for_world(3, after=generation)
        if cycle % 2:
            run.nodes[name].send(signal.SIGTERM)
        else:
            psutil.Process(run.nodes[name].worker_pids()[0]).kill()
        generation = run.wait_for_world(2, after=generation)
        if early is None:
            early = [weigh(pid) for pid in pids]

    def is_as_light(early):
        """Threads and sockets of a generation that is over take a moment to go."""
        pairs = zip((weigh(pid) for pid in pids), early, strict=True)
        return all(late <= before for (*now, _), (*then, _) in pairs for late, before in zip(now, then, strict=True))

    poll_until(
        lambda: is_as_light(early), PATIENCE, lambda: f"{[weigh(pid) for pid in pids]} to be no more than {early}"
    )
    late = [weigh(pid) for pid in pids]
    run.stop()
    assert [run.wait_until_over(failed=cycles // 2)[name] for name in ("a", "b")] == [0, 0]
    run.check(survivors=2)
    for (*_, memory), (*_, memory_now) in zip(early, late, strict=True):
        assert memory_now < memory + (8 << 20)


def weigh(pid):
    process = psutil.Process(pid)
    return process.num_fds(), process.num_threads(), process.memory_info().rss
