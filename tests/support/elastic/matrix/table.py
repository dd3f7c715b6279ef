"""What becomes of everything that Lightning ships in an elastic run. Data only: docs/generate.py prints it.

A test finds out from Lightning's own package whether each thing has its row; others hold what the rows say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

EVENTS = ("join", "leave", "leave of rank 0", "kill -9")
PLACES = ("step", "validation", "epoch end", "save")


class Verdict(Enum):
    """What happens to a script that uses it."""

    HELD = "held"  # members are equal, and what is logged is what an undisturbed run logs
    REFUSED = "refused"  # at the start, with the line to write
    BASE = "a base class"  # users derive their own from it, and those go through as any callback of a user's
    SETUP = "set-up"  # runs on each worker before the first generation, or on a joiner before it joins
    OUTSIDE = "outside of fit"  # not a part of an elastic run
    NO_HOOK = "no hook"  # users call it, Lightning does not


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that Lightning ships."""

    verdict: Verdict = Verdict.HELD
    says: str = ""
    """For readers of the docs: what is each process's own, or what to write instead."""


CALLBACKS: dict[str, Row] = {
    "BackboneFinetuning": Row(says="a joiner takes over the groups that it has added"),
    "BaseFinetuning": Row(says="the example of its documentation; a joiner takes over what is unfrozen and the groups"),
    "BasePredictionWriter": Row(verdict=Verdict.OUTSIDE, says="writes in `predict`, which is not elastic"),
    "BatchSizeFinder": Row(
        verdict=Verdict.REFUSED, says="look for the batch size once without torchrun, write it down"
    ),
    "Callback": Row(verdict=Verdict.BASE, says="what is in its `state_dict` goes to a joiner"),
    "Checkpoint": Row(verdict=Verdict.BASE),
    "DeviceStatsMonitor": Row(says="logs rank 0's machine, whichever that is"),
    "EMAWeightAveraging": Row(),
    "EarlyStopping": Row(),
    "GradientAccumulationScheduler": Row(says='`batch="global"`, `tail="exact"` and `virtual_ranks` refuse it'),
    "LambdaCallback": Row(says="its functions are pickled by nobody: each worker's script makes them"),
    "LearningRateFinder": Row(
        verdict=Verdict.REFUSED, says="look for the learning rate once without torchrun, write it down"
    ),
    "LearningRateMonitor": Row(says="`lrs`, the list that it keeps besides the log, begins anew on a joiner"),
    "ModelCheckpoint": Row(says="`train_time_interval` counts from when a worker came"),
    "ModelPruning": Row(
        says="a joiner prunes what the run has pruned, and gets the first weights to which it goes back"
    ),
    "ModelSummary": Row(says="printed once, by rank 0 of the first generation"),
    "OnExceptionCheckpoint": Row(says="a rescale is no exception to it"),
    "ProgressBar": Row(verdict=Verdict.BASE, says="shows the world; whoever is rank 0 shows it"),
    "RichModelSummary": Row(says="printed once, by rank 0 of the first generation"),
    "RichProgressBar": Row(says="shows the world; whoever is rank 0 shows it"),
    "SpikeDetection": Row(
        verdict=Verdict.REFUSED, says="write `DivergenceStopping()`: Lightning's cannot load its own state"
    ),
    "StochasticWeightAveraging": Row(),
    "TQDMProgressBar": Row(says="shows the world; whoever is rank 0 shows it"),
    "ThroughputMonitor": Row(says="rates of the current world; another rank 0 counts from where it took over"),
    "Timer": Row(says="a joiner goes on from the run's time"),
    "WeightAveraging": Row(),
}


def _hooks(verdict: Verdict, names: str, says: str = "") -> dict[str, Row]:
    return {name: Row(verdict=verdict, says=says) for name in names.split()}


