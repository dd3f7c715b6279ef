"""Does a run that is rescaled train as well as one that is not? Five seeds each, digits and a character language model.

Per task and optimizer: an undisturbed run of two workers; the same run rescaled live 2 -> 4 -> 1 -> 3 at a quarter, a half
and three quarters of its epochs, with a `global` batch and with `per_rank` and each rule for the learning rate that could
fit; and a run that goes through the same worlds by restarts from checkpoints. The number is the held-out loss after the
last epoch, mean over the seeds, and how far it is from the undisturbed one in standard deviations of that one's seeds.

    python benchmarks/quality.py [--folder RESULTS] [--only digits-sgd] [--plot docs/quality.png] [--no-run]

Results are kept in the folder: what is there already is not run again. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from measure import table
from train_quality import EPOCHS, SEEDS

from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.elastic.testkit.local_cluster import LocalCluster
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd

SCRIPT = Path(__file__).with_name("train_quality.py")
PATIENCE = 120.0
WORLDS = (2, 4, 1, 3)
RULES = {
    ("digits", "sgd"): ("none", "linear"),
    ("digits", "adam"): ("none", "sqrt", "adam_sde"),
    ("characters", "adam"): ("none", "sqrt", "adam_sde"),
}
UNDISTURBED = "undisturbed"
LIVE = {"stability_window": "1.5", "initial_window": "20", "max_wait": "20"}


@dataclass(frozen=True)
class Curve:
    """Held-out losses after each epoch, by seed, and the worlds."""

    losses: list[list[float]]
    worlds: list[int]

    @property
    def final(self) -> list[float]:
        return self.losses[-1]


def read_curve(folder: Path) -> Curve:
    """An epoch's end that a rescale made run again counts once."""
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    by_epoch = {line["epoch"]: line for line in lines}
    assert sorted(by_epoch) == list(range(len(by_epoch)))
    return Curve([by_epoch[e]["losses"] for e in sorted(by_epoch)], [by_epoch[e]["world"] for e in sorted(by_epoch)])


