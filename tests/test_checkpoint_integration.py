"""Checkpoints and divergence together, on simulated losses, with one process or several.

    python tests/test_checkpoint_integration.py --scenario all --output-dir /tmp/checkpoints --keep-outputs
    torchrun --nproc_per_node=4 tests/test_checkpoint_integration.py
    pytest tests/test_checkpoint_integration.py

No model is trained: this is about which files are there afterwards, and who decides what on how many ranks. torch is
imported only where there are several.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.reader import best_checkpoint, latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, LatestN
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.elastic.checkpoints.summary import summary
from dtf_lightning.elastic.collectives.rank_zero_work import from_rank_zero, together
from dtf_lightning.elastic.numerics.divergence_detector import Divergence, DivergenceDetector, DivergenceSettings
from dtf_lightning.errors import CheckpointError

OWN_WORK = {1: 1.0, 2: 2.0, 4: 3.0}
"""CPU seconds that a scenario may take, imports and the forming of the group aside, by number of processes."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a scenario is made of."""

    preserve_n_best: int = 2
    save_total_limit: int = 3
    inject_spike_at_step: int | None = None
    num_steps: int = 100
    eval_interval: int = 25
    save_interval: int = 25
    fail_at_step: int | None = None
    """Rank 0's save of this step fails."""
    fail_on_rank: int | None = None
    """This rank's evaluation fails at `fail_at_step`, instead."""


SCENARIOS = {"basic": Parameters(), "spike": Parameters(num_steps=150, inject_spike_at_step=75)}


