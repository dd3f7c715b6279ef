"""Whole agents, fake workers: what a run's nodes and workers see of joins, leaves, deaths and ends."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from dtf_lightning.clock import SystemClock, poll_until
from dtf_lightning.elastic.agent.exit import ExitReason
from dtf_lightning.elastic.agent.live import agent as live_agent
from dtf_lightning.elastic.agent.live.admission import Admission
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.records import WorkerState
from dtf_lightning.elastic.run.keys import Fingerprint, RunInfo, RunKeys, RunPhase, RunView
from dtf_lightning.elastic.run.status import request_drain
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.errors import DtfError, RunAborted, RunRefused
from support.elastic.agents import PATIENCE, STORE_PORT, FakeWorker, HeldClock, members


def test_first_generation(cluster):
    """Two nodes with two workers each: provisional ranks without a gap, then the real ones, on the first node's store."""
    a, b = cluster.node("a", 2), cluster.node("b", 2)
    assert [(w.rank, w.world_size, w.joiner) for w in a.welcomes] == [(0, 2, False), (1, 2, False)]
    assert [(w.rank, w.world_size, w.joiner) for w in b.welcomes] == [(2, 4, False), (3, 4, False)]
    cluster.all_ready(a, b)
    assigned = [worker.expect(messages.Assign) for worker in (*a.workers, *b.workers)]
    assert [(x.rank, x.world_size) for x in assigned] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    generation = assigned[0].generation
    assert (generation["store_host"], generation["store_port"]) == ("127.0.0.1", STORE_PORT)
    assert generation["kind"] == "start"


def test_join(cluster):
    """A third node comes: the others stop at one boundary, all three are in generation 2, survivors keep their ranks."""
    a, b = cluster.training("a", "b")
    c = cluster.node("c")
    assert c.welcomes[0].joiner
    assert c.welcomes[0].rank >= 2
    c.worker.ready()
    stops = [node.worker.stop_at_boundary() for node in (a, b)]
    assert [(stop.boundary, stop.leave) for stop in stops] == [(9, False), (9, False)]
    for node in (a, b, c):
        assert members(node.worker.train()) == ["a#1", "b#1", "c#1"]


@pytest.mark.parametrize("leaver", ["leader", "other"])
@pytest.mark.parametrize("how", ["signal", "drain", "worker"])
def test_leave(cluster, leaver, how):
    """A node leaves on a signal, on `dtf drain`, or because its worker was told to: at a boundary, nobody fails."""
    a, b = cluster.training("a", "b")
    leaving, staying = (a, b) if leaver == "leader" else (b, a)
    match how:
        case "signal":
            leaving.agent.leave("SIGTERM")
        case "drain":
            assert request_drain(cluster.store, cluster.run_id, leaving.name) == leaving.name
        case "worker":
            leaving.worker.say(messages.Leaving(reason="SIGTERM"))
    assert leaving.worker.stop_at_boundary().leave
    assert not staying.worker.stop_at_boundary().leave
    generation = staying.worker.train()
    assert (members(generation), generation.kind) == ([f"{staying.name}#1"], "leave")
    assert not generation.failures
    cluster.wait_for(lambda view: view.leader is not None and view.leader.node == staying.name)
    leaving.agent.close()
    assert list(cluster.wait_for(lambda view: leaving.name not in view.nodes).nodes) == [staying.name]


def test_a_leaver_that_is_slow_to_say_so_is_not_ended(cluster, monkeypatch):
    """The leaver's worker is still writing when the others are in their next generation: it says `Left`, and exits with 0."""
    monkeypatch.setattr(live_agent, "GOING_GRACE", 0.1)  # the workers have gone when it begins
    a, b = cluster.training("a", "b")
    b.agent.leave("SIGTERM")
    a.worker.stop_at_boundary()
    assert b.worker.expect(messages.Stop).leave
    assert members(a.worker.train()) == ["a#1"]
    # Its agent hears of generation 2 before this, because the key of its own record changes after the generation's.
    cluster.wait_for(lambda view: view.generation.number == 2)
    b.worker.say(messages.Happened(event={"at": 0.0, "text": "still writing"}))
    assert b.agent.exit_reason is None
    b.worker.say(messages.Left())
    b.worker.die()
    assert poll_until(lambda: b.agent.exit_reason, PATIENCE, "its exit") is ExitReason.LEFT
    with pytest.raises(SystemExit) as ended:
        poll_until(b.agent.check, PATIENCE, "its exit")
    assert (ended.value.code, b.worker.unread) == (0, 1)


