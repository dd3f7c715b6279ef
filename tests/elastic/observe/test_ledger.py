"""The ledger: what is written, what an audit makes of it, what a kill -9 leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.observe.ledger import LEDGER_VERSION, Ledger, audit


@pytest.fixture
def write(tmp_path):
    """Write a worker's ledger: ("begin", generation, step), ("draw", generation, step, samples), ("end", ...).

    `instance` is a letter; the later in the alphabet, the later it was formed.
    """
    number = iter(range(100))

    def written(*lines, rank=0, world_size=1, epoch=0, instance=""):
        path = tmp_path / "ledger" / f"{next(number)}.jsonl"
        ledger = Ledger(path)
        for kind, generation, step, *samples in lines:
            if kind == "begin":
                # A later instance has the lesser name, so that names alone do not put them in order.
                name, formed_at = f"{100 - ord(instance):03}" if instance else "", float(ord(instance or "a"))
                ledger.begin(
                    generation=generation, rank=rank, world_size=world_size, step=step, epoch=epoch,
                    instance=name, formed_at=formed_at + generation / 100,
                )  # fmt: skip
            elif kind == "draw":
                ledger.draw(generation=generation, rank=rank, epoch=epoch, step=step, samples=samples)
            elif kind == "epoch":
                size, left_out, why = samples
                ledger.epoch_ends(
                    generation=generation, rank=rank, epoch=epoch, step=step, size=size, left_out=left_out, why=why
                )
            else:
                ledger.end(generation=generation, rank=rank, step=step)
        ledger.close()
        ledger.close()
        return path

    return written


def test_an_undisturbed_run(write):
    """Two workers, two steps, the end: everything counts once."""
    paths = [
        write(("begin", 1, 0), ("draw", 1, 0, 0, 2), ("draw", 1, 1, 4, 6), ("end", 1, 2), rank=0, world_size=2),
        write(("begin", 1, 0), ("draw", 1, 0, 1, 3), ("draw", 1, 1, 5, 7), ("end", 1, 2), rank=1, world_size=2),
    ]
    result = audit(paths)
    assert (result.committed_steps, result.void_draws, result.steps_lost) == (2, 0, 0)
    assert result.resume_steps == {1: 0}
    assert result.epochs[0].missing(8) == []
    assert result.epochs[0].missing(10) == [8, 9]
    assert result.epochs[0].repeated() == {}


def test_samples_that_were_repeated_or_left_out_show(write):
    result = audit([write(("begin", 1, 0), ("draw", 1, 0, 0, 1), ("draw", 1, 1, 1, 1), ("end", 1, 2))])
    assert result.epochs[0].repeated() == {1: 2}
    assert result.epochs[0].missing(3) == [2]


def test_padding_is_no_repetition(tmp_path):
    """The last two samples of the step filled it up."""
    ledger = Ledger(tmp_path / "a")
    ledger.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    ledger.draw(generation=1, rank=0, epoch=0, step=0, samples=[0, 1, 2, 0, 1], padding=2)
    ledger.end(generation=1, rank=0, step=1)
    ledger.close()
    epoch = audit([tmp_path / "a"]).epochs[0]
    assert (epoch.missing(3), epoch.repeated(), epoch.padding) == ([], {}, 2)


def test_accumulation_draws_several_times_for_a_step(write):
    result = audit([write(("begin", 1, 0), ("draw", 1, 0, 0), ("draw", 1, 0, 1), ("draw", 1, 1, 2), ("end", 1, 2))])
    assert (result.committed_steps, sum(result.epochs[0].consumed.values())) == (2, 3)


def test_a_step_that_was_rolled_back_is_void(write):
    """Step 1 was drawn in generation 1, its worker died, generation 2 resumes at step 1 and draws it again."""
    survivor = write(
        ("begin", 1, 0), ("draw", 1, 0, 0), ("draw", 1, 1, 2), ("begin", 2, 1), ("draw", 2, 1, 2, 3), ("end", 2, 2)
    )
    dead = write(("begin", 1, 0), ("draw", 1, 0, 1), ("draw", 1, 1, 3), rank=1)
    result = audit([dead, survivor])
    assert (result.committed_steps, result.void_draws, result.steps_lost) == (2, 2, 0)
    assert result.resume_steps == {1: 0, 2: 1}
    assert (result.epochs[0].missing(4), result.epochs[0].repeated()) == ([], {})


def test_a_later_generation_may_roll_back_further(write):
    """All of generation 2 died; generation 3 began at a checkpoint's step 1, so that steps 1 to 3 are void."""
    path = write(
        ("begin", 1, 0), *(("draw", 1, step, step) for step in range(3)),
        ("begin", 2, 3), ("draw", 2, 3, 3),
        ("begin", 3, 1), *(("draw", 3, step, step) for step in range(1, 4)), ("end", 3, 4),
    )  # fmt: skip
    result = audit([path])
    assert (result.committed_steps, result.void_draws, result.steps_lost) == (4, 3, 0)
    assert result.epochs[0].repeated() == {}


