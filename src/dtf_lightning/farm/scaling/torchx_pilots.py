"""`torchx`: pilot jobs: each offers the machine that a scheduler gives it (Slurm, Kubernetes, AWS Batch, local_cwd) to the farm."""

from __future__ import annotations

import importlib
from typing import Any

from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted

HINT = "torchx is not installed; it is an extra: pip install 'dtf-lightning[torchx]'"


class TorchxProvider(Provider):
    """Submits one job for each worker, under the worker's name.

    A scheduler may queue a job for long: `start_within` of the pool says for how long that is not a failure. A job that was
    submitted twice is a worker too many, which goes by itself.
    """

    def __init__(self, scheduler: str, options: dict[str, str], image: str) -> None:
        self._scheduler = scheduler
        self._options = options
        self._image = image

    def start(self, wanted: WorkersWanted) -> None:
        """See `Provider`."""
        try:
            specs: Any = importlib.import_module("torchx.specs")
            runners: Any = importlib.import_module("torchx.runner")
        except ImportError as error:
            raise ProviderFailed(f"{HINT} ({error})") from error
        try:
            with runners.get_runner() as runner:
                for name in wanted.names:
                    runner.run(self._job(specs, name, wanted), self._scheduler, self._typed_options(runner))
        except Exception as error:
            # Of whatever kind a scheduler's library raises.
            raise ProviderFailed(f"torchx's {self._scheduler} refuses: {error}") from error

    def _job(self, specs: Any, name: str, wanted: WorkersWanted) -> Any:
        devices = wanted.devices
        resource = specs.Resource(
            cpu=max(round(devices.get("cpu", 1)), 1),
            gpu=round(devices.get("gpu", 0)),
            memMB=round(devices.get("memory", 1024)),
        )
        role = specs.Role(
            name="worker",
            image=self._image,
            entrypoint="dtf",
            args=wanted.words(name),
            num_replicas=1,
            resource=resource,
        )
        return specs.AppDef(name=name, roles=[role])

    def _typed_options(self, runner: Any) -> dict[str, Any]:
        """The options in the types that the scheduler declares."""
        declared = runner.scheduler_run_opts(self._scheduler)
        typed: dict[str, Any] = declared.cfg_from_str(
            ",".join(f"{key}={value}" for key, value in self._options.items())
        )
        return typed
