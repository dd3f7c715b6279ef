"""The user's logs and progress bars of a run whose rank 0 is killed, leaves and is killed again."""

from __future__ import annotations

import csv
import re
import signal
from itertools import groupby, pairwise

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtf_lightning.elastic.events import ELASTIC_EVENTS, StragglerSeen
from dtf_lightning.events.log import read_events
from support.elastic.training import Training

pytestmark = pytest.mark.process


def test_one_log(make_run):
    """Rank 0 is killed, the next one leaves, its successor is killed too, others join: one TensorBoard folder and one
    CSV, each curve point by point without a gap, as TensorBoard's own reader reads them; each rank 0 has its bar."""
    training = Training(until_stopped=True, batch_norm=False, tensorboard=True, progress_bar="tqdm")
    run = make_run(training, failure_tolerance=10, max_consecutive_failures=10)
    for number, name in enumerate("abcd", start=1):
        run.start(name)
        generation = run.wait_for_world(number)
    for victim, left in (("a", 3), ("b", 2)):
        run.wait_for_steps(40)
        if victim == "a":
            psutil.Process(run.nodes[victim].worker_pids()[0]).kill()
        else:
            run.nodes[victim].send(signal.SIGTERM)
        generation = run.wait_for_world(left, after=generation)
    run.start("e")
    generation = run.wait_for_world(3, after=generation)
    run.wait_for_steps(40)
    psutil.Process(run.nodes["c"].worker_pids()[0]).kill()
    run.wait_for_world(2, after=generation)
    run.wait_for_steps(20)
    run.stop()
    run.wait_until_over(failed=2)
    run.check(survivors=2)

    num_steps = next(iter(run.results().values()))["same"]["global_step"]
    assert [path.name for path in (run.folder / "tensorboard").iterdir()] == ["version_0"]
    assert [path.name for path in (run.folder / "csv").iterdir()] == ["version_0"]
    folder = run.folder / "tensorboard" / "version_0"
    assert len(list(folder.glob("events*"))) == 4  # one for each rank 0
    # As TensorBoard shows it: a rank 0 that was killed may have written a step that was undone, which its successor voids.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    # A rank 0 that leaves late may write its last point beside its successor's: the same one, which a curve does not show.
    steps = {
        tag: [step for (step, _), _ in groupby(events.Scalars(tag), key=lambda point: (point.step, point.value))]
        for tag in events.Tags()["scalars"]
    }
    for tag, points in steps.items():
        back = [pair for pair in pairwise(points) if pair[0] >= pair[1]]
        assert not back or tag == "epoch", (tag, back)  # `epoch` comes with every call of a logger
    assert steps["loss_step"] == list(range(num_steps))
    sizes = [int(point.value) for point in events.Scalars("elastic/world_size")]
    texts = events.Tensors("elastic/rescales/text_summary")
    told = [event.tensor_proto.string_val[0].decode() for event in texts]
    changes = [size for before, size in zip([0, *sizes], sizes, strict=False) if size != before]
    assert changes[0] == 1
    assert changes[-5:] == [4, 3, 2, 3, 2]
    assert re.findall(r"generation (\d+)", " ".join(told)) == [str(number) for number in range(1, len(told) + 1)]
    with (run.folder / "csv/version_0/metrics.csv").open(newline="") as file:
        rows = [int(row["step"]) for row in csv.DictReader(file) if row["loss_step"]]
    assert rows == list(range(num_steps))
    for name in ("a", "b", "c", "d"):
        bars = run.nodes[name].log()
        assert re.search(r"Epoch \d+: .*world=\d, gen=\d+", bars), bars[-2000:]
    assert "Epoch" not in run.nodes["e"].log()


@pytest.mark.chaos
def test_slow_node_is_named(make_run):
    """One of two nodes takes 20 ms longer for every forward pass, while both log a synchronised metric in it."""
    run = make_run(Training(until_stopped=True, batch_norm=False, slow_on="b"))
    run.start("a")
    run.wait_for_world(1)
    run.start("b")
    run.wait_for_world(2)
    run.wait_for_log("a", "b/0 is slow: it is busy")
    run.stop()
    run.wait_until_over()
    events = [event for path in run.folder.glob("events/*.jsonl") for event in read_events(ELASTIC_EVENTS, path)]
    assert "b/0" in {event.worker for event in events if isinstance(event, StragglerSeen)}
