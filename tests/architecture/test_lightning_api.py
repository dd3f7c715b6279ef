"""Lightning's private names: who may touch them, and that each is what it was when we were written against it.

Both of Lightning's packages are read as text: no test here imports them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from support.source_tree import PACKAGE, parse, sources

WRITTEN_AGAINST = "2.6.6"

PACKAGES = {
    "lightning": {"pytorch": "lightning/pytorch", "fabric": "lightning/fabric"},
    "pytorch_lightning": {"pytorch": "pytorch_lightning", "fabric": "lightning_fabric"},
}
"""Name to import -> folders of its two halves."""

# The source of each method in WRITTEN_AGAINST, the first 16 digits of its SHA-256.
OVERRIDDEN = {
    "pytorch:loops.fit_loop:_FitLoop.run": "32914184815883f4",
    "pytorch:loops.fit_loop:_FitLoop.setup_data": "77855202334401d5",
    "pytorch:loops.fit_loop:_FitLoop.on_run_start": "3d32268fe5be6c42",
    "pytorch:loops.fit_loop:_FitLoop.on_advance_start": "eb489cd65209ec2b",
    "pytorch:loops.fit_loop:_FitLoop.on_advance_end": "a87ac6110b43c573",
    "pytorch:loops.fit_loop:_FitLoop.on_save_checkpoint": "fc877d965133329a",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.on_run_start": "4993b0dcc52bf919",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.advance": "c7555c016027bd73",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.on_advance_end": "2d1ddaa4e45ef5c6",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop._broadcast_sigterm_tensor": "d4e504c3f7d8bcb5",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop._accumulated_batches_reached": "4be46e19d4f0c5f9",
    "pytorch:loops.optimization.automatic:_AutomaticOptimization._make_zero_grad_fn": "0f9b56ff1dc1a3ba",
    "pytorch:loops.evaluation_loop:_EvaluationLoop.run": "d2d233673adbc284",
    "pytorch:loops.prediction_loop:_PredictionLoop.run": "8393c6ec27cd4907",
}

# Not overridden, but the overrides do what these do: a change there is to be followed.
FOLLOWED = {
    "pytorch:loops.fit_loop:_FitLoop.reset": "ee34bf3662fe2739",
    "pytorch:loops.fit_loop:_FitLoop.update_restart_stage": "f0a84f5e08328f31",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.run": "e8393a2170ccbe01",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.reset": "0014631aabe0ac52",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.update_restart_stage": "96c425ee64bd35c9",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop._should_check_val_fx": "cf0916b12e18a2cc",
    "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.update_lr_schedulers": "7ea198b469a428e7",
}

# Function of `elastic/lightning/host/` -> where Lightning defines what it reaches into.
TOUCHED = {
    "loops.forget_loader": {
        "pytorch:loops.fit_loop:_FitLoop.__init__": "8ccd903162543547",
        "pytorch:loops.evaluation_loop:_EvaluationLoop.__init__": "58804c2d60383f5b",
        "pytorch:loops.utilities:_select_data_fetcher": "bfdc8b833df81eb9",
    },
    "loops.logged_step, set_logged_step, skip_next_validation": {
        "pytorch:loops.training_epoch_loop:_TrainingEpochLoop.__init__": "dc28ffa4ba21333e",
    },
    "loops.all_batches_begun": {
        "pytorch:loops.training_epoch_loop:_TrainingEpochLoop._num_ready_batches_reached": "d51c52199e57a7a6",
    },
    "loops.clear_restart_flags": {
        "pytorch:loops.loop:_Loop": "d312f7232330f6dc",
    },
    "loops.leave_evaluation": {
        "pytorch:loops.prediction_loop:_PredictionLoop.__init__": "b0af1259ef91e682",
    },
    "loops.leave_validation": {
        "pytorch:utilities.model_helpers:_ModuleMode": "61b12c565ae7cbe1",
    },
    "loops.forget_running_hook, logs.shown_metrics, end_step": {
        "pytorch:trainer.connectors.logger_connector.logger_connector:_LoggerConnector": "261ae0afb3fe76fa",
        "pytorch:core.module:LightningModule.__init__": "58115b0318457dfe",
    },
    "logs.training_results, result_state, count_as_nothing, forget_computed; rewind/epoch_metrics.py": {
        "pytorch:trainer.connectors.logger_connector.result:_Metadata": "e0865fc66b1c277c",
        "pytorch:trainer.connectors.logger_connector.result:_ResultMetric": "73a13ec1cc9d44fb",
        "pytorch:trainer.connectors.logger_connector.result:_Sync": "2921999e11784902",
        "pytorch:trainer.connectors.logger_connector.result:_ResultCollection": "58213709cb28b39b",
    },
    "logs.opened, close_experiment, log_prefix, adopt_version": {
        "fabric:loggers.csv_logs:CSVLogger.__init__": "5e4f0935e439be38",
        "fabric:loggers.csv_logs:CSVLogger.experiment": "25f01da00ff10e2f",
        "fabric:loggers.tensorboard:TensorBoardLogger.__init__": "4d84b277d86916e0",
        "fabric:loggers.tensorboard:TensorBoardLogger.experiment": "ad518242a43b0e0a",
        "pytorch:loggers.csv_logs:CSVLogger.__init__": "41044d9c6582846f",
        "pytorch:loggers.tensorboard:TensorBoardLogger.__init__": "a8e9c5905addd90e",
        "pytorch:loggers.wandb:WandbLogger.__init__": "81efecccd45c5468",
        "pytorch:loggers.wandb:WandbLogger.experiment": "71638a721b9ec24b",
        "pytorch:loggers.mlflow:MLFlowLogger.__init__": "7551389004ecabf9",
        "pytorch:loggers.mlflow:MLFlowLogger.experiment": "d9798f4176c17c1c",
    },
    "logs.tqdm_bars, stop_rich_bar": {
        "pytorch:callbacks.progress.tqdm_progress:TQDMProgressBar.__init__": "3fe26845278270c2",
        "pytorch:callbacks.progress.tqdm_progress:convert_inf": "9c7ac36c76b4a8eb",
        "pytorch:callbacks.progress.rich_progress:RichProgressBar._stop_progress": "1c25f024822eafef",
    },
    "callbacks.checkpoint_marks, pruning_tickets, go_on_averaging, put_back, measure_throughput": {
        "pytorch:callbacks.pruning:ModelPruning": "bf937c2786ee3a99",
        "pytorch:callbacks.timer:Timer": "e3f5b36e8bcf8ed9",
        "pytorch:callbacks.model_checkpoint:ModelCheckpoint.__init__": "b05bd9929ffc281a",
        "pytorch:callbacks.stochastic_weight_avg:StochasticWeightAveraging": "6f52c1743eabcf3a",
        "pytorch:callbacks.throughput_monitor:ThroughputMonitor": "b43fb17d499be2c1",
        "pytorch:callbacks.gradient_accumulation_scheduler:GradientAccumulationScheduler.on_train_start": "51c5baf2d5209f09",
        "pytorch:callbacks.spike:SpikeDetection": "f5d9cb25bfe2ec48",
    },
    "trainer.on_sigterm": {
        "pytorch:trainer.connectors.signal_connector:_SignalConnector": "65bbb51b00636c81",
    },
    "trainer.set_cluster_environment, replace_strategy": {
        "pytorch:trainer.trainer:Trainer.__init__": "b5aa40d759c67c36",
        "pytorch:trainer.connectors.accelerator_connector:_AcceleratorConnector.__init__": "d610bdfbe380b204",
        "pytorch:strategies.strategy:Strategy.__init__": "f9e936e4569c5032",
    },
    "trainer.syncs_batch_norm, has_comm_hook, starts_processes, arguments_of_one_world": {
        "pytorch:strategies.parallel:ParallelStrategy.__init__": "3782876b3ea23d25",
        "pytorch:strategies.ddp:DDPStrategy.__init__": "fa195bcccaba0633",
    },
    "trainer.dump_checkpoint, load_checkpoint, callback_states": {
        "pytorch:trainer.connectors.checkpoint_connector:_CheckpointConnector": "0532a7cc19fa1b33",
        "pytorch:trainer.call:_call_callbacks_state_dict": "4b6ec700a1577215",
    },
    "names.remake_loader, shut_down_data_workers": {
        "pytorch:utilities.data:_update_dataloader": "c3507b1a3de97569",
        "pytorch:utilities.combined_loader:_shutdown_workers_and_reset_iterator": "941809df0dd2d22e",
    },
}

EXPECTED = {**OVERRIDDEN, **FOLLOWED, **{name: digest for names in TOUCHED.values() for name, digest in names.items()}}

FOREIGN = {
    "_get_ddp_logging_data": "torch's DDP: the only place where it says how long forward and backward took",
    "_set_ddp_runtime_logging_sample_rate": "torch's DDP: how often it measures them",
    "_remove_autograd_hooks": "torch's DDP: or a former generation's hooks stay on the parameters",
    "_file_name": "TensorBoard's writer: the new log must sort behind those of former rank 0s",
    "_general_file_writer": "TensorBoard's writer: the same",
}
"""Private names that are not Lightning's -> why they are touched outside of `host/`."""