@dataclass(frozen=True)
class Ranks:
    """The collectives that the scenarios need."""

    rank: int = 0
    world_size: int = 1
    broadcast: Callable[[Any], Any] = lambda value: value
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def log(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


@dataclass
class Result:
    """What a scenario left; the same on all ranks, except that rank 0 alone has looked at the disk."""

    records: tuple[Record, ...]
    divergence: Divergence | None
    stopped_at: int
    error: str = ""


def simulated_loss(step: int, rank: int, spike_at: int | None) -> float:
    """Slowly falling from 2.9; 8.0 from the spike on; a little different on each rank."""
    level = 8.0 if spike_at is not None and step >= spike_at else 2.9 - 0.0015 * step
    return level + 0.001 * ((step * 7 + rank * 13) % 10 - 4.5)


def run(parameters: Parameters, folder: Path, ranks: Ranks) -> Result:
    """Train, evaluate, save; stop when it diverges. Raises what a rank raised, on all ranks."""
    policy = AnyOf((BestN(parameters.preserve_n_best, "eval_loss"), LatestN(parameters.save_total_limit)))
    writer = CheckpointFolder(open_storage(folder), "harness", policy) if ranks.rank == 0 else None
    detector = DivergenceDetector(DivergenceSettings(window=20, warm_up=2, patience=2))
    result = Result((), None, parameters.num_steps)
    for step in range(1, parameters.num_steps + 1):
        loss = simulated_loss(step, ranks.rank, parameters.inject_spike_at_step)
        metrics: dict[str, float] = {}
        if step % parameters.eval_interval == 0:
            work = partial(evaluate, loss, step, ranks.rank, parameters)
            losses = ranks.gather(together(work, gather=ranks.gather))
            metrics["eval_loss"] = sum(losses) / len(losses)
            result.divergence = detector.observe(metrics["eval_loss"], step)
            if result.divergence is not None:
                result.stopped_at = step
                break
        if step % parameters.save_interval == 0:
            work = partial(save, writer, step, metrics, parameters)
            result.records = from_rank_zero(work, rank=ranks.rank, broadcast=ranks.broadcast)
    if result.divergence is not None:
        onset = result.divergence.onset
        result.records = from_rank_zero(
            lambda: (writer.suspect(onset), writer.records)[1], rank=ranks.rank, broadcast=ranks.broadcast
        )
    return result


def save(writer: CheckpointFolder, step: int, metrics: dict[str, float], parameters: Parameters) -> tuple[Record, ...]:
    def content(file: Any) -> None:
        if step == parameters.fail_at_step and parameters.fail_on_rank is None:
            raise OSError(28, "No space left on device")
        file.write(pickle.dumps({"step": step, "weights": bytes(4096)}))

    writer.save(f"checkpoint-{step}.ckpt", {".ckpt": content}, step=step, metrics=metrics)
    return writer.records


def evaluate(loss: float, step: int, rank: int, parameters: Parameters) -> float:
    if (step, rank) == (parameters.fail_at_step, parameters.fail_on_rank):
        raise RuntimeError("this rank's evaluation fails")
    return loss


def check(name: str, parameters: Parameters, folder: Path, result: Result, ranks: Ranks) -> None:
    """On rank 0: one line for each thing that must hold. Raises `AssertionError` for the first that does not."""
    storage = open_storage(folder)
    ranks.log(f"on disk: {' '.join(sorted(path.name for path in folder.glob('*.ckpt')))}")
    ranks.log(summary(result.records, str(folder), [BestN(parameters.preserve_n_best, "eval_loss")]))
    steps = [record.step for record in result.records]
    on_disk = {int(re.findall(r"\d+", path.name)[0]) for path in folder.glob("*.ckpt")}

    def holds(what: str, condition: bool) -> None:
        assert condition, f"{name}: {what} does NOT hold; steps {steps}, on disk {sorted(on_disk)}, {result}"
        ranks.log(f"ok: {what}")

    holds("the files on disk are those that are tracked", on_disk == set(steps))
    holds("every file is intact", all(verify(storage, record).intact for record in result.records))
    holds("there are at most N + M", len(steps) <= parameters.preserve_n_best + parameters.save_total_limit)
    tracked = [record.step for record in BestN(parameters.preserve_n_best, "eval_loss").best(result.records)]
    best, latest = best_checkpoint(folder, "eval_loss"), latest_checkpoint(folder)
    if parameters.inject_spike_at_step is None:
        saved = range(parameters.save_interval, parameters.num_steps + 1, parameters.save_interval)
        expected_best = sorted(saved, reverse=True)[: parameters.preserve_n_best]  # the loss falls
        holds(f"the best are steps {expected_best}", tracked == expected_best)
        recent = sorted(saved)[-parameters.save_total_limit :]
        holds(f"the best and the {len(recent)} most recent remain", set(steps) == {*expected_best, *recent})
        holds("training was not stopped", result.divergence is None)
        holds("best and latest are the last", best == latest == str(folder / f"checkpoint-{saved[-1]}.ckpt"))
    else:
        spike = parameters.inject_spike_at_step
        interval = parameters.eval_interval
        good = list(range(interval, spike, interval))
        triggers = (spike + interval, spike + 2 * interval)
        holds(f"the detector triggers at the evaluation of step {triggers}", result.stopped_at in triggers)
        holds("training stopped there", result.divergence is not None and max(steps) < result.stopped_at)
        holds(f"the checkpoints of steps {good} remain", set(good) <= on_disk)
        holds("the best are from before the spike", set(tracked) <= set(good))
        holds(
            "best and latest are from before the spike",
            {best, latest} <= {str(folder / f"checkpoint-{s}.ckpt") for s in good},
        )


def run_and_check(name: str, parameters: Parameters, output: Path, ranks: Ranks) -> Result:
    """A scenario on all ranks; every rank returns, or every rank raises."""
    folder = output / name
    ranks.gather(None)  # all are there: from here on the time is the scenario's own
    start = time.process_time()
    result = together(lambda: run(parameters, folder, ranks), gather=ranks.gather)
    from_rank_zero(lambda: check(name, parameters, folder, result, ranks), rank=ranks.rank, broadcast=ranks.broadcast)
    same = ranks.gather((result.records, result.divergence, result.stopped_at))
    assert all(other == same[0] for other in same), same
    ranks.log(f"ok: {ranks.world_size} ranks decided the same")
    spent = max(ranks.gather(time.process_time() - start))
    limit = next((limit for size, limit in OWN_WORK.items() if ranks.world_size <= size), 10.0)
    assert spent < limit, f"{name} took {spent:.2f} s of its own work with {ranks.world_size} ranks, limit {limit:g} s"
    ranks.log(f"ok: {name} took {spent:.2f} s of its own work, less than {limit:g} s")
    return result


def connect() -> tuple[Ranks, Callable[[], None]]:
    """The ranks that torchrun has started, or this process alone; and what to call at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Ranks(), lambda: None
    import torch.distributed as dist

    dist.init_process_group("gloo")

    def broadcast(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(value: Any) -> list[Any]:
        values = [None] * world_size
        dist.all_gather_object(values, value)
        return values

    return Ranks(dist.get_rank(), world_size, broadcast, gather), dist.destroy_process_group


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=(*SCENARIOS, "all"), default="all")
    parser.add_argument("--output-dir", type=Path, help="default: a temporary folder")
    parser.add_argument("--keep-outputs", action="store_true", help="do not remove the checkpoints at the end")
    for name in (
        "preserve_n_best",
        "save_total_limit",
        "inject_spike_at_step",
        "num_steps",
        "eval_interval",
        "save_interval",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    arguments = parser.parse_args(argv)
    given = {name: value for name, value in vars(arguments).items() if name in Parameters.__dataclass_fields__}
    given = {name: value for name, value in given.items() if value is not None}
    ranks, disconnect = connect()
    output = ranks.broadcast(
        arguments.output_dir or (Path(tempfile.mkdtemp(prefix="checkpoints-")) if ranks.rank == 0 else None)
    )
    try:
        for name, parameters in SCENARIOS.items():
            if arguments.scenario in (name, "all"):
                ranks.log(f"--- {name}")
                run_and_check(name, replace(parameters, **given), output, ranks)
        ranks.log("ALL ASSERTIONS PASSED")
    finally:
        disconnect()
        if ranks.rank == 0 and not arguments.keep_outputs:
            for name in SCENARIOS:
                shutil.rmtree(output / name, ignore_errors=True)
            if arguments.output_dir is None:
                shutil.rmtree(output, ignore_errors=True)
    return 0


# --- for pytest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name, tmp_path, capsys):
    """In this process; then the same by the command line, which cleans up."""
    run_and_check(name, SCENARIOS[name], tmp_path / "direct", Ranks())
    output = tmp_path / "output"
    assert main(["--scenario", name, "--output-dir", str(output)]) == 0
    assert capsys.readouterr().out.endswith("ALL ASSERTIONS PASSED\n")
    assert not (output / name).exists()


@pytest.mark.parametrize("changes", [
    {"preserve_n_best": 1, "save_total_limit": 1},
    {"preserve_n_best": 3, "save_total_limit": 1, "num_steps": 200, "save_interval": 50},
    {"preserve_n_best": 0, "save_total_limit": 2},
])  # fmt: skip
def test_parameters(changes, tmp_path):
    """Other numbers of best, recent, steps."""
    run_and_check("basic", replace(SCENARIOS["basic"], **changes), tmp_path, Ranks())


def threads(num_ranks: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returned or raised on each rank; the ranks are threads, a collective that hangs is an error."""
    barrier = threading.Barrier(num_ranks)
    shared: list[Any] = [None] * num_ranks
    results: list[Any] = [None] * num_ranks

    def serve(rank: int) -> None:
        def gather(value: Any) -> list[Any]:
            shared[rank] = value
            barrier.wait(120)
            values = list(shared)
            barrier.wait(120)
            return values

        try:
            results[rank] = work(Ranks(rank, num_ranks, lambda value: gather(value)[0], gather))
        except Exception as error:
            results[rank] = error

    workers = [threading.Thread(target=serve, args=(rank,)) for rank in range(num_ranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", SCENARIOS)
def test_several_ranks(name, num_ranks, tmp_path, capsys):
    """The ranks decide the same, rank 0 alone logs."""
    results = threads(num_ranks, lambda ranks: run_and_check(name, SCENARIOS[name], tmp_path, ranks))
    assert all(isinstance(result, Result) for result in results), results
    assert capsys.readouterr().out.count("ok: every file is intact") == 1


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("fail_on_rank", [None, 0, 1])
def test_nobody_waits_for_a_rank_that_failed(num_ranks, fail_on_rank, tmp_path):
    """A save, or one rank's evaluation, fails at step 75: every rank raises, none hangs in a collective."""
    parameters = replace(SCENARIOS["basic"], fail_at_step=75, fail_on_rank=fail_on_rank)
    results = threads(num_ranks, lambda ranks: run_and_check("basic", parameters, tmp_path, ranks))
    assert all(isinstance(result, CheckpointError | RuntimeError) for result in results), results
    assert latest_checkpoint(tmp_path / "basic") == str(tmp_path / "basic" / "checkpoint-50.ckpt")


def test_failing_save(tmp_path):
    """The disk is full at step 75: an error, and the checkpoints of steps 25 and 50 are intact."""
    with pytest.raises(CheckpointError, match="No space left"):
        run(replace(SCENARIOS["basic"], fail_at_step=75), tmp_path, Ranks())
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-50.ckpt")


@pytest.mark.process
def test_as_a_script(tmp_path):
    """`python tests/test_checkpoint_integration.py --keep-outputs`."""
    result = subprocess.run(
        [sys.executable, __file__, "--output-dir", str(tmp_path), "--keep-outputs"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["ALL ASSERTIONS PASSED"]), result.stderr
    assert sorted(path.name for path in (tmp_path / "spike").glob("*.ckpt")) == [
        f"checkpoint-{step}.ckpt" for step in (25, 50, 75)
    ]


@pytest.mark.process
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_under_torchrun(tmp_path, fork_server, num_ranks):
    """Rank 0 alone prints; all ranks end with 0. Two as in a user's shell, four of them forked."""
    from support.elastic.torchrun import Torchrun

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    command = [*launcher, __file__, "--output-dir", str(tmp_path)]
    with Torchrun("", "", command=command, server=fork_server if num_ranks == 4 else None) as node:
        assert node.wait() == 0, node.output[-3000:]
    assert node.output.count("ALL ASSERTIONS PASSED") == 1


if __name__ == "__main__":
    sys.exit(main())