def test_joiner_leaves_before_it_is_in(cluster):
    """SIGTERM on a node whose workers still set themselves up: it goes at once, the others never notice."""
    (a,) = cluster.training("a")
    b = cluster.node("b")
    b.agent.leave("SIGTERM")
    b.worker.expect(messages.Finish)
    b.worker.die()
    with pytest.raises(SystemExit) as exit_info:
        b.agent.await_start()
    assert exit_info.value.code == 0
    assert a.worker.unread == 0


def test_worker_dies(cluster):
    """A worker's end of file fails its whole node; the survivors unwind and go on without it."""
    a, b = cluster.training("a", "b")
    b.worker.die()
    assert "b#1 failed" in a.worker.unwind().reason
    generation = a.worker.train()
    assert (members(generation), generation.kind) == (["a#1"], "failure")
    assert [failure.member for failure in generation.failures] == ["b#1"]


def test_nobody_waits_until_a_dead_workers_memory_is_freed(cluster):
    """Its lifeline tells, its socket is still open: the survivors go on; its end, later, is no second failure."""
    a, b = cluster.training("a", "b")
    b.worker.hold_lifeline()
    b.worker.end_slowly()
    assert "b#1 failed (worker 0 (pid 0) is gone" in a.worker.unwind().reason
    generation = a.worker.train()
    assert [failure.member for failure in generation.failures] == ["b#1"]
    b.worker.die()
    b.start_workers()
    b.worker.ready()
    a.worker.stop_at_boundary()
    assert members(a.worker.train()) == members(b.worker.train()) == ["a#1", "b#2"]


def test_a_lifeline_that_ends_after_goodbye(cluster):
    """A worker that has left ends: no failure, whichever sign of its end comes first."""
    a, b = cluster.training("a", "b")
    b.worker.hold_lifeline()
    b.agent.leave("asked to")
    assert b.worker.expect(messages.Stop).leave
    a.worker.stop_at_boundary()
    b.worker.say(messages.Left())
    b.worker.end_slowly()
    generation = a.worker.train()
    assert (members(generation), generation.failures) == (["a#1"], ())
    with pytest.raises(SystemExit) as exit_info:
        b.agent.await_start()
    assert exit_info.value.code == 0


def test_siblings_end_with_a_dead_worker(cluster):
    """One of two workers dies: the agent ends the other, with everything in its process group."""
    (a,) = cluster.training("a")
    b = cluster.node("b", 2, real_pids=True)
    for worker in b.workers:
        worker.ready()
    a.worker.stop_at_boundary()
    a.worker.train()
    for worker in b.workers:
        worker.train()
    b.processes[0].kill()
    assert b.processes[1].wait(PATIENCE) == -9
    a.worker.unwind()
    assert members(a.worker.train()) == ["a#1"]


@pytest.mark.parametrize("victim", ["leader", "other"])
def test_node_goes_with_its_dead_worker(cluster, victim):
    """A worker dies and torchelastic gives up at once: the others read the worker's end, not that of its agent."""
    a, b = cluster.training("a", "b")
    dead, alive = (a, b) if victim == "leader" else (b, a)
    dead.worker.die()
    cluster.wait_for(lambda view: view.nodes[dead.name].state is WorkerState.FAILED)
    dead.agent.close()
    assert f"{dead.name}#1 failed (worker 0 (pid 0) is gone" in alive.worker.unwind().reason
    assert members(alive.worker.train()) == [f"{alive.name}#1"]


def test_workers_come_back(cluster):
    """torchelastic starts a dead node's workers anew: a new incarnation joins, the old id never comes back."""
    a, b = cluster.training("a", "b")
    b.worker.die()
    a.worker.unwind()
    a.worker.train()
    b.start_workers()
    assert (b.welcomes[0].incarnation, b.welcomes[0].joiner) == (2, True)
    b.worker.ready()
    a.worker.stop_at_boundary()
    assert members(a.worker.train()) == members(b.worker.train()) == ["a#1", "b#2"]


def test_worker_dies_of_its_own_error(cluster):
    """A worker that announces its end is out at once; its siblings get time, because the teardown takes a while."""
    a, b = cluster.training("a", "b")
    b.worker.say(messages.Dying(error="ValueError: bad batch\nTraceback ..."))
    assert "ValueError: bad batch" in a.worker.unwind().reason
    assert members(a.worker.train()) == ["a#1"]