def test_a_run_that_went_on_from_a_checkpoint(write):
    """Its first generation begins at step 500: nothing before that is lost."""
    result = audit([write(("begin", 1, 500), ("draw", 1, 500, 0), ("end", 1, 501))])
    assert (result.committed_steps, result.steps_lost) == (1, 0)


def test_the_last_generation_without_an_end(write):
    """A draw for step 2 proves that step 1 was committed; step 2 itself may or may not have been."""
    result = audit([write(("begin", 1, 0), *(("draw", 1, step, step) for step in range(3)))])
    assert (result.committed_steps, result.void_draws) == (2, 1)
    assert audit([write(("begin", 1, 7))]).committed_steps == 0


def test_killed_and_resumed_under_its_id(write):
    """All were killed in step 3; the next instance counts from generation 1 again, at the checkpoint's step 2."""
    paths = [
        write(("begin", 1, 2), ("draw", 1, 2, 2), ("draw", 1, 3, 3), ("end", 1, 4), instance="b"),
        write(("begin", 1, 0), *(("draw", 1, step, step) for step in range(4)), instance="a"),
    ]
    result = audit(paths)
    assert (result.committed_steps, result.void_draws, result.steps_lost) == (4, 2, 0)
    assert (result.epochs[0].missing(4), result.epochs[0].repeated(), result.absent) == ([], {}, ())
    assert (len(result.instances), result.resume_steps) == (2, {1: 2})


def test_resumed_in_its_ledger(write, tmp_path):
    """The same worker's name, and so the same file: each line says of which instance it is."""
    path = write(("begin", 1, 0), ("draw", 1, 0, 0), ("draw", 1, 1, 1), instance="a")
    write(("begin", 1, 1), ("draw", 1, 1, 1), ("end", 1, 2), instance="b").rename(tmp_path / "later")
    path.write_bytes(path.read_bytes() + (tmp_path / "later").read_bytes())
    result = audit([path])
    assert (result.committed_steps, result.void_draws, result.epochs[0].consumed) == (2, 1, {0: 1, 1: 1})


def test_an_instance_that_began_anew(write):
    """At step 0: nothing of the former counts."""
    paths = [
        write(("begin", 1, 0), ("draw", 1, 0, 1), ("end", 1, 1), instance="a"),
        write(("begin", 1, 0), ("draw", 1, 0, 0), ("end", 1, 1), instance="b"),
    ]
    assert audit(paths).epochs[0].consumed == {0: 1}


def test_ledgers_of_version_1(tmp_path):
    """What an older program has written: no instance, no endings of epochs."""
    lines = (
        '{"v":1,"kind":"begin","generation":1,"rank":0,"world_size":1,"step":0,"epoch":0}',
        '{"v":1,"kind":"draw","generation":1,"rank":0,"epoch":0,"step":0,"samples":[1,0],"padding":0}',
        '{"v":1,"kind":"end","generation":1,"rank":0,"step":1}',
    )
    (tmp_path / "a").write_text("".join(f"{line}\n" for line in lines))
    result = audit([tmp_path / "a"])
    assert (result.committed_steps, result.epochs[0].missing(2), result.instances) == (1, [], ("",))


def test_resumed_by_a_newer_program(write, tmp_path):
    """What has no instance is older than what has one."""
    old = tmp_path / "old"
    old.write_text(
        '{"v":1,"kind":"begin","generation":2,"rank":0,"world_size":1,"step":0,"epoch":0}\n'
        '{"v":1,"kind":"draw","generation":2,"rank":0,"epoch":0,"step":0,"samples":[0],"padding":0}\n'
    )
    new = write(("begin", 1, 1), ("draw", 1, 1, 1), ("end", 1, 2), instance="a")
    assert audit([new, old]).epochs[0].consumed == {0: 1, 1: 1}


