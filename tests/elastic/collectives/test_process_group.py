"""Groups among real processes: formed, cut, destroyed, and what a death looks like to the others."""

from __future__ import annotations

import os
import random
import signal
import socket
import time

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.collectives import process_group
from support.elastic.programs.sleeper import see_a_sleeping_main_thread
from support.elastic.ranks import DEADLINE, FORMING_TIMEOUT, RankFailed

pytestmark = pytest.mark.process


def test_form_use_destroy_and_form_again(start_ranks, store, new_prefix):
    """One world after the other in the same processes: 2, 3, 1."""
    ranks = start_ranks(3)
    for world_size in (2, 3, 1):
        prefix = new_prefix()
        for index, rank in enumerate(ranks[:world_size]):
            rank.start("form", store.port, prefix, index, world_size)
        for rank in ranks[:world_size]:
            rank.result()
            rank.start("all_reduce")
        assert [rank.result() for rank in ranks[:world_size]] == [world_size] * world_size
        for rank in ranks[:world_size]:
            rank.call("destroy")


def test_cut_frees_a_main_thread_whose_peer_is_frozen(start_group):
    """Rank 1 is stopped, rank 0 blocks in the all-reduce: gloo alone would wait for its timeout of ten minutes."""
    blocked, frozen = start_group(2)
    frozen.freeze()
    blocked.start("all_reduce")
    blocked.cut()
    with pytest.raises(RankFailed) as caught:
        blocked.result()
    assert caught.value.communication, caught.value
    frozen.thaw()


def test_peers_of_a_cut_see_it_when_it_hangs_up(start_group):
    """Rank 1 waits in an all-reduce that rank 0 will never enter."""
    cutting, waiting = start_group(2)
    waiting.start("all_reduce")
    cutting.cut()
    with pytest.raises(RankFailed):
        cutting.call("all_reduce")  # it is cut
    cutting.call("destroy")
    assert not waiting.answers_within(0.1)
    cutting.hang_up()
    with pytest.raises(RankFailed) as caught:
        waiting.result()
    assert caught.value.communication, caught.value


@pytest.mark.parametrize(
    ("size", "times", "rounds"), [(4, None, 60), (1_000_000, 3, 20)], ids=["all go on", "one stops"]
)
def test_cut_frees_every_member_in_the_midst_of_collectives(start_ranks, store, new_prefix, size, times, rounds):
    """gloo forgets waiters of what was under way (one cut in twenty hung): nobody waits out the group's timeout.

    Where one stops it still forgets one, in about one round of a thousand; `test_a_waiter_that_gloo_has_forgotten_is_recognised`
    has what becomes of it then.
    """
    ranks = start_ranks(3)
    for _ in range(rounds):
        prefix = new_prefix()
        for index, rank in enumerate(ranks):
            rank.start("form", store.port, prefix, index, len(ranks))
        for rank, number in zip(ranks, (None, None, times), strict=True):
            rank.result()
            rank.start("all_reduce_on", size, number)
        if times is not None:
            ranks[-1].result()
        for rank in ranks:
            rank.cut()
        for rank in ranks[: None if times is None else -1]:
            with pytest.raises(RankFailed) as caught:
                rank.result()
            assert caught.value.communication, caught.value
        for rank in ranks:
            rank.call("destroy")


def test_after_a_cut_the_same_processes_form_the_next_generation(start_group, store, new_prefix):
    ranks = start_group(2)
    for rank in ranks:
        rank.cut()
        with pytest.raises(RankFailed):
            rank.call("all_reduce")
        rank.call("destroy")
    prefix = new_prefix()
    for index, rank in enumerate(ranks):
        rank.start("form", store.port, prefix, index, 2)
    for rank in ranks:
        rank.result()
        rank.start("all_reduce")
    assert [rank.result() for rank in ranks] == [2, 2]