def test_collective_fails_without_a_death(cluster):
    """A worker reports a broken collective: everybody unwinds and comes back, nobody is put out."""
    a, b = cluster.training("a", "b")
    b.worker.say(messages.Suspect(generation=1, error="Connection reset by peer"))
    for node in (a, b):
        node.worker.unwind()
    for node in (a, b):
        assert members(node.worker.train()) == ["a#1", "b#1"]


def test_death_while_forming(cluster):
    """A member dies after generation 2 was written and before it trains: generation 3 is formed without it."""
    a, b, c = cluster.training("a", "b", "c")
    c.worker.die()
    for node in (a, b):
        node.worker.unwind()
    assert members(a.worker.train()) == ["a#1", "b#1"]
    b.worker.die()
    assert a.worker.unwind().target == 3
    assert members(a.worker.train()) == ["a#1"]


def test_spare_is_promoted(make_cluster):
    """A node above max_nodes waits as a spare and says so; it comes in when a member leaves."""
    cluster = make_cluster(max_nodes=1)
    (a,) = cluster.training("a")
    b = cluster.node("b")
    b.worker.ready()
    cluster.wait_for(lambda view: view.status is not None and "b waits as a spare" in view.status.reason)
    a.agent.leave("SIGTERM")
    assert a.worker.stop_at_boundary().leave
    assert members(b.worker.train()) == ["b#1"]


def test_below_the_minimum(make_cluster):
    """The second of two needed nodes dies: the run pauses and says so; a new node resumes it."""
    cluster = make_cluster(min_nodes=2)
    a, b = cluster.training("a", "b")
    b.worker.die()
    a.worker.unwind()
    text = "1 of 2 nodes ready, paused after generation 1"
    assert cluster.wait_for(lambda view: view.status is not None and text in view.status.reason).status.paused
    c = cluster.node("c")
    c.worker.ready()
    assert members(a.worker.train()) == members(c.worker.train()) == ["a#1", "c#1"]


@pytest.mark.parametrize(
    ("fingerprint", "parameters", "difference"),
    [
        ({"seed": "2"}, ("w f32 [3]",), "setting 'seed' is '1' in the run and '2' on this node"),
        ({"seed": "1"}, ("w f32 [4]",), "parameter 0 is 'w f32 [3]' in the run and 'w f32 [4]' on this node"),
        ({"seed": "1"}, ("w f32 [3]", "b f32 [3]"), "the first that the other lacks: 'b f32 [3]'"),
    ],
)
def test_other_script_is_refused(cluster, fingerprint, parameters, difference):
    """A node with other settings or another model: it is told the first difference and goes; the run is not bothered."""
    a = cluster.node("a")
    a.worker.ready(parameters=("w f32 [3]",))
    a.worker.train()
    b = cluster.node("b")
    b.worker.ready(fingerprint=fingerprint, parameters=parameters)
    assert difference in b.worker.expect(messages.Refused).reason
    b.worker.die()
    with pytest.raises(RunRefused, match="may not join run"):
        b.agent.await_start()
    assert a.worker.unread == 0


def test_other_settings_are_refused(make_cluster):
    """A node started with another --nnodes is refused before its workers start, and the setting is named."""
    (a,) = make_cluster(max_nodes=4).training("a")
    with pytest.raises(RunRefused, match=r"'elastic\.max_nodes' is '4' in the run and '3'"):
        make_cluster(max_nodes=3).node("b")
    assert a.worker.unread == 0


def test_a_refusal_by_a_run_that_nobody_trains(store, run_id):
    """After all its nodes died the run can go on, with its own settings: nobody is said to go on without the newcomer."""
    keys = RunKeys(run_id)
    settings = {
        f"elastic.{name}": str(value) for name, value in asdict(ElasticSettings(min_nodes=1, max_nodes=4)).items()
    }
    store.put(keys.run, RunInfo(instance="i", max_nodes=4).encode())
    store.put(keys.fingerprint, Fingerprint(settings=settings).encode())
    view = RunView(keys)
    view.reset(store.range(keys.prefix))
    admission = Admission("b", ElasticSettings(min_nodes=1, max_nodes=3), SystemClock(), instance="i")
    admission.check_settings(view)
    assert "'4' in the run and '3' on this node. Nobody of the run is left" in admission.refusal


def test_finish(cluster):
    """All members finish: they, a joiner and a spare are told; a node that dies after it had finished is no failure."""
    a, b = cluster.training("a", "b")
    c = cluster.node("c")
    a.worker.say(messages.Finished(generation=1, step=10))
    cluster.wait_for(lambda view: view.nodes["a"].finished == 1)
    b.worker.say(messages.Finished(generation=1, step=10))
    for node in (a, b, c):
        node.worker.expect(messages.Finish)
    view = cluster.wait_for(lambda view: {record.state for record in view.nodes.values()} == {WorkerState.LEFT})
    assert view.run.phase is RunPhase.FINISHED
    cluster.wait_for(lambda view: view.leader is None)
    assert c.agent.exit_reason is ExitReason.LEFT