HOOKS: dict[str, Row] = {
    **_hooks(
        Verdict.HELD,
        "forward training_step validation_step backward optimizer_step optimizer_zero_grad "
        "configure_gradient_clipping on_after_backward on_after_batch_transfer on_before_backward on_before_batch_transfer "
        "on_before_optimizer_step on_before_zero_grad on_save_checkpoint on_train_batch_end on_train_batch_start "
        "on_train_epoch_end on_train_epoch_start on_validation_batch_end on_validation_batch_start on_validation_end "
        "on_validation_epoch_end on_validation_epoch_start on_validation_model_eval on_validation_model_train "
        "on_validation_start transfer_batch_to_device val_dataloader",
    ),
    "lr_scheduler_step": Row(says="a scheduler that it has not stepped is stepped again, one that it has is not"),
    "train_dataloader": Row(says="called once more in each generation"),
    **_hooks(Verdict.HELD, "on_load_checkpoint", "runs on a joiner, as for a file, before it takes the run's state over"),
    **_hooks(Verdict.HELD, "on_train_start", "runs once on each worker: on a joiner when it joins, without its peers"),
    **_hooks(
        Verdict.HELD, "on_validation_model_zero_grad", "Lightning calls it before a validation inside of a training epoch"
    ),
    **_hooks(
        Verdict.SETUP,
        "configure_callbacks configure_model configure_optimizers configure_sharded_model on_fit_start prepare_data setup",
        "runs before a worker joins; a worker that dies in it is not missed",
    ),
    **_hooks(
        Verdict.OUTSIDE, "on_fit_end on_train_end teardown", "runs when all members have finished; a death there is no failure"
    ),
    **_hooks(
        Verdict.OUTSIDE,
        "on_predict_batch_end on_predict_batch_start on_predict_end on_predict_epoch_end on_predict_epoch_start "
        "on_predict_model_eval on_predict_start on_test_batch_end on_test_batch_start on_test_end on_test_epoch_end "
        "on_test_epoch_start on_test_model_eval on_test_model_train on_test_start predict_dataloader predict_step "
        "test_dataloader test_step",
        "not a part of `fit`",
    ),
    **_hooks(
        Verdict.NO_HOOK,
        "all_gather clip_gradients freeze log log_dict lr_schedulers manual_backward optimizers print to_onnx to_tensorrt "
        "to_torchscript toggle_optimizer toggled_optimizer unfreeze untoggle_optimizer",
    ),
}  # fmt: skip

_INSTEAD = 'write `Trainer(strategy="ddp")`'
_STARTS = f"starts processes itself, which torchrun has done: {_INSTEAD}"
_GROUPS = f"its process groups cannot be formed anew: {_INSTEAD}"
_HARDWARE = "Lightning makes it on its own hardware only; not DDP"

STRATEGIES: dict[str, Row] = {
    "ddp": Row(),
    "ddp_find_unused_parameters_false": Row(),
    "ddp_find_unused_parameters_true": Row(),
    **{
        name: Row(verdict=Verdict.REFUSED, says=_STARTS)
        for start in ("spawn", "fork", "notebook")
        for name in (
            f"ddp_{start}",
            f"ddp_{start}_find_unused_parameters_false",
            f"ddp_{start}_find_unused_parameters_true",
        )
    },
    **{
        name: Row(verdict=Verdict.REFUSED, says=_GROUPS)
        for name in (
            "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload", "deepspeed_stage_3",
            "deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme", "fsdp", "fsdp_cpu_offload",
        )
    },
    "single_device": Row(says="Lightning's choice for one device of a worker; becomes DDP"),
    **{
        name: Row(verdict=Verdict.REFUSED, says=_HARDWARE) for name in ("single_tpu", "single_xla", "xla", "xla_debug")
    },
}  # fmt: skip
"""By the names that `Trainer(strategy=...)` knows."""

STRATEGY_CLASSES: dict[str, Row] = {
    "DDPStrategy": Row(says="a subclass of it is refused"),
    "DeepSpeedStrategy": Row(verdict=Verdict.REFUSED, says=_GROUPS),
    "FSDPStrategy": Row(verdict=Verdict.REFUSED, says=_GROUPS),
    "ModelParallelStrategy": Row(verdict=Verdict.REFUSED, says=_GROUPS),
    "ParallelStrategy": Row(verdict=Verdict.BASE),
    "SingleDeviceStrategy": Row(says="becomes DDP"),
    "Strategy": Row(verdict=Verdict.BASE),
}

_RUNS_OWN = "the run's own takes its place"
_NO_JOINER = "no joiner could take it over: leave it out"
_LEAVES_HOOKS = "its hooks stay on the parameters, with the group of the world for which they were made: leave it out"