def test_cut_while_forming(start_ranks, store, new_prefix):
    """A member does not come: cutting ends the wait at once, and says what happened."""
    (rank,), prefix = start_ranks(1), new_prefix()
    rank.start("form", store.port, prefix, 0, 2, 600.0)
    store.wait([f"{prefix}/arrived/0"])
    rank.cut()
    with pytest.raises(RankFailed) as caught:
        rank.result()
    assert caught.value.kind == "GenerationBroken", caught.value
    rank.call("destroy")


def test_cut_while_the_store_does_not_answer(start_ranks, store, new_prefix):
    """Its host dies as it is connected: torch would sleep for many seconds before it tried again."""
    (rank,) = start_ranks(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rank.start("form", silent.getsockname()[1], new_prefix(), 0, 2, 600.0)
        connection, _ = silent.accept()
        with connection:
            rank.cut()
            with pytest.raises(RankFailed) as caught:
                rank.result()
    assert caught.value.kind == "GenerationBroken", caught.value
    rank.call("destroy")
    rank.call("form", store.port, new_prefix(), 0, 1)
    assert rank.call("all_reduce") == 1


def test_next_generation_after_a_cut_while_connecting(start_ranks, store, new_prefix):
    """All have met, one goes before it has connected, the rest is cut: the same store serves the next generation."""
    (rank,), prefix = start_ranks(1), new_prefix()
    store.set(f"{prefix}/arrived/1", "")
    rank.start("form", store.port, prefix, 0, 2, 600.0)
    store.wait([f"{prefix}/0//cpu//0/0"])  # its own address: it connects
    rank.cut()
    with pytest.raises(RankFailed) as caught:
        rank.result()
    assert caught.value.kind == "GenerationBroken", caught.value
    rank.call("destroy")
    rank.call("form", store.port, new_prefix(), 0, 1)
    assert rank.call("all_reduce") == 1


def test_members_of_which_one_has_failed_to_form_before(start_ranks, store, new_prefix):
    """One could not connect in the last generation, the other is new, or could: they find each other all the same."""
    (failed, new), prefix = start_ranks(2), new_prefix()
    store.set(f"{prefix}/arrived/1", "")
    failed.start("form", store.port, prefix, 0, 2, 600.0)
    store.wait([f"{prefix}/0//cpu//0/0"])
    failed.cut()
    with pytest.raises(RankFailed):
        failed.result()
    failed.call("destroy")
    prefix = new_prefix()
    for index, rank in enumerate((failed, new)):
        rank.start("form", store.port, prefix, index, 2)
    for rank in (failed, new):
        rank.result()
        rank.start("all_reduce")
    assert [rank.result() for rank in (failed, new)] == [2, 2]


def test_a_member_that_does_not_come(start_ranks, store, new_prefix):
    """The wait is finite, and its end counts as a failed collective."""
    (rank,) = start_ranks(1)
    with pytest.raises(RankFailed) as caught:
        rank.call("form", store.port, new_prefix(), 0, 2, 0.2)
    assert caught.value.communication, caught.value


@pytest.mark.parametrize("index", [0, 1])
def test_a_member_that_dies_between_its_arrival_and_its_connection(
    start_ranks, start_group, store, last_prefix, new_prefix, index
):
    """Its address is in the store, nobody is behind it: gloo cannot be cut there, but gives up soon, not after five
    times the timeout of collectives.
    """
    for dead in start_group(2):  # their addresses are the model
        dead.kill()
    (rank,), model, prefix = start_ranks(1), last_prefix(), new_prefix()
    store.set(f"{prefix}/arrived/{1 - index}", "")
    store.set(f"{prefix}/0//cpu//0/{1 - index}", store.get(f"{model}/0//cpu//0/{1 - index}"))
    with pytest.raises(RankFailed) as caught:
        rank.call("form", store.port, prefix, index, 2, 1.0)
    assert caught.value.communication, caught.value


def test_cut_while_gloo_connects_to_a_member_that_is_gone(start_ranks, start_group, store, last_prefix, new_prefix):
    """The agents know of the end: who waits for a connection is free at once, and meets others in the next generation.

    Which of two waits, and which connects, follows from their addresses, which are random: the first that waits will do.
    """
    for _ in range(20):
        for silent in start_group(2):  # their addresses are the model
            silent.freeze()
        (rank, other), model, prefix = start_ranks(2), last_prefix(), new_prefix()
        store.set(f"{prefix}/arrived/0", "")
        store.set(f"{prefix}/0//cpu//0/0", store.get(f"{model}/0//cpu//0/0"))
        rank.start("form", store.port, prefix, 1, 2, 600.0)
        store.wait([f"{prefix}/0//cpu//0/1"])  # its own address: it connects
        if rank.answers_within(0.2):
            continue  # it was to connect, and has
        rank.cut()
        outcome = rank.outcome()
        if outcome is None:
            continue  # likewise, but it was slow
        assert outcome.kind == "GenerationBroken", outcome
        rank.call("destroy")
        prefix = new_prefix()
        for number, member in enumerate((rank, other)):
            member.start("form", store.port, prefix, number, 2)
        for member in (rank, other):
            member.result()
            member.start("all_reduce")
        assert [member.result() for member in (rank, other)] == [2, 2]
        return
    pytest.fail("in twenty tries no member waited for a connection")


def test_a_generation_that_was_broken_before_it_formed(start_ranks, store, new_prefix):
    """Asked when it can be cut already: no failure falls between the two."""
    (rank,) = start_ranks(1)
    with pytest.raises(RankFailed, match="declared broken before it formed"):
        rank.call("form_unwanted", store.port, new_prefix())
    rank.call("destroy")


def test_cut_and_destroy_without_a_group(start_ranks):
    (rank,) = start_ranks(1)
    rank.cut()
    rank.call("destroy")
    rank.cut()


def test_fifty_generations_leak_nothing(start_ranks, store, new_prefix):
    """Neither a descriptor nor a thread, C++'s included."""
    ranks, prefix = start_ranks(2), new_prefix()

    def cycle(name, times):
        for index, rank in enumerate(ranks):
            rank.start("cycle", store.port, f"{prefix}/{name}", index, 2, times)
        for rank in ranks:
            rank.result()

    def hold():
        return [number for rank in ranks for number in rank.call("holds")]

    cycle("first", 3)
    before = hold()
    cycle("more", 50)
    poll_until(  # a thread that has done its work takes a moment to end
        lambda: all(now <= then for now, then in zip(hold(), before, strict=True)),
        DEADLINE,
        lambda: f"{hold()} descriptors and threads to be no more than {before}",
    )


def test_cut_leaves_other_sockets_alone(start_ranks, store, new_prefix):
    """The user's connections, older and younger than the group."""
    ranks, prefix = start_ranks(2), new_prefix()
    ranks[0].call("open_pair")
    for index, rank in enumerate(ranks):
        rank.start("form", store.port, prefix, index, 2)
    for rank in ranks:
        rank.result()
    ranks[0].call("open_pair")
    ranks[0].cut()
    with pytest.raises(RankFailed):
        ranks[0].call("all_reduce")
    assert ranks[0].call("use_pairs") == [b"hello", b"hello"]


def test_a_cut_ends_reading_and_leaves_writing():
    """gloo forgets the waiter of a send whose write fails, so a cut must not make writes fail, here or at the peer."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as mine:
        theirs, _ = server.accept()
        held = process_group._shut_down(mine.fileno(), os.readlink(f"/proc/self/fd/{mine.fileno()}"))
        assert held is not None
        with theirs, held:
            assert mine.recv(1) == b""
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"
            mine.close()  # as gloo does when it has read to the end
            theirs.sendall(b"x" * 1_000)
            theirs.sendall(b"x" * 1_000)
            theirs.settimeout(0)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)  # neither closed nor reset


def test_a_forked_child_does_not_hide_its_parents_death(start_group):
    """Rank 0 has forked and is killed with -9; its child lives on, and rank 1 notices all the same."""
    victim, waiting = start_group(2)
    child = victim.call("fork")
    try:
        waiting.start("all_reduce")
        victim.kill()
        with pytest.raises(RankFailed) as caught:
            waiting.result()
        assert caught.value.communication, caught.value
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_timeout_of_collectives_is_the_given_one(start_group):
    """Not the short one that the group formed with."""
    slow, waiting = start_group(2)
    slow.freeze()
    waiting.start("all_reduce")
    assert not waiting.answers_within(1.5 * FORMING_TIMEOUT)
    slow.thaw()
    slow.start("all_reduce")
    assert (slow.result(), waiting.result()) == (2, 2)


def test_a_waiter_that_gloo_has_forgotten_is_recognised(start_group, tmp_path):
    """Its group is cut and it does not come out of its all-reduce: that is known soon, so that its process is replaced.

    A thread that computes, or waits for something else, for longer than the watch takes is left alone; in its process
    the watch takes less time, so that this is seen while the other is waited for.
    """
    (waiting, _), (busy, _) = start_group(2), start_group(2)
    for name, rank in (("waiting", waiting), ("busy", busy)):
        rank.call("forget", str(tmp_path / name))
    assert 2.5 < process_group.FREE_TIMEOUT < 5.0  # seconds; the latter is what docs/guarantees.md promises
    busy.call("be_watched", 2.5)  # looks at the thread's last two seconds, then, and 2.5 seconds later again
    busy.start("busy", 3.0)  # seconds of each
    waiting.start("all_reduce")
    assert not waiting.answers_within(0.1)
    waiting.cut()
    busy.cut()
    poll_until((tmp_path / "waiting").exists, DEADLINE, "the waiter's recognition")
    busy.result()
    assert not (tmp_path / "busy").exists()


def test_the_main_thread_of_a_forked_process_is_seen(fork_server, tmp_path):
    """Python tells the parent's identifier of it there, and the watch over a waiter ended by an error, which hung the waiter."""
    pid = fork_server.fork(see_a_sleeping_main_thread, tmp_path / "log", tmp_path / "seen")
    assert fork_server.wait(pid, DEADLINE) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "seen").exists()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_a_member_is_killed_at_any_moment(start_ranks, store, new_prefix, tmp_path, seed):
    """While gloo connects, and in the midst of all-reduces: the others are free within 5 s of the cut, or recognised."""
    chance = random.Random(seed)
    forgotten = 0
    for number in range(25):
        ranks, prefix = start_ranks(3), new_prefix()
        size = chance.choice([100, 100_000, 5_000_000])
        for index, rank in enumerate(ranks):
            rank.call("recognise", str(tmp_path / f"{number}.{index}"))
            rank.start("form_and_all_reduce_on", store.port, prefix, index, 3, size)
        victim = chance.randrange(3)
        assert not ranks[victim].answers_within(chance.uniform(0, 0.1)), "it ends of itself"
        ranks[victim].kill()
        survivors = [index for index in range(3) if index != victim]
        ranks[survivors[0]].answers_within(chance.uniform(0, 0.01))  # the agents take a moment, too
        for index in survivors:
            ranks[index].cut()
        cut_at = time.monotonic()
        for index in survivors:
            left = cut_at + 5.0 - time.monotonic()
            if ranks[index].answers_within(max(0.0, left)):
                with pytest.raises(RankFailed) as caught:
                    ranks[index].result()
                assert caught.value.communication or caught.value.kind == "GenerationBroken", caught.value
            else:
                assert (tmp_path / f"{number}.{index}").exists(), f"rank {index} is neither free nor known not to be"
                forgotten += 1
        for rank in ranks:
            rank.close_early()
    assert forgotten <= 1, "this is rare, or something else than a death in mid-transfer is wrong"