NOT_LIGHTNINGS = {"_getframe", "_defaults", "_update_count"}
"""Of `sys`, and of torchmetrics' metrics, which `host/logs.py` puts back."""

MAY_REACH_IN = ("elastic/lightning/host/", "elastic/lightning/loops.py")


@cache
def source(package: str, name: str) -> str:
    """The text of `half:module:qualified name` in one of the packages, with the package's name as the other has it."""
    half, module, qualified = name.split(":")
    top, _, rest = PACKAGES[package][half].partition("/")
    spec = importlib.util.find_spec(top)
    if spec is None:
        pytest.skip(f"{top} is not installed")
    path = Path(spec.origin).parent.joinpath(*filter(None, [rest]), *module.split(".")).with_suffix(".py")
    text = path.read_text()
    node = ast.parse(text)
    for part in qualified.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = "\n".join(text.split("\n")[first - 1 : node.end_lineno]) + "\n"
    return lines.replace("pytorch_lightning", "lightning.pytorch").replace("lightning_fabric", "lightning.fabric")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", EXPECTED)
def test_same_as_when_written(name, package):
    """A new Lightning that changes one of them needs a look at what we do there, then a new digest here."""
    digest = hashlib.sha256(source(package, name).encode()).hexdigest()[:16]
    users = [user for user, names in TOUCHED.items() if name in names] or ["elastic/lightning/loops.py"]
    assert digest == EXPECTED[name], (
        f"{package} changed {name} since {WRITTEN_AGAINST}. Compare the two, put {', '.join(users)} right, then write "
        f"{digest!r} here."
    )