DDP_ARGUMENTS: dict[str, Row] = {
    # Lightning's
    "accelerator": Row(says="Lightning sets it"),
    "checkpoint_io": Row(),
    "cluster_environment": Row(says=_RUNS_OWN),
    "ddp_comm_hook": Row(says="`virtual_ranks` refuses it"),
    "ddp_comm_state": Row(verdict=Verdict.REFUSED, says=f"a hook's state is each rank's own (PowerSGD, local SGD); {_NO_JOINER}"),
    "ddp_comm_wrapper": Row(),
    "model_averaging_period": Row(verdict=Verdict.REFUSED, says=f"weights would be each rank's own; {_NO_JOINER}"),
    "parallel_devices": Row(says="Lightning sets it"),
    "precision_plugin": Row(),
    "process_group_backend": Row(says="gloo, and NCCL for gradients on CUDA"),
    "start_method": Row(verdict=Verdict.REFUSED, says=_STARTS),
    "timeout": Row(),
    # torch's
    "batched_grad_copy": Row(),
    "broadcast_buffers": Row(),
    "bucket_cap_mb": Row(),
    "bucket_cap_mb_list": Row(),
    "check_reduction": Row(says="torch ignores it"),
    "delay_all_reduce_named_params": Row(verdict=Verdict.REFUSED, says=_LEAVES_HOOKS),
    "device_ids": Row(says="Lightning sets it"),
    "device_mesh": Row(verdict=Verdict.REFUSED, says=f"is of one world; {_NO_JOINER}"),
    "dim": Row(says="torch ignores it where a worker has one device"),
    "find_unused_parameters": Row(),
    "forward_sync_buffers": Row(),
    "gradient_as_bucket_view": Row(),
    "init_sync": Row(says="the run's own takes its place: after a rescale nothing needs to be sent"),
    "mixed_precision": Row(verdict=Verdict.REFUSED, says='casts the model, for one wrapping: write `Trainer(precision="bf16-mixed")`'),
    "output_device": Row(says="Lightning sets it"),
    "param_to_hook_all_reduce": Row(verdict=Verdict.REFUSED, says=_LEAVES_HOOKS),
    "process_group": Row(verdict=Verdict.REFUSED, says=f"is of one world; {_NO_JOINER}"),
    "skip_all_reduce_unused_params": Row(),
    "static_graph": Row(),
}  # fmt: skip
"""What `DDPStrategy(...)` takes: its own arguments, and those that it hands to torch's `DistributedDataParallel`."""

_DOWNLOADS = "downloads its data; its module goes through with other data"
_NO_ORDER = "its order belongs to nobody: `DataLoader(shuffle=True)`"
_ITERABLE = "an iterable data set without streams: give it `num_shards` and `shard`"

DEMOS: dict[str, Row] = {
    "BoringDataModule": Row(),
    "BoringDataModuleNoLen": Row(verdict=Verdict.REFUSED, says=_ITERABLE),
    "BoringModel": Row(),
    "DemoModel": Row(),
    "Dictionary": Row(verdict=Verdict.OUTSIDE, says="no part of training"),
    "IterableBoringDataModule": Row(verdict=Verdict.REFUSED, says=_ITERABLE),
    "LightningLSTM": Row(verdict=Verdict.REFUSED, says=f"a batch sampler of its own; {_NO_ORDER}"),
    "LightningTransformer": Row(says="with tokens of the test's own"),
    "MNISTDataModule": Row(verdict=Verdict.OUTSIDE, says=_DOWNLOADS),
    "ManualOptimBoringModel": Row(verdict=Verdict.REFUSED, says="manual optimization: set `automatic_optimization=True`"),
    "Net": Row(says="with images of the test's own"),
    "PositionalEncoding": Row(says="in `LightningTransformer`"),
    "RandomDataset": Row(),
    "RandomDictDataset": Row(),
    "RandomIterableDataset": Row(verdict=Verdict.REFUSED, says=_ITERABLE),
    "RandomIterableDatasetWithLen": Row(verdict=Verdict.REFUSED, says=_ITERABLE),
    "SequenceSampler": Row(verdict=Verdict.REFUSED, says=f"a batch sampler of its own; {_NO_ORDER}"),
    "SimpleLSTM": Row(says="in a module of the test's own"),
    "Transformer": Row(says="in `LightningTransformer`"),
    "WikiText2": Row(verdict=Verdict.OUTSIDE, says=_DOWNLOADS),
    "_MNIST": Row(verdict=Verdict.OUTSIDE, says=_DOWNLOADS),
}  # fmt: skip
"""The classes of `lightning.pytorch.demos`."""

PATTERNS: dict[str, Row] = {
    "a callback with a state": Row(says="its `state_dict` goes to a joiner"),
    "a frozen extractor": Row(says="modes and `requires_grad` go to a joiner"),
    "a metric computed by hand": Row(),
    "a metric that is logged": Row(),
    "a scheduler that watches a metric": Row(),
    "gradients that are accumulated": Row(),
    "gradients that are clipped": Row(),
    "hyperparameters and more in the checkpoint": Row(says="a joiner's `on_load_checkpoint` gets it, as from a file"),
    "outputs in a list": Row(says="the list does not go to a joiner"),
    "truncated backpropagation": Row(says="what a batch leaves to the next does not go to a joiner"),
    "warm-up in optimizer_step": Row(),
}
"""Examples of Lightning's documentation."""
