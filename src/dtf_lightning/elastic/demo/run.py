"""`run_demo` is `dtf demo`: it plays the scenario, trains undisturbed for comparison, and prints a report."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from dtf_lightning import environment
from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.demo import NUM_TRAINING_SAMPLES, report
from dtf_lightning.elastic.demo.display import Display
from dtf_lightning.elastic.demo.interruption import POLL, Interruption
from dtf_lightning.elastic.demo.scenario import DemoFailed, Scenario
from dtf_lightning.elastic.observe.rescale_audit import rescale_costs
from dtf_lightning.elastic.testkit.local_cluster import LocalCluster
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.server.embedded import find_etcd

SCRIPT = Path(__file__).with_name("digits.py")
RUN = "demo"
BATCH_SIZE = 16
UNDISTURBED_BATCH_SIZE = 3 * BATCH_SIZE
"""Samples per step of the undisturbed process: as many as three workers have together."""

MAX_EPOCHS = 1000
"""Number of epochs after which training ends by itself if the demo is killed."""

UNDISTURBED_TIMEOUT = 150.0

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run_demo(folder: Path | None, *, fast: bool, keep: bool, display: Display | None = None) -> int:
    """Run the demo and print its report; return 0 if all is as it should be, 1 if not. Call it from the main thread.

    `folder` None: a new one under `runs/`. `fast`: fewer steps and epochs. `keep`: do not remove the nodes' output.

    Raises `SettingsError` (the folder is in use; scikit-learn or etcd is missing), `DemoFailed`, and `KeyboardInterrupt`
    on Ctrl-C and SIGTERM; all processes have ended by then.
    """
    display = display or Display()
    folder = _prepare(folder)
    min_steps, min_epochs = (20, 3) if fast else (50, 20)
    try:
        with Interruption() as interruption:
            _greet(display, folder)
            wrong = _run(folder, display, interruption, min_steps, min_epochs)
    except BaseException:
        display.clear()
        raise
    if wrong:
        display.write("\nNot as it should be:")
        for line in wrong:
            display.write(f"  - {line}")
        display.write(f"Ledgers, event logs and the nodes' output lie in {folder}.")
        return 1
    display.write(f"\nEverything held. It took {display.elapsed:.0f} s.")
    if not keep:
        shutil.rmtree(folder / "nodes")
    return 0


def _run(folder: Path, display: Display, interruption: Interruption, min_steps: int, min_epochs: int) -> list[str]:
    stop_file, run_dir = folder / "nodes" / "stop", folder / "dtf" / RUN
    arguments = ["--folder", str(folder), "--name", "elastic", "--stop-file", str(stop_file)]
    arguments += ["--epochs", str(MAX_EPOCHS), "--batch-size", str(BATCH_SIZE)]
    with (
        TemporaryDirectory(prefix="dtf-demo-") as temporary,  # also removes what a killed torchrun leaves
        LocalCluster(
            SCRIPT,
            arguments,
            folder=folder / "nodes",
            run_id=RUN,
            run_dir=run_dir,
            nnodes="2:4",  # the first generation waits for both nodes, however slow one is
            max_restarts=1,
            rdzv_conf={"initial_window": "1"},
            variables={**ONE_THREAD, "TMPDIR": temporary},
        ) as cluster,
    ):
        acts = Scenario(
            cluster, display, interruption, min_steps=min_steps, min_epochs=min_epochs, stop_file=stop_file
        ).play()
        audit, events = cluster.audit(), cluster.events()
        pids = {name: node.pid for name, node in cluster.nodes.items()}
    num_epochs = max(audit.epochs) + 1
    _train_undisturbed(folder, num_epochs, display, interruption)
    ledgers = sorted((run_dir / "ledger").glob("*.jsonl"))
    rows = report.rows(
        rescale_costs(ledgers, NUM_TRAINING_SAMPLES), events, acts, _names((path.stem for path in ledgers), pids)
    )
    log = report.read_log(folder / "tensorboard" / "elastic")
    undisturbed = report.read_log(folder / "tensorboard" / "undisturbed")
    for line in ("", *report.table(rows), *report.notes(rows), "", *_results(log, undisturbed, num_epochs)):
        display.write(line)
    return report.problems(rows, audit, log, undisturbed)


def _prepare(folder: Path | None) -> Path:
    """Make the folder and return it. Raises `SettingsError` if it is in use, or if scikit-learn or etcd is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise SettingsError(
            "the demo's digits come with scikit-learn, which is missing: pip install 'dtf-lightning[demo]'"
        )
    find_etcd()
    folder = (folder or Path("runs", f"demo-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"the folder {folder} cannot be used: {error.strerror}") from None
    if used:
        raise SettingsError(f"the folder {folder} is not empty: give a new one, so that one run's log is in it")
    return folder


def _greet(display: Display, folder: Path) -> None:
    display.write(
        "Train a classifier of handwritten digits while nodes join, leave and die. Each node is a torchrun with"
    )
    display.write(f"one worker; etcd {find_etcd().version} serves on this machine. All output goes to {folder}.\n")


def _train_undisturbed(folder: Path, num_epochs: int, display: Display, interruption: Interruption) -> None:
    """Run the same script in one process, for as many epochs. Raises `DemoFailed`."""
    display.say(f"train undisturbed for comparison: one process, {num_epochs} epochs")
    log = folder / "nodes" / "undisturbed.log"
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--name", "undisturbed"]
    command += ["--epochs", str(num_epochs), "--batch-size", str(UNDISTURBED_BATCH_SIZE)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment.for_child(ONE_THREAD, without_prefix="TORCHELASTIC_"),
            start_new_session=True,
        )
    try:

        def has_ended() -> bool:
            display.show("undisturbed training")
            return process.poll() is not None

        with contextlib.suppress(TimeoutError):
            poll_until(has_ended, UNDISTURBED_TIMEOUT, "undisturbed training", interval=POLL, pause=interruption.pause)
        if process.returncode != 0:
            last = log.read_text(errors="replace")[-2000:]
            how = f"ended with {process.returncode}" if process.poll() is not None else "did not end in time"
            raise DemoFailed(f"the undisturbed run {how}; its last words ({log}):\n{last}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _names(ledgers: Iterable[str], pids: Mapping[str, int]) -> dict[str, str]:
    """Return the demo's name of each node id, which contains the agent's pid."""
    nodes = {ledger.rsplit(".", 2)[0] for ledger in ledgers}
    return {node: name for node in nodes for name, pid in pids.items() if f"-{pid}-" in node}


def _results(log: report.TrainingLog, undisturbed: report.TrainingLog, num_epochs: int) -> list[str]:
    accuracy = f"{log.accuracy:.3f} after {num_epochs} epochs; {undisturbed.accuracy:.3f} undisturbed"
    steps = f"{len(log.steps)} points of the loss, from step {log.steps[0]} to {log.steps[-1]}"
    return [
        f"Validation accuracy  {accuracy} (same script and epochs, one process)",
        f"TensorBoard log      {log.folder}",
        f"                     one folder, one version: {steps}",
        f"                     beside the undisturbed run's: tensorboard --logdir {log.folder.parents[1]}",
        f"What happened, as a page: dtf report {log.folder.parents[2]}",
    ]