def test_a_ledger_that_is_not_here(write):
    """Rank 1 wrote to another folder: its samples are not said to be missing."""
    here = write(("begin", 1, 0), ("draw", 1, 0, 0), ("draw", 1, 1, 2), ("end", 1, 2), world_size=2)
    there = write(("begin", 1, 0), ("draw", 1, 0, 1), ("draw", 1, 1, 3), ("end", 1, 2), world_size=2, rank=1)
    alone, both = audit([here]), audit([here, there])
    assert [one.describe() for one in alone.absent] == [
        "the ledger of rank 1 of 2 is not here (generation 1, steps 0 to 1)"
    ]
    assert (alone.epochs[0].missing(4), alone.epochs[0].elsewhere(4)) == ([], [1, 3])
    assert both.absent == ()
    assert both.epochs[0].elsewhere(5) == []
    assert both.epochs[0].missing(5) == [4]


def test_a_member_that_died_before_it_began(write):
    """Generation 1 formed with three, one died at once: no step of it counts, and no ledger is asked for."""
    paths = [write(("begin", 1, 0), ("draw", 1, 0, 9), world_size=3, rank=rank) for rank in (0, 2)]
    paths += [write(("begin", 2, 0), ("draw", 2, 0, rank), ("end", 2, 1), rank=rank, world_size=2) for rank in (0, 1)]
    result = audit(paths)
    assert (result.absent, result.epochs[0].missing(2)) == ((), [])


@pytest.mark.parametrize("between", ["generations", "instances"])
def test_generations_of_which_no_ledger_is_here(write, between):
    """A node left at step 1 and came back at step 3; others trained between."""
    first = write(("begin", 1, 0), ("draw", 1, 0, 0), instance="a")
    back = (3, "a") if between == "generations" else (1, "c")
    last = write(("begin", back[0], 3), ("draw", back[0], 3, 3), ("end", back[0], 4), instance=back[1])
    result = audit([first, last])
    assert [one.describe() for one in result.absent] == ["no ledger of steps 1 to 2 is here"]
    assert (result.epochs[0].missing(4), result.epochs[0].elsewhere(4), result.steps_lost) == ([], [1, 2], 2)


def test_what_was_trained_before_the_first_ledger(write):
    """The run went on from a checkpoint of another folder in mid-epoch: nobody knows what is missing."""
    result = audit([write(("begin", 1, 1), ("draw", 1, 1, 1), ("end", 1, 2))])
    assert (result.absent, result.epochs[0].missing(2), result.epochs[0].elsewhere(2)) == ((), [], [0])


def test_left_out_on_purpose(write):
    """`limit_train_batches`: of 8 samples 2 were drawn, and that was the plan; a third that is gone was not."""
    epoch = audit(
        [write(("begin", 1, 0), ("draw", 1, 0, 1, 5), ("epoch", 1, 1, 8, 6, "a limit"), ("end", 1, 1))]
    ).epochs[0]
    assert (epoch.missing(8), epoch.left_out, epoch.why) == ([], 6, "a limit")
    epoch = audit([write(("begin", 1, 0), ("draw", 1, 0, 1), ("epoch", 1, 1, 8, 6, "a limit"), ("end", 1, 1))]).epochs[
        0
    ]
    assert epoch.missing(8) == [0, 2, 3, 4, 5, 6, 7]


def test_left_out_without_a_number(write):
    """Iterable data: nobody knows how many."""
    epoch = audit([write(("begin", 1, 0), ("draw", 1, 0, 1), ("epoch", 1, 1, None, None, "a limit"), ("end", 1, 1))])
    assert epoch.epochs[0].missing(8) == []


def test_an_epoch_that_went_on_after_its_ending(write):
    """`max_steps` ended it at step 1, a resumed run went on in it, and was killed: the rest is missing."""
    path = write(
        ("begin", 1, 0), ("draw", 1, 0, 0), ("epoch", 1, 1, 4, 3, "max_steps=1"), ("end", 1, 1),
        ("begin", 2, 1), ("draw", 2, 1, 1), ("draw", 2, 2, 2),
    )  # fmt: skip
    assert audit([path]).epochs[0].missing(4) == [2, 3]


def test_an_ending_that_was_rolled_back(write):
    """Epoch 0 ended at step 2; the next generation goes on at step 1 and ends it with what was left out before."""
    path = write(
        ("begin", 1, 0), ("draw", 1, 0, 0), ("draw", 1, 1, 1), ("epoch", 1, 2, 4, 2, "a limit"),
        ("begin", 2, 1), ("draw", 2, 1, 1), ("draw", 2, 2, 2), ("epoch", 2, 3, 4, 0, ""), ("end", 2, 3),
    )  # fmt: skip
    assert audit([path]).epochs[0].missing(4) == [3]


def test_an_ending_says_that_its_last_step_was_committed(write):
    """Killed in the validation after it."""
    result = audit([write(("begin", 1, 0), ("draw", 1, 0, 0), ("epoch", 1, 1, 1, 0, ""))])
    assert (result.committed_steps, result.epochs[0].missing(1)) == (1, [])


