"""The worker's end of the agent's socket, against a scripted agent on a real socket."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.elastic.link.announced import Announced
from dtf_lightning.elastic.link.messages import (
    Abort,
    Active,
    At,
    Dying,
    Fail,
    Finish,
    Finished,
    Hello,
    Leaving,
    Left,
    LoopEnds,
    Prepare,
    Ready,
    Refused,
    Stop,
    Suspect,
    Trained,
)
from dtf_lightning.elastic.link.worker_link import EXIT_AGENT_LOST, EXIT_NOT_UNWOUND, RunFinished, WorkerLink
from dtf_lightning.errors import GenerationBroken, ProtocolError, RunAborted, RunRefused
from support.elastic.scripted_agent import DEADLINE, ScriptedAgent, assign, welcome
from support.interleaving import ObservedCondition, at_bytecode


class Worker:
    """A link whose training loop runs in a thread of its own, so that the test is never the one that blocks."""

    def __init__(self, agent, **arguments):
        self.failed, self.lost, self.waits = threading.Event(), threading.Event(), threading.Event()
        arguments = {"on_fail": self.failed.set, "on_agent_lost": self.lost.set, **arguments}
        self.link = WorkerLink(agent.path, 3, **arguments)
        self.link._announced.changed = ObservedCondition()
        self.waits = self.link._announced.changed.somebody_waits
        self.training = ThreadPoolExecutor(1, "training-loop")

    def call(self, function, *arguments):
        return self.training.submit(function, *arguments)

    def enter(self, agent, number=1):
        """Be in a generation."""
        future = self.call(self.link.ready, {}, ())
        agent.expect(Ready)
        agent.send(assign(number))
        assert future.result(DEADLINE).generation["number"] == number

    def pass_boundaries(self, count):
        return self.call(lambda: [self.link.at_boundary() for _ in range(count)]).result(DEADLINE)

    def close(self):
        self.link.close()
        announced = self.link._announced
        with announced.changed:
            announced.abort = announced.abort or Abort(reason="the test is over")
            announced.changed.notify_all()
        self.training.shutdown()


@pytest.fixture
def connect(tmp_path):
    """A scripted agent and a worker that has said hello to it."""
    with contextlib.ExitStack() as opened:

        def connected(greeting=None, **arguments):
            agent = ScriptedAgent(tmp_path, greeting)
            opened.callback(agent.close)
            worker = Worker(agent, **arguments)
            opened.callback(worker.close)
            assert agent.expect(Hello) == Hello(local_rank=3, pid=os.getpid())
            return agent, worker

        yield connected


@pytest.fixture
def trained(connect):
    """The same, in generation 1."""
    agent, worker = connect()
    worker.enter(agent)
    return agent, worker


# --- entering ---------------------------------------------------------------------------------------------------------


def test_a_worker_is_welcomed_waits_and_is_assigned_its_place(connect):
    """Hello, Welcome, Ready with what the newcomer is, Assign, Active."""
    agent, worker = connect(welcome(run_id="run7", rescale_timeout=12.5))
    assert (worker.link.welcome.run_id, worker.link.welcome.rescale_timeout) == ("run7", 12.5)
    entering = worker.call(worker.link.ready, {"batch_size": "8"}, ("weight float32 [1]",))
    assert agent.expect(Ready) == Ready(after=0, fingerprint={"batch_size": "8"}, parameters=("weight float32 [1]",))
    agent.send(assign(4))
    assert entering.result(DEADLINE).generation["number"] == 4
    assert (worker.link.generation, worker.link.pending, worker.link.broken) == (4, False, False)
    worker.link.active(17)
    assert agent.expect(Active) == Active(generation=4, step=17)


@pytest.mark.parametrize(
    ("word", "exception"),
    [
        (Finish(reason="done"), RunFinished),
        (Abort(reason="w1 failed at noon"), RunAborted),
        (Refused(reason="batch_size is 8 here, 16 there"), RunRefused),
    ],
)
def test_a_waiting_worker_hears_that_it_is_not_needed(connect, word, exception):
    """Instead of an Assign; the agent may hang up afterwards."""
    agent, worker = connect()
    entering = worker.call(worker.link.ready, {}, ())
    agent.expect(Ready)
    agent.send(word)
    with pytest.raises(exception, match=word.reason):
        entering.result(DEADLINE)
    agent.hang_up()
    worker.link._listener.join(DEADLINE)
    assert not worker.lost.is_set()


@pytest.mark.parametrize(
    ("greeting", "exception"),
    [
        (Finish(reason="2 of 2 members finished"), RunFinished),
        (Abort(reason="w1 failed at noon"), RunAborted),
        (Refused(reason="other settings"), RunRefused),
    ],
)
def test_a_worker_that_comes_too_late(tmp_path, greeting, exception):
    """The run ended, or the node was refused, while it imported: instead of a Welcome it hears that, and why."""
    agent = ScriptedAgent(tmp_path, greeting)
    with pytest.raises(exception, match=greeting.reason):
        WorkerLink(agent.path, 0)
    agent.close()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", Left(), b'{"kind":"welcome"}\n'])
def test_whoever_does_not_welcome_is_no_agent(tmp_path, greeting):
    """A ProtocolError, and no socket is left open (the police looks)."""
    agent = ScriptedAgent(tmp_path, greeting)
    with pytest.raises(ProtocolError):
        WorkerLink(agent.path, 0)
    agent.close()


def test_nobody_listens(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        WorkerLink(str(tmp_path / "nothing"), 0)


# --- planned rescale --------------------------------------------------------------------------------------------------


def test_a_worker_stops_at_the_agreed_boundary(trained):
    """Prepare, At, Stop two boundaries ahead; the next generation counts from zero again."""
    agent, worker = trained
    assert worker.pass_boundaries(3) == [False] * 3
    agent.send(Prepare(target=2))
    assert agent.expect(At) == At(target=2, boundary=3)
    agent.send(Stop(target=2, boundary=5, leave=True, reason="drained"))
    assert worker.call(lambda: [worker.link.at_boundary() for _ in range(2)]).result(DEADLINE) == [False, True]
    assert worker.link.stopping == Stop(target=2, boundary=5, leave=True, reason="drained")
    worker.enter(agent, 2)
    assert worker.link.stopping is None
    assert worker.pass_boundaries(9) == [False] * 9
    agent.send(Prepare(target=3))
    assert agent.expect(At).boundary == 9


def test_a_worker_waits_at_the_boundary_after_next_for_the_word_to_stop(trained):
    """It answered 1: boundary 2 is free, at 3 it waits until Stop comes, and goes on when that lies ahead."""
    agent, worker = trained
    worker.pass_boundaries(1)
    agent.send(Prepare(target=2))
    assert agent.expect(At).boundary == 1
    assert worker.pass_boundaries(1) == [False]
    worker.waits.clear()
    waiting = worker.call(worker.link.at_boundary)
    assert worker.waits.wait(DEADLINE)
    assert not waiting.done()
    agent.send(Stop(target=2, boundary=5))
    assert waiting.result(DEADLINE) is False
    assert worker.pass_boundaries(2) == [False, True]


@pytest.mark.parametrize("word", [Fail(target=2, reason="n2 died"), Abort(reason="too many failures")])
def test_waiting_for_stop_ends_with_a_failure(trained, word):
    agent, worker = trained
    agent.send(Prepare(target=2))
    agent.expect(At)
    worker.pass_boundaries(1)
    worker.waits.clear()
    waiting = worker.call(worker.link.at_boundary)
    assert worker.waits.wait(DEADLINE)
    agent.send(word)
    with pytest.raises((GenerationBroken, RunAborted), match=word.reason):
        waiting.result(DEADLINE)


def test_a_new_prepare_takes_the_place_of_the_old_one(trained):
    """The leader failed over and asks again: the new answer counts, an old Stop is forgotten."""
    agent, worker = trained
    agent.send(Prepare(target=2), Stop(target=2, boundary=2), Prepare(target=2))
    assert [agent.expect(At).boundary, agent.expect(At).boundary] == [0, 0]
    assert worker.link.stopping is None
    worker.pass_boundaries(1)
    agent.send(Stop(target=2, boundary=2))
    assert worker.pass_boundaries(1) == [True]


def test_words_about_this_generation_are_old(trained):
    """An agent that read its keys anew may repeat what led to the running generation."""
    agent, worker = trained
    agent.send(Prepare(target=1), Stop(target=1, boundary=0), Fail(target=1, reason="long ago"), Prepare(target=2))
    assert agent.expect(At) == At(target=2, boundary=0)
    assert (worker.link.stopping, worker.link.broken, worker.failed.is_set()) == (None, False, False)


def test_prepare_right_behind_assign_is_about_the_new_generation(trained):
    """Both in one piece, before the training loop has woken up: the answer is 0, and Stop is not forgotten."""
    agent, worker = trained
    worker.pass_boundaries(5)
    entering = worker.call(worker.link.ready, {}, ())
    agent.expect(Ready)
    agent.send(assign(2), Prepare(target=3), Stop(target=3, boundary=2))
    assert agent.expect(At) == At(target=3, boundary=0)
    entering.result(DEADLINE)
    assert worker.pass_boundaries(2) == [False, True]


@pytest.mark.parametrize("passed_before", [0, 2])
def test_the_rule_holds_at_every_point_of_a_race(tmp_path, passed_before):
    """Prepare is handled while the training loop runs freely at bytecode k of the handler, for every k: the loop never
    passes its answer + 1 without Stop, and stops exactly at answer + 2.
    """
    agent = ScriptedAgent(tmp_path)
    link = WorkerLink(agent.path, 0, on_agent_lost=lambda: None)
    agent.expect(Hello)
    number, generation = 0, 1
    while True:
        condition = link._announced.changed = ObservedCondition()
        link._announced.hear(assign(generation))
        for _ in range(passed_before):
            link.at_boundary()
        calls, handled = [], threading.Event()

        def train(calls=calls, handled=handled, condition=condition):
            for number in range(9):  # more than the rule can allow, so that a broken rule ends, too
                if number == 3:  # free boundaries: two more than the rule allows
                    condition.somebody_waits.set()
                    handled.wait(DEADLINE)
                calls.append(link.at_boundary())
                if calls[-1]:
                    break

        loop = threading.Thread(target=train)

        def let_it_run(loop=loop, condition=condition):
            loop.start()
            assert condition.somebody_waits.wait(DEADLINE)

        def handle(target=generation + 1):
            link._handle(Prepare(target=target))

        reached = at_bytecode(Announced.hear.__code__, number, let_it_run, handle)
        if not reached:
            break
        answer = agent.expect(At).boundary
        handled.set()
        link._handle(Stop(target=generation + 1, boundary=answer + 2))
        loop.join(DEADLINE)
        assert passed_before + len(calls) == answer + 2, f"at bytecode {number}: {calls}, answered {answer}"
        assert calls[-1] is True
        number, generation = number + 1, generation + 1
    assert number > 30, "the handler has more bytecodes than that: is it still traced?"
    link.close()
    agent.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(st.integers(0, 3), min_size=2, max_size=4), data=st.data())
def test_all_workers_stop_at_one_boundary(steps, data):
    """Several workers, each at its own place, hear Prepare at any moment: max + 2 lies ahead of everybody."""
    boundaries = dict.fromkeys(range(len(steps)), 0)
    answers: dict[int, int] = {}
    links = [
        Announced(lambda message, number=number: answers.__setitem__(number, message.boundary))
        for number in range(len(steps))
    ]
    for link in links:
        link.hear(assign(1))
    todo = [("pass", worker) for worker, count in enumerate(steps) for _ in range(count)]
    todo += [("prepare", worker) for worker in boundaries]
    for kind, worker in data.draw(st.permutations(todo)):
        if kind == "prepare":
            links[worker].hear(Prepare(target=2))
        elif worker not in answers or boundaries[worker] < answers[worker] + 1:
            assert links[worker].at_boundary() is False
            boundaries[worker] += 1
    agreed = max(answers.values()) + 2
    assert all(passed < agreed for passed in boundaries.values())
    for worker, link in enumerate(links):
        link.hear(Stop(target=2, boundary=agreed))
        while not link.at_boundary():
            boundaries[worker] += 1
        assert boundaries[worker] + 1 == agreed


# --- unplanned rescale ------------------------------------------------------------------------------------------------


def test_a_failure_breaks_the_generation_off(trained):
    """Fail unblocks the main thread by `on_fail`, and every look raises until the worker is ready again."""
    agent, worker = trained
    worker.link.check()
    agent.send(Fail(target=2, reason="n2 died"))
    assert worker.failed.wait(DEADLINE)
    assert worker.link.broken
    assert worker.link.fail_reason == "n2 died"
    for look in (worker.link.check, worker.link.at_boundary, lambda: worker.link.finished(3)):
        with pytest.raises(GenerationBroken, match="generation 1 is broken: n2 died"):
            worker.call(look).result(DEADLINE)
    assert agent.expect(Finished).generation == 1
    worker.enter(agent, 2)
    assert not worker.link.broken
    worker.link.check()
    assert worker.pass_boundaries(1) == [False]


def test_a_failure_while_waiting_for_the_next_generation(tmp_path, connect):
    """Another member froze and was put out, which is announced once more: who waits is unwound, no watchdog ends it."""
    agent, worker = connect(welcome(rescale_timeout=0.05))
    worker.enter(agent)
    entering = worker.call(worker.link.ready, {}, ())
    assert agent.expect(Ready).after == 1
    before = set(threading.enumerate())
    agent.send(Fail(target=2, reason="n3 froze"))
    assert worker.failed.wait(DEADLINE)
    for watchdog in set(threading.enumerate()) - before:
        watchdog.join(DEADLINE)  # had it bitten, this process would be gone
    agent.send(assign(2))
    assert entering.result(DEADLINE).generation["number"] == 2
    assert not worker.link.broken


def test_a_generation_that_failed_before_it_was_entered(trained):
    """Assign and Fail in one piece: `ready` says so instead of leading into a group that nobody forms."""
    agent, worker = trained
    entering = worker.call(worker.link.ready, {}, ())
    agent.expect(Ready)
    agent.send(assign(2), Fail(target=3, reason="n2 died while forming"))
    with pytest.raises(GenerationBroken, match="generation 2 is broken: n2 died while forming"):
        entering.result(DEADLINE)
    entering = worker.call(worker.link.ready, {}, ())
    assert agent.expect(Ready).after == 2
    agent.send(assign(3))
    assert entering.result(DEADLINE).generation["number"] == 3


def test_a_failure_announced_before_the_generation_that_follows_it(connect):
    """Fail for generation 1 reaches a newcomer in its set-up: generation 1 is not broken by it."""
    agent, worker = connect()
    agent.send(Fail(target=1, reason="of no concern"))
    worker.enter(agent, 1)
    assert not worker.link.broken
    assert worker.pass_boundaries(2) == [False, False]


@pytest.mark.parametrize(
    ("word", "verdict"), [(Fail(target=2, reason="n2 died"), True), (Abort(reason="no more"), False)]
)
def test_a_suspicion_waits_for_the_verdict(trained, word, verdict):
    agent, worker = trained
    suspecting = worker.call(worker.link.suspect, "Connection closed by peer", DEADLINE)
    assert agent.expect(Suspect) == Suspect(generation=1, error="Connection closed by peer")
    agent.send(word)
    assert suspecting.result(DEADLINE) is verdict


def test_a_suspicion_that_nobody_shares(trained):
    _, worker = trained
    assert worker.call(worker.link.suspect, "Connection closed by peer", 0.01).result(DEADLINE) is False


def test_breaking_off_may_fail(connect):
    """An error in `on_fail` neither ends the listener nor hides the failure."""

    def on_fail():
        raise OSError("no /proc here")

    agent, worker = connect(on_fail=on_fail)
    worker.enter(agent)
    agent.send(Fail(target=2, reason="n2 died"), Prepare(target=2))
    agent.expect(At)
    with pytest.raises(GenerationBroken):
        worker.link.check()


UNWINDING = """
import sys, threading
from dtf_lightning.elastic.link.worker_link import WorkerLink

