"""The audit in SQL says what the ledger's own audit in Python says, and more: by whom, in which generation."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.__main__ import main
from dtf_lightning.elastic.observe.ledger import Ledger, audit
from dtf_lightning.elastic.reports.ledger_audit import audit_run
from dtf_lightning.errors import SettingsError


def two_workers(folder, *, repeat=False):
    """a and b train steps 0 and 1; b dies in step 1, which a draws again alone; of 8 samples 7 is never drawn."""
    a, b = (Ledger(folder / "ledger" / f"{name}.0.1.jsonl") for name in "ab")
    for rank, worker in enumerate((a, b)):
        worker.begin(generation=1, rank=rank, world_size=2, step=0, epoch=0)
        worker.draw(generation=1, rank=rank, epoch=0, step=0, samples=[rank, 2 + rank])
        worker.draw(generation=1, rank=rank, epoch=0, step=1, samples=[4 + rank])
    a.begin(generation=2, rank=0, world_size=1, step=1, epoch=0)
    a.draw(generation=2, rank=0, epoch=0, step=1, samples=[4, 5, 6, 0 if repeat else 6][: 4 if repeat else 3])
    a.draw(generation=2, rank=0, epoch=1, step=2, samples=[*range(8), 0], padding=1)
    a.end(generation=2, rank=0, step=3)
    a.close()
    b.close()


def test_says_by_whom_and_in_which_generation(tmp_path, capsys):
    """Step 1 of generation 1 is void; what it drew was consumed by generation 2."""
    two_workers(tmp_path)
    assert main(["audit", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 workers, 2 generations, 3 optimizer steps committed, 2 draws rolled back and drawn again; training has ended",
        "epoch 0: 7 of 8 samples consumed, 1 missing, 0 repeated, 0 padding",
        "  generation 1: a.0.1 (rank 0) 2, b.0.1 (rank 1) 2",
        "  generation 2: a.0.1 (rank 0) 3",
        "  missing: 7",
        "epoch 1: 8 of 8 samples consumed, 0 missing, 0 repeated, 1 padding",
        "  generation 2: a.0.1 (rank 0) 8",
    ]


def test_streams_have_holes(tmp_path, capsys):
    """Two streams of 3 and 1 samples: numbers 3 and 5 do not exist; what one epoch has and another lacks is missing."""
    worker = Ledger(tmp_path / "a.0.1.jsonl")
    worker.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    worker.draw(generation=1, rank=0, epoch=0, step=0, samples=[0, 1, 2, 4], num_streams=2)
    worker.draw(generation=1, rank=0, epoch=1, step=1, samples=[0, 1, 2], num_streams=2)
    worker.end(generation=1, rank=0, step=2)
    worker.close()
    assert main(["audit", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "epoch 0: 4 of 4 samples consumed, 0 missing, 0 repeated, 0 padding" in said
    assert "  missing: 4" in said


def test_repeated_samples_name_both_draws(tmp_path, capsys):
    two_workers(tmp_path, repeat=True)
    assert main(["audit", str(tmp_path)]) == 1
    line = "  repeated: 0 by a.0.1 (rank 0, generation 1, step 0), a.0.1 (rank 0, generation 2, step 1)"
    assert line in capsys.readouterr().out.splitlines()


def test_json(tmp_path, capsys):
    """For programs: the same numbers; a data set larger than what was drawn is missing the rest."""
    two_workers(tmp_path)
    assert main(["audit", str(tmp_path), "--json", "--samples", "9"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["clean"] is False
    assert [epoch["missing"] for epoch in report["epochs"]] == [[7, 8], [8]]
    assert (report["instances"], report["absent"]) == ([""], [])
    assert report["epochs"][0]["parts"][2] == {
        "instance": "", "generation": 2, "worker": "a.0.1", "rank": 0, "samples": 3, "first_step": 1, "last_step": 1,
    }  # fmt: skip


def test_clean_run(tmp_path, capsys):
    """Exit code 0 says that every sample of every epoch was consumed once."""
    worker = Ledger(tmp_path / "a.0.1.jsonl")
    worker.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    worker.draw(generation=1, rank=0, epoch=0, step=0, samples=[1, 0])
    worker.end(generation=1, rank=0, step=1)
    worker.close()
    assert main(["audit", str(tmp_path)]) == 0
    assert "2 of 2 samples consumed, 0 missing, 0 repeated" in capsys.readouterr().out


def test_torn_line_and_unfinished_run(tmp_path, capsys):
    """The line that kill -9 tore is passed over; the last drawn step of a run that has not ended does not count."""
    worker = Ledger(tmp_path / "a.0.1.jsonl")
    worker.begin(generation=1, rank=0, world_size=1, step=0, epoch=0)
    for step in range(2):
        worker.draw(generation=1, rank=0, epoch=0, step=step, samples=[step])
    worker.close()
    with worker.path.open("a") as file:
        file.write('{"v":1,"kind":"dr')
    assert main(["audit", str(tmp_path)]) == 0
    assert "1 of 1 samples consumed" in capsys.readouterr().out


def killed(folder, *, name="a", rank=0, world_size=1):
    """One worker's life: killed in step 2 of generation 1, with a checkpoint at step 1."""
    worker = Ledger(folder / "ledger" / f"{name}.0.1.jsonl")
    worker.begin(generation=1, rank=rank, world_size=world_size, step=0, epoch=0, instance="f", formed_at=100.0)
    for step in range(3):
        worker.draw(generation=1, rank=rank, epoch=0, step=step, samples=[step * world_size + rank])
    worker.close()