def test_steps_without_a_draw_are_lost(write):
    result = audit([write(("begin", 1, 0), ("draw", 1, 0, 0), ("begin", 2, 3), ("draw", 2, 3, 1), ("end", 2, 4))])
    assert (result.committed_steps, result.steps_lost) == (2, 2)


def test_nothing_to_audit(tmp_path):
    (tmp_path / "empty").touch()
    for paths in ([], [tmp_path / "empty"]):
        result = audit(paths)
        assert (result.epochs, result.committed_steps, result.steps_lost, result.resume_steps) == ({}, 0, 0, {})


@pytest.mark.parametrize(("kind", "past"), [("begin", "began"), ("end", "ended")])
def test_members_that_disagree(write, kind, past):
    paths = [write((kind, 3, 10)), write((kind, 3, 11), rank=1)]
    with pytest.raises(ValueError, match=f"two members {past} generation 3 at other steps, 10 and 11"):
        audit(paths)


@given(cut=st.integers(1, 200))
def test_a_torn_last_line_is_passed_over(tmp_path_factory, cut):
    """Cut anywhere: the whole lines before it count."""
    path = tmp_path_factory.mktemp("torn") / "a"
    ledger = Ledger(path)
    ledger.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    for step in range(3):
        ledger.draw(generation=1, rank=0, epoch=0, step=step, samples=[step])
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    lines = path.read_bytes().count(b"\n") + whole[-cut:].startswith(b"\n")  # only its end is missing: it counts
    assert audit([path]).committed_steps == max(0, lines - 2)


def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path):
    """The file of a killed writer is opened again: its last line would swallow the next."""
    path = tmp_path / "a"
    path.write_bytes(b'{"v":1,"kind":"begin","generation":1,"rank":0,"world_size":1,"step":0,"epoch":0}\n{"v":1,"ki')
    ledger = Ledger(path)
    ledger.draw(generation=1, rank=0, epoch=0, step=0, samples=[5])
    ledger.end(generation=1, rank=0, step=1)
    ledger.close()
    assert audit([path]).epochs[0].consumed == {5: 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "not a ledger line"),
        (b"[]", "not a ledger line"),
        (b"\xff\xfe", "not a ledger line"),
        (b'{"v":1,"kind":"dance"}', "not a ledger line"),
        (b'{"v":1,"kind":"end","generation":1,"rank":0}', "not a ledger line"),
        (b'{"v":1,"kind":"end","generation":1,"rank":0,"step":"2"}', "not a ledger line"),
        (b'{"v":3,"kind":"end"}', "ledger version 3, this program reads 1 and 2; read it with the version"),
        (b'{"v":2,"kind":"end","instance":7,"generation":1,"rank":0,"step":2}', "not a ledger line"),
        (b'{"v":2,"kind":"epoch","generation":1,"rank":0,"epoch":0,"step":2,"size":4,"why":""}', "not a ledger line"),
        (b'{"kind":"end"}', "ledger version None"),
    ],
)
def test_other_lines_are_refused(tmp_path, line, message):
    """With file and line number."""
    (tmp_path / "a").write_bytes(b'{"v":1,"kind":"end","generation":1,"rank":0,"step":2}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"a:2: {message}"):
        audit([tmp_path / "a"])


def test_a_full_disk(tmp_path, monkeypatch):
    """Half a line was written: the error names the file, and nothing is appended to the half."""
    ledger = Ledger(tmp_path / "a")
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) // 2)
    with pytest.raises(OSError, match="bytes of a ledger line"):
        ledger.end(generation=1, rank=0, step=1)
    ledger.close()


def draw_for_ever(path, begun):
    ledger = Ledger(path)
    ledger.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    step = 0
    while True:
        ledger.draw(generation=1, rank=0, epoch=0, step=step, samples=list(range(2000)))
        step += 1
        if step == 20:
            begun.send(step)


@pytest.mark.process
def test_a_killed_writer_leaves_whole_lines(tmp_path):
    """kill -9 in the middle of writing, several times over: at most the last line is torn, and the audit reads it."""
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / str(attempt)
        reader, writer = context.Pipe(duplex=False)
        victim = context.Process(target=draw_for_ever, args=(path, writer))
        victim.start()
        writer.close()
        assert reader.poll(60)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        reader.close()
        *lines, rest = path.read_bytes().split(b"\n")
        assert all(json.loads(line)["v"] == LEDGER_VERSION for line in lines)
        result = audit([path])
        assert result.committed_steps == len(lines) - 2
        assert (result.steps_lost, result.void_draws) == (0, 1)
        del rest
        victim.close()