class Run:
    """One way to train one task with one optimizer."""

    def __init__(self, endpoint: str, folder: Path, task: str, optimizer: str, way: str) -> None:
        self.endpoint, self.folder, self.task, self.way = endpoint, folder, task, way
        rule = way.removeprefix("per_rank, ")
        self.arguments = [f"--folder={folder}", f"--task={task}", f"--optimizer={optimizer}"]
        self.arguments += [f"--rule={rule}"] if rule != way else []
        epochs = EPOCHS[task]
        self.borders = [epochs // 4, epochs // 2, epochs * 3 // 4]

    def train(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.way == UNDISTURBED:
            self._life("whole", WORLDS[0], [])
        elif self.way.startswith("restart"):
            for number, (world, until) in enumerate(zip(WORLDS, [*self.borders, EPOCHS[self.task]], strict=True)):
                self._life(f"life-{number}", world, [f"--until={until}"])
        else:
            self._live()
        (self.folder / "done").touch()

    def _cluster(self, name: str, arguments: list[str], conf: dict[str, str], nnodes: str) -> LocalCluster:
        return LocalCluster(
            SCRIPT,
            [*self.arguments, *arguments],
            folder=self.folder / name,
            run_id=f"{self.folder.parent.name}-{self.folder.name}-{name}-{time.time():.0f}".replace(" ", ""),
            endpoint=self.endpoint,
            nnodes=nnodes,
            rdzv_conf=conf,
        )

    def _life(self, name: str, world: int, arguments: list[str]) -> None:
        with self._cluster(name, arguments, LIVE, f"1:{world}") as cluster:
            for number in range(world):
                cluster.start(f"n{number}")
            check(cluster.wait(2 * PATIENCE))

    def _live(self) -> None:
        waits = ["--waits", *map(str, self.borders)]
        with self._cluster("live", waits, {**LIVE, "initial_window": "1.5"}, "1:4") as cluster:
            first, second, third = self.borders
            self._start(cluster, "ab")
            self._change(cluster, first, lambda: self._start(cluster, "cd"), joining=2)
            self._change(cluster, second, lambda: [cluster.nodes[n].send(signal.SIGTERM) for n in "bcd"], leaving=3)
            self._change(cluster, third, lambda: self._start(cluster, "ef"), joining=2)
            codes = cluster.wait(2 * PATIENCE)
            check({name: codes[name] for name in "aef"})  # torchrun's code for a SIGTERM is 1

    def _start(self, cluster: LocalCluster, names: str) -> None:
        for name in names:
            cluster.start(name, variables={"BENCH_NODE": name, "BENCH_TOGETHER": names})

    def _change(self, cluster: LocalCluster, epoch: int, act: object, *, joining: int = 0, leaving: int = 0) -> None:
        """Bring or send away nodes while all workers wait at the beginning of an epoch."""
        cluster.wait_until((self.folder / f"at-{epoch}").exists, f"epoch {epoch}", PATIENCE)
        act()

        def agreed() -> bool:
            view = RunView(RunKeys(cluster.run_id))
            view.reset(cluster.store.range(view.keys.prefix))
            generation, directive = view.generation, view.directive
            if directive is None or directive.target <= generation.number or not directive.boundary:
                return False
            members = {member.node for member in generation.members}
            newcomers = [node for node in view.nodes if node not in members and node in directive.reason]
            return len(newcomers) >= joining and len(directive.leaving) >= leaving

        cluster.wait_until(agreed, f"{joining} joining, {leaving} leaving", PATIENCE)
        (self.folder / f"go-{epoch}").touch()


def check(codes: dict[str, int]) -> None:
    if any(codes.values()):
        raise SystemExit(f"nodes failed: {codes}")


def ways(task: str, optimizer: str) -> list[str]:
    return [UNDISTURBED, "global", *(f"per_rank, {rule}" for rule in RULES[task, optimizer]), "restart, global"]


def rows_of(folder: Path, task: str, optimizer: str) -> list[list[str]]:
    """One row per way: mean and deviation over seeds, distance, whether it is within one deviation, worlds by epoch."""
    curves = {way: read_curve(folder / way) for way in ways(task, optimizer) if (folder / way / "done").exists()}
    reference = curves[UNDISTURBED].final
    deviation = statistics.stdev(reference)
    rows = []
    for way, curve in curves.items():
        away = (statistics.mean(curve.final) - statistics.mean(reference)) / deviation
        by_seed = [mine - theirs for mine, theirs in zip(curve.final, reference, strict=True)]
        rows.append(
            [
                way,
                f"{statistics.mean(curve.final):.4f}",
                f"{statistics.stdev(curve.final):.4f}",
                "" if way == UNDISTURBED else f"{away:+.2f}",
                "" if way == UNDISTURBED else f"{statistics.mean(map(abs, by_seed)):.4f}",
                "" if way == UNDISTURBED else "yes" if abs(away) <= 1 else "no",
                " ".join(map(str, curve.worlds)),
            ]
        )
    return rows


def plot(path: Path, folder: Path, pairs: list[tuple[str, str]]) -> None:
    """Held-out loss by epoch above, the seeds' final losses below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(pairs), figsize=(5.2 * len(pairs), 7.5), squeeze=False)
    for column, (task, optimizer) in enumerate(pairs):
        above, below = axes[:, column]
        here = folder / f"{task}-{optimizer}"
        names = [way for way in ways(task, optimizer) if (here / way / "done").exists()]
        for number, way in enumerate(names):
            curve = read_curve(here / way)
            epochs = range(1, len(curve.losses) + 1)
            style = {"color": "black", "linewidth": 2.5} if way == UNDISTURBED else {"color": f"C{number - 1}"}
            above.plot(epochs, [statistics.mean(losses) for losses in curve.losses], label=way, **style)
            below.plot([number] * SEEDS, curve.final, "o", color=style["color"], alpha=0.6)
            below.plot([number - 0.3, number + 0.3], [statistics.mean(curve.final)] * 2, color=style["color"])
        reference = read_curve(here / UNDISTURBED).final
        middle, deviation = statistics.mean(reference), statistics.stdev(reference)
        below.axhspan(middle - deviation, middle + deviation, color="0.9", zorder=0)
        for border in (1, 2, 3):
            above.axvline(EPOCHS[task] * border / 4, color="0.8", zorder=0)
        above.set(title=f"{task}, {optimizer}: 2, 4, 1, 3 workers", xlabel="epoch", yscale="log")
        above.set_ylabel("held-out loss, mean of 5 seeds")
        above.legend(fontsize=8)
        below.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        below.set_ylabel("after the last epoch, each seed")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", choices=["-".join(pair) for pair in RULES])
    parser.add_argument("--plot", type=Path, help="write a PNG; needs matplotlib (the extra `plots`)")
    parser.add_argument("--no-run", action="store_true", help="print and plot what is there")
    arguments = parser.parse_args()
    pairs = [pair for pair in RULES if arguments.only in (None, "-".join(pair))]
    if not arguments.no_run:
        with EmbeddedEtcd() as etcd:
            for task, optimizer in pairs:
                for way in ways(task, optimizer):
                    folder = arguments.folder.absolute() / f"{task}-{optimizer}" / way
                    if (folder / "done").exists():
                        continue
                    began = time.monotonic()
                    Run(etcd.endpoint, folder, task, optimizer, way).train()
                    took = time.monotonic() - began
                    print(f"{task}, {optimizer}, {way}: {took:.0f} s", file=sys.stderr, flush=True)
    for task, optimizer in pairs:
        header = ["run", "held-out loss", "standard deviation over seeds", "from undisturbed, in its deviations",
                  "mean distance by seed", "within one", "workers at each epoch's end"]  # fmt: skip
        rows = rows_of(arguments.folder.absolute() / f"{task}-{optimizer}", task, optimizer)
        print(table(f"{task}, {optimizer}, {SEEDS} seeds", header, rows))
    if arguments.plot:
        plot(arguments.plot, arguments.folder.absolute(), pairs)


if __name__ == "__main__":
    main()