def test_killed_and_resumed_under_its_id(tmp_path, capsys):
    """The documented way: all nodes died; new ones, with the id and the folder, go on from the checkpoint at step 1."""
    killed(tmp_path)
    worker = Ledger(tmp_path / "ledger" / "b.0.1.jsonl")
    worker.begin(generation=1, rank=0, world_size=1, step=1, epoch=0, instance="e", formed_at=200.0)
    for step in range(1, 4):
        worker.draw(generation=1, rank=0, epoch=0, step=step, samples=[step])
    worker.end(generation=1, rank=0, step=4)
    worker.close()
    assert main(["audit", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        (
            "2 workers, 2 generations of 2 instances, 4 optimizer steps committed, 2 draws rolled back and drawn again; "
            "training has ended"
        ),
        "epoch 0: 4 of 4 samples consumed, 0 missing, 0 repeated, 0 padding",
        "  instance 1, generation 1: a.0.1 (rank 0) 1",
        "  instance 2, generation 1: b.0.1 (rank 0) 3",
    ]


def test_nodes_in_different_folders(tmp_path, capsys):
    """Each alone says whose ledger is not here, and of nothing that it is missing; together they are whole."""
    folders = [tmp_path / name for name in "ab"]
    for rank, folder in enumerate(folders):
        killed(folder, name="ab"[rank], rank=rank, world_size=2)
    assert main(["audit", str(folders[0]), "--samples", "4"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "1 workers, 1 generations, 2 optimizer steps committed, 1 draws rolled back and drawn again; training has not ended",
        "the ledger of rank 1 of 2 is not here (generation 1, steps 0 to 1)",
        "  if the run's nodes wrote to several folders, name all of them: dtf audit FOLDER FOLDER ...",
        "epoch 0: 2 of 4 samples consumed, 2 not in these ledgers, 0 repeated, 0 padding",
        "  generation 1: a.0.1 (rank 0) 2",
        "  not in these ledgers: 1, 3",
    ]
    assert main(["audit", *map(str, folders), "--samples", "4"]) == 0
    assert "4 of 4 samples consumed, 0 missing" in capsys.readouterr().out


def test_left_out_on_purpose(tmp_path, capsys):
    """A limit of 2 of 10 samples in each epoch; in epoch 1 one of the two was lost."""
    worker = Ledger(tmp_path / "a.0.1.jsonl")
    worker.begin(generation=1, rank=0, world_size=1, step=0, epoch=0, instance="e", formed_at=1.0)
    for epoch, samples in enumerate([[9, 4], [3]]):
        worker.draw(generation=1, rank=0, epoch=epoch, step=epoch, samples=samples)
        worker.epoch_ends(
            generation=1, rank=0, epoch=epoch, step=epoch + 1, size=10, left_out=8, why="limit_train_batches=1"
        )
    worker.end(generation=1, rank=0, step=2)
    worker.close()
    assert main(["audit", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "epoch 0: 2 of 10 samples consumed, 0 missing, 8 left out on purpose (limit_train_batches=1), 0 repeated, 0 padding",
        "  generation 1: a.0.1 (rank 0) 2",
        "epoch 1: 1 of 10 samples consumed, 1 missing, 8 left out on purpose (limit_train_batches=1), 0 repeated, 0 padding",
        "  generation 1: a.0.1 (rank 0) 1",
        "  missing, 8 of these on purpose: 0, 1, 2, 4, 5, 6, 7, 8, 9",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are no ledger|has no|0 workers"),
        ("hello\nworld\n", r"jsonl:1: not a ledger line: b'hello'"),
        ('{"v":1,"kind":"draw","generation":1}\n', "not a ledger line"),
        ('{"v":3,"kind":"end","generation":1,"rank":0,"step":1}\n', r"ledger versions \[3\] .* reads 1 and 2"),
        (
            '{"v":2,"kind":"epoch","generation":1,"rank":0,"epoch":0,"step":1,"size":1,"left_out":0}\n',
            "not a ledger line",
        ),
        (
            (
                '{"v":1,"kind":"end","generation":1,"rank":0,"step":1}\n'
                '{"v":1,"kind":"end","generation":1,"rank":1,"step":2}\n'
            ),
            "two members ended generation 1 at other steps, 1 and 2",
        ),
        (
            (
                '{"v":1,"kind":"begin","generation":1,"rank":0,"world_size":1,"step":1,"epoch":0}\n'
                '{"v":1,"kind":"begin","generation":1,"rank":1,"world_size":1,"step":2,"epoch":0}\n'
            ),
            "two members began generation 1 at other steps, 1 and 2",
        ),
    ],
)
def test_broken_ledgers(tmp_path, text, message):
    path = tmp_path / "ledger" / "a.jsonl"
    path.parent.mkdir()
    path.write_text(text)
    if not text:
        assert audit_run(tmp_path).epochs == ()
        return
    with pytest.raises(SettingsError, match=message):
        audit_run(tmp_path)


def test_no_ledgers(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 1
    assert "is no run's folder" in capsys.readouterr().err
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.jsonl").touch()
    assert main(["audit", str(tmp_path)]) == 1
    assert "of a run with ElasticCallback(ledger=True)" in capsys.readouterr().err


HISTORIES = st.lists(
    st.fixed_dictionaries(
        {
            "back": st.integers(0, 3),
            "new_instance": st.booleans(),
            "skipped": st.sampled_from([0, 0, 1]),
            "present": st.sampled_from([(0,), (1,), (0, 1), (0, 1)]),
            "draws": st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=4),
            "ending": st.sampled_from([None, (10, 0, ""), (10, 7, "a limit"), (None, None, "a limit")]),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=HISTORIES, named=st.booleans(), ended=st.booleans())
def test_agrees_with_the_audit_in_python(tmp_path_factory, history, named, ended):
    """Any history of generations and instances that begin anywhere, draw anything, and lack ledgers."""
    folder = tmp_path_factory.mktemp("run")
    workers = [Ledger(folder / "ledger" / f"{name}.jsonl") for name in "ab"]
    step, instance, number = 0, 0, 0
    for life in history:
        if named and life["new_instance"]:
            instance, number = instance + 1, 0
        step, number = max(0, step - life["back"]), number + 1 + life["skipped"]
        for rank in life["present"]:
            workers[rank].begin(
                generation=number, rank=rank, world_size=2, step=step, epoch=0,
                instance=f"{9 - instance}" if named else "", formed_at=instance + number / 100,
            )  # fmt: skip
        for epoch, sample in life["draws"]:
            for rank in life["present"]:
                samples, padding = [sample, 9], sample % 2
                workers[rank].draw(
                    generation=number, rank=rank, epoch=epoch, step=step, samples=samples, padding=padding
                )
            step += 1
        if life["draws"] and life["ending"] is not None:
            size, left_out, why = life["ending"]
            for rank in life["present"]:
                workers[rank].epoch_ends(
                    generation=number, rank=rank, epoch=life["draws"][-1][0], step=step, size=size, left_out=left_out, why=why
                )  # fmt: skip
    if ended:
        for rank in history[-1]["present"]:
            workers[rank].end(generation=number, rank=rank, step=step)
    for worker in workers:
        worker.close()
    report, expected = audit_run(folder, dataset_size=10), audit([worker.path for worker in workers])
    assert report.void_draws == expected.void_draws
    assert report.committed_steps == expected.committed_steps
    assert (report.absent, report.instances) == (expected.absent, expected.instances)
    assert [epoch.epoch for epoch in report.epochs] == sorted(expected.epochs)
    for epoch in report.epochs:
        other = expected.epochs[epoch.epoch]
        assert list(epoch.missing) == other.missing(10)
        assert list(epoch.elsewhere) == other.elsewhere(10)
        assert epoch.why == other.why
        assert {r.sample: len(r.by) - 1 for r in epoch.repeated} == other.repeated()
        assert epoch.padding == other.padding