inside, is_cut = threading.Event(), threading.Event()

class Unwound(threading.Event):
    # The time to unwind begins when the group is cut, however slow the thread is that cuts it.
    def wait(self, timeout):
        is_cut.wait()
        return super().wait(timeout)

def stuck_in_a_collective():
    inside.set()
    link.trained()  # tells the test that it is here
    threading.Event().wait(600)

def cut():
    print("cut", flush=True)
    is_cut.set()
    if sys.argv[2] == "forgotten" and inside.wait(60):
        link.end_forgotten()

link = WorkerLink(sys.argv[1], 0, on_fail=cut)
link._announced.unwound = Unwound()
link.ready({}, ())
link.active(0)
stuck_in_a_collective()
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("event", "status", "said"),
    [
        ("fail", EXIT_NOT_UNWOUND, ["0.1 s ago that generation 1 is broken", "in stuck_in_a_collective"]),
        ("forgotten", EXIT_NOT_UNWOUND, ["gloo has forgotten that this worker waits", "in stuck_in_a_collective"]),
        ("agent dies", EXIT_AGENT_LOST, ["the agent (torchrun) of this worker is gone"]),
    ],
)
def test_a_worker_that_cannot_go_on_ends_itself(tmp_path, event, status, said):
    """A main thread that sits in a collective: told of a failure, or orphaned, the process ends and says why."""
    agent = ScriptedAgent(tmp_path, welcome(rescale_timeout=30.0 if event == "forgotten" else 0.1))
    worker = subprocess.Popen(
        [sys.executable, "-c", UNWINDING, agent.path, event], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    agent.expect(Hello)
    agent.expect(Ready)
    agent.send(assign(1))
    agent.expect(Active)
    agent.expect(Trained)
    if event == "agent dies":
        agent.hang_up()
    else:
        agent.send(Fail(target=2, reason="n2 died"))
    if event == "forgotten":
        assert agent.expect(Dying).aftermath, "another's death has ended it, and counts already"
    output, errors = worker.communicate(timeout=DEADLINE)
    agent.close()
    assert (worker.returncode, output) == (status, "cut\n"), errors
    for part in said:
        assert part in errors


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_is_waited_for(trained):
    """Finished, then Finish; the agent's end is expected from there on."""
    agent, worker = trained
    finishing = worker.call(worker.link.finished, 100)
    assert agent.expect(Finished) == Finished(generation=1, step=100)
    assert not finishing.done()
    agent.send(Finish(reason="all finished"))
    assert finishing.result(DEADLINE) is None
    agent.hang_up()
    worker.link._listener.join(DEADLINE)
    assert not worker.lost.is_set()


def test_a_loop_that_ends_and_goes_on_after_all(trained):
    """The worker's last batch is told at once, and withdrawn at the next one: the others' batches prove nothing then."""
    agent, worker = trained
    worker.pass_boundaries(2)
    worker.link.loop_ends(7, "trainer.should_stop was set")
    said = LoopEnds(generation=1, batches=2, step=7, reason="trainer.should_stop was set")
    assert agent.expect(LoopEnds) == said
    worker.pass_boundaries(2)
    withdrawn = agent.expect(LoopEnds)
    assert withdrawn.withdrawn
    worker.link.loop_ends(9, "again")
    assert agent.expect(LoopEnds).batches == 4, "the withdrawal was said once"
    worker.call(worker.link.begin_batch).result(DEADLINE)
    assert agent.expect(LoopEnds).withdrawn, "in the midst of an accumulation, too"
    worker.link.loop_ends(9, "once more")
    assert agent.expect(LoopEnds).batches == 5, "a batch that begins no step counts"


def test_an_aborted_run(trained):
    """Abort unblocks the main thread as Fail does, and is raised wherever it looks."""
    agent, worker = trained
    agent.send(Abort(reason="n1 failed at 12:00, n2 at 12:01"))
    assert worker.failed.wait(DEADLINE)
    with pytest.raises(RunAborted, match="n2 at 12:01"):
        worker.link.check()
    with pytest.raises(RunAborted):
        worker.link.at_boundary()


def test_the_agents_end(trained):
    agent, worker = trained
    agent.hang_up()
    assert worker.lost.wait(DEADLINE)


def test_the_agents_end_after_goodbye(trained):
    """A leaver is on its way out already: its agent may be quicker."""
    agent, worker = trained
    worker.link.leaving("SIGTERM")
    assert agent.expect(Leaving) == Leaving(reason="SIGTERM")
    worker.link.left()
    agent.expect(Left)
    agent.hang_up()
    worker.link._listener.join(DEADLINE)
    assert not worker.lost.is_set()


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\n", b"[]\n", b'{"kind":"ready","after":1}\n', b'{"kind":"stop","target":"x","boundary":1}\n',
     b'{"kind":"assign","generation":7,"rank":0,"world_size":1}\n'],
)  # fmt: skip
def test_an_agent_that_cannot_be_understood(trained, garbage):
    """It counts as gone: nobody could tell this worker of a rescale any more."""
    agent, worker = trained
    agent.send(garbage)
    assert worker.lost.wait(DEADLINE)