def test_a_worker_that_imports_while_the_run_finishes(cluster):
    """Its hello comes when the run is over: it is told so, instead of being welcomed; its end is no failure."""
    (a,) = cluster.training("a")
    b = cluster.agent("b")
    b.agent.await_start()
    b.agent.workers_starting(1)
    cluster.wait_for(lambda view: "b" in view.nodes)
    a.worker.say(messages.Finished(generation=1, step=10))
    a.worker.expect(messages.Finish)
    poll_until(lambda: b.agent.exit_reason is ExitReason.LEFT, PATIENCE, lambda: "b's agent never heard of the end")
    b.workers.append(FakeWorker(b.socket_path))
    assert "1 of 1 members finished" in b.worker.expect(messages.Finish).reason
    b.worker.die()
    assert b.agent.exit_reason is ExitReason.LEFT


def test_a_node_that_comes_after_training(cluster, caplog):
    """The others are at their scripts' rest: it goes home with 0 and a sentence, and begins no run under their feet."""
    (a,) = cluster.training("a")
    a.worker.say(messages.Finished(generation=1, step=10))
    a.worker.expect(messages.Finish)
    over = cluster.wait_for(lambda view: view.run.phase is RunPhase.FINISHED and view.leader is None).run
    b = cluster.agent("b")
    with caplog.at_level("WARNING"), pytest.raises(SystemExit) as left:
        b.agent.await_start()
    assert left.value.code == 0
    assert "has finished (1 of 1 members finished), and a still does what the script does after training" in caplog.text
    a.close()
    c = cluster.node("c")
    c.worker.ready()
    assert members(c.worker.train()) == ["c#1"], "once they have ended, the id is free"
    assert cluster.view.run.instance != over.instance


@pytest.mark.parametrize("end", ["finished", "aborted", "last node leaves"])
def test_an_ended_run_keeps_its_start(make_cluster, end):
    """However a run ends, `dtf status` still says since when it went on."""
    cluster = make_cluster(max_consecutive_failures=0)
    a, b = cluster.training("a", "b")
    begun = cluster.view.run
    if end == "finished":
        for node in (a, b):
            node.worker.say(messages.Finished(generation=1, step=10))
    elif end == "aborted":
        b.worker.die()
    else:
        for node in (a, b):
            node.agent.leave("SIGTERM")
        for node in (a, b):
            node.worker.stop_at_boundary()
            node.agent.close()
    run = cluster.wait_for(lambda view: view.run.phase is not RunPhase.RUNNING).run
    assert begun.started_at > 0
    assert run == replace(begun, phase=run.phase, reason=run.reason)


def test_a_sooner_end_of_the_machine_counts(cluster):
    """A drained node is on its way to the boundary when a preemption notice leaves it less time than its grace period."""
    a, b = cluster.training("a", "b")
    b.agent.leave("drained by an operator")
    for node in (a, b):
        node.worker.expect(messages.Stop)
    b.agent.leave("spot notice", within=0.2)
    with b.agent._changed:
        b.agent._changed.wait_for(lambda: b.agent.exit_reason is not None, PATIENCE)
    assert b.agent.exit_reason is ExitReason.OUT_OF_TIME


def test_two_live_nodes_on_the_id_of_a_crashed_restart_run(make_cluster):
    """Nobody of that run is left: the two begin a run of their own instead of taking each other for its nodes."""
    cluster = make_cluster(min_nodes=2)
    keys = RunKeys(cluster.run_id)
    cluster.store.put(keys.run, RunInfo(instance="old", mode="restart", script="train.py").encode())
    written = cluster.store.watch(keys.node(""))
    a, b = cluster.agent("a"), cluster.agent("b")
    for node in (a, b):
        node.start_workers()
        node.worker.ready()
    assert members(a.worker.train()) == members(b.worker.train())
    assert cluster.view.run.mode == "live"
    records = []
    while batch := written.get(0.0):
        records += [json.loads(event.kv.value) for event in batch]
    written.cancel()
    assert records
    assert "old" not in {record["instance"] for record in records}