def private_names(text: str) -> set[str]:
    """Names with one leading underscore that the code reads or writes on anything but `self` and `cls`."""
    return {
        node.attr
        for node in ast.walk(parse(text))
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_nobody_else_touches_a_private_name():
    """Of Lightning, torch or TensorBoard; loops.py subclasses Lightning's own loops."""
    wrong = [
        f"{path}: {name}"
        for path, text in sources()
        if path.startswith("elastic/lightning/") and not path.startswith(MAY_REACH_IN)
        for name in sorted(private_names(text) - FOREIGN.keys())
    ]
    assert wrong == []


def test_nobody_else_imports_lightning():
    """By its own name: which of the two packages it is, only `host/` knows. The demo's script is a user's."""
    wrong = [
        f"{path}:{node.lineno}"
        for path, text in sources()
        if not path.startswith(("elastic/lightning/host/", "elastic/demo/"))
        for node in _imported_at_run_time(parse(text))
        for module in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if module.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric")
    ]
    assert wrong == []


def _imported_at_run_time(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from _imported_at_run_time(node)


@pytest.mark.parametrize("path", sorted(path.name for path in (PACKAGE / "elastic/lightning/host").glob("*.py")))
def test_every_private_name_is_watched(path):
    """What a file of `host/` reaches into stands in the source of something in TOUCHED."""
    watched = "".join(source("lightning", name) for name in EXPECTED)
    touched = private_names((PACKAGE / "elastic/lightning/host" / path).read_text()) - NOT_LIGHTNINGS
    assert [name for name in sorted(touched) if not re.search(rf"\b{name}\b", watched)] == []


def test_docstring_lists_the_overrides():
    """The list at the top of loops.py, the classes and this file name the same methods."""
    docstring = (PACKAGE / "elastic/lightning/loops.py").read_text().split('"""')[1]
    listed = {
        f"{owner}.{name}"
        for owner, names in re.findall(r"\* `(\w+)`: ([^;.]*)[;.]", docstring)
        for name in re.findall(r"`(\w+)`", names)
    }
    tree = parse((PACKAGE / "elastic/lightning/loops.py").read_text())
    homes = {name.rpartition(":")[2].partition(".")[0]: name.rpartition(".")[0] for name in OVERRIDDEN}
    defined = set()
    for node in tree.body:
        owner = f"_{ast.unparse(node.bases[0])}" if isinstance(node, ast.ClassDef) and node.bases else ""
        if owner in homes:
            theirs = source("lightning", homes[owner]) + source("lightning", "pytorch:loops.loop:_Loop")
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
            defined |= {f"{owner}.{name}" for name in methods if f"def {name}(" in theirs}
    assert listed == defined == {name.rpartition(":")[2] for name in OVERRIDDEN}