def test_messages_arrive_in_pieces(trained):
    """The kernel may split a line anywhere."""
    agent, _ = trained
    for byte in Prepare(target=2).encode():
        agent.send(bytes([byte]))
    assert agent.expect(At) == At(target=2, boundary=0)


def test_signs_of_life(connect):
    """Heartbeats come by themselves and carry the step, also while the main thread is busy."""
    agent, worker = connect(welcome(heartbeat_interval=0.005))
    worker.link.step = 7
    before = list(iter(lambda: agent.heartbeats.get(timeout=DEADLINE).step, 7))
    assert set(before) <= {0}
    assert agent.heartbeats.get(timeout=DEADLINE).step == 7


def test_a_fatal_error_is_reported(trained):
    agent, worker = trained
    worker.link.dying("ValueError: no such label")
    assert agent.expect(Dying).error == "ValueError: no such label"


# --- resources --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_no_socket_of_ours(trained):
    """Or the agent would notice this process's death only when the child ends, too."""
    _, worker = trained
    name = os.readlink(f"/proc/self/fd/{worker.link._socket.fileno()}")
    child = os.fork()
    if child == 0:
        held = set()
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                held.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        os._exit(name in held)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.link.active(1)  # the parent's is untouched


def test_closing_leaves_nothing(trained):
    """Neither thread nor descriptor, with a watchdog under way; twice is no error."""
    agent, worker = trained
    agent.send(Fail(target=2, reason="n2 died"))
    assert worker.failed.wait(DEADLINE)
    worker.link.close()
    worker.link.close()
    assert not worker.link._listener.is_alive()
    assert agent.expect(type(None)) is None
    assert not [thread for thread in threading.enumerate() if thread.name == "dtf-worker-link"]


def test_a_signal_may_say_leaving_while_the_main_thread_sends(trained):
    """The handler runs between two bytecodes of `send`, which holds the lock: no deadlock."""
    agent, worker = trained

    def send_in_the_middle_of_a_send():
        with worker.link._socket._send_lock:
            worker.link.leaving("SIGTERM")

    worker.call(send_in_the_middle_of_a_send).result(DEADLINE)
    assert agent.expect(Leaving).reason == "SIGTERM"