def test_a_broken_loop_frees_the_main_thread(cluster, caplog):
    """A bug of ours while torchelastic waits for its workers' start: it gets the error at once, and so it does next time."""
    a = cluster.agent("a")

    def broken(view, workers):
        raise RuntimeError("a bug")

    a.agent._admission.advance = broken
    for _ in range(2):
        with pytest.raises(DtfError, match="the agent's loop broke: RuntimeError"):
            a.agent.await_start()
    assert "etcd does not answer" not in caplog.text, "it has waited to the end"


def test_finisher_is_called_back(cluster):
    """One member finished, another dies before it has: the finished one unwinds and is in the next generation."""
    a, b = cluster.training("a", "b")
    a.worker.say(messages.Finished(generation=1, step=10))
    cluster.wait_for(lambda view: view.nodes["a"].finished == 1)
    b.worker.die()
    a.worker.unwind()
    assert members(a.worker.train()) == ["a#1"]


def test_too_many_failures(make_cluster):
    """Beyond the limit everybody is told who failed, and torchrun gets an error."""
    cluster = make_cluster(max_consecutive_failures=0)
    a, b = cluster.training("a", "b")
    b.worker.die()
    assert "b#1" in a.worker.expect(messages.Abort).reason
    a.worker.die()
    with pytest.raises(RunAborted, match="unplanned rescales in a row"):
        a.agent.await_start()


def test_frozen_worker_is_ended(make_cluster):
    """A worker from which no heartbeat comes is killed by its own agent; the others go on."""
    cluster = make_cluster()
    (a,) = cluster.training("a")
    cluster.clock = HeldClock()  # for b alone: time passes for its agent, and nobody else's worker falls silent by that
    b = cluster.node("b", real_pids=True, heartbeats=False)
    b.worker.ready()
    a.worker.stop_at_boundary()
    a.worker.train()
    b.worker.train()
    cluster.wait_for(lambda view: view.nodes["b"].state is WorkerState.ACTIVE)  # its worker's last word
    cluster.clock.leap(9.0)
    b.look()
    assert b.processes[0].poll() is None
    cluster.clock.leap(1.0)
    b.look()
    assert b.processes[0].wait(PATIENCE) == -9
    assert "frozen: nothing heard from it for 10 s" in a.worker.unwind().reason


def test_second_hello_of_a_rank_is_refused(cluster):
    """Two workers say the same local rank: the second is told why it cannot be."""
    from support.elastic.agents import FakeWorker

    (a,) = cluster.training("a")
    impostor = FakeWorker(a.socket_path, 0)
    a.workers.append(impostor)
    assert "local rank 0 is attached already" in impostor.expect(messages.Refused).reason


def test_grace_period(make_cluster):
    """A worker does not come to the boundary in time: its node ends it, and torchrun does not exit with 0."""
    cluster = make_cluster(heartbeat_timeout=100.0, rescale_timeout=200.0)
    (a,) = cluster.training("a")
    cluster.clock = HeldClock()  # for b alone
    b = cluster.agent("b", grace_period=60.0)
    b.start_workers(real_pids=True)
    b.worker.ready()
    a.worker.stop_at_boundary()
    a.worker.train()
    b.worker.train()
    b.agent.leave("SIGTERM")
    assert b.worker.expect(messages.Stop).leave
    assert b.processes[0].poll() is None
    cluster.clock.leap(60.0)
    b.look()
    assert b.processes[0].wait(PATIENCE) == -9
    with pytest.raises(SystemExit) as exit_info:
        b.agent.check()
    assert exit_info.value.code == 1
    assert a.worker.expect(messages.Stop).target == 3
    assert "b#1 died while leaving" in a.worker.unwind().reason
    generation = a.worker.train()
    assert (members(generation), generation.failures) == (["a#1"], ())


def test_last_node_leaves(make_cluster):
    """The only node leaves: the run is over, and its id starts a new run at once."""
    (a,) = make_cluster().training("a")
    a.agent.leave("SIGTERM")
    assert a.worker.stop_at_boundary().leave
    a.agent.close()
    second = make_cluster()
    b = second.node("b")
    b.worker.ready(fingerprint={"seed": "another"})
    assert b.worker.train().number == 1


def test_last_node_fails(make_cluster):
    """The only node's worker dies and is not started again: the run is aborted, and its id is free at once."""
    first = make_cluster()
    (a,) = first.training("a")
    a.worker.die()
    first.wait_for(lambda view: view.nodes["a"].state is WorkerState.FAILED)
    a.agent.close()
    assert first.view.run.phase is RunPhase.ABORTED
    b = make_cluster().node("b")
    b.worker.ready()
    assert members(b.worker.train()) == ["b#1"]
