"""Settings of pools: the file that `scaling.pools` names, with a section for each pool.

cpu:
  provider: local
  devices: [cpu=2, memory=4096]
  maximum: 4
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from dtf_lightning import environment
from dtf_lightning.farm.rules.scaling.observation import PoolLimits
from dtf_lightning.farm.rules.scaling.windows import Window, window_of
from dtf_lightning.settings.fields import check, check_types, setting
from dtf_lightning.settings.marked_yaml import read_marked
from dtf_lightning.settings.sections import read_sections

PROVIDERS = ("local", "hook", "torchx", "kubernetes")
POOL_LABEL = "pool="
"""What the label begins with by which a worker says of which pool it is; the pool's name follows."""
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Section of a pool."""

    provider: str = setting(
        "local",
        "What starts its workers: `local` (processes beside the coordinator that leads), `hook` (`command`), `torchx` or `kubernetes`.",
    )
    devices: tuple[str, ...] = setting(
        ("cpu=1",), "What each worker has, as RESOURCE=AMOUNT: `cpu` in cores, `memory` in MiB, `gpu` or another device by number."
    )  # fmt: skip
    labels: tuple[str, ...] = setting(
        (), "What tasks may ask for, beside `pool=NAME`, which every worker of a pool carries."
    )
    minimum: int = setting(0, "Workers that are always there.", unit="workers")
    maximum: int = setting(1, "Workers that there are at most, those that start and leave among them.", unit="workers")
    serve_within: float = setting(300.0, "Within which what waits should be served.", unit="seconds")
    patience: float = setting(10.0, "For which a task waits before a worker is started for it.", unit="seconds")
    idle: float = setting(300.0, "For which a worker is idle before it is drained.", unit="seconds")
    cool_down: float = setting(
        120.0, "For which nothing is drained after a start, and nothing started after a drain.", unit="seconds"
    )
    start_within: float = setting(
        600.0, "Within which a worker has come that was asked for; else that has failed.", unit="seconds"
    )
    busy_share: float = setting(
        1.0, "Part of its workers in use above which one more is started though nothing waits; 1: never."
    )
    schedule: tuple[str, ...] = setting(
        (), "Other limits at certain hours, each such as `mon-fri 08:00-18:00 min=4 max=8`; the last one that holds counts."
    )  # fmt: skip
    timezone: str = setting("UTC", "Of `schedule`, such as `Europe/Berlin`.")
    cost: float = setting(
        0.0,
        "Of one worker for an hour; of pools that could do a task, and have no more devices than it needs, the cheapest is taken.",
    )
    budget: float | None = setting(None, "Of a day (UTC), in the unit of `cost`; without it none.")
    token_file: str | None = setting(
        None, "File with the workers' token, where they run; without it the farm's own (`security.token_file`)."
    )
    timeout: float = setting(60.0, "For which the provider may take to answer.", unit="seconds")
    command: tuple[str, ...] = setting(
        (), "Of `hook`: the program and its arguments; it reads a JSON object from its standard input."
    )
    scheduler: str = setting(
        "local_cwd", "Of `torchx`: TorchX's scheduler, such as `slurm`, `kubernetes` or `aws_batch`."
    )
    options: tuple[str, ...] = setting((), "Of `torchx`: the scheduler's options, each as KEY=VALUE.")
    image: str = setting("", "Of `torchx`: the image or folder that the scheduler runs it in.")
    api: str = setting(
        "https://kubernetes.default.svc", "Of `kubernetes`: its API server; token and certificate are those of the pod."
    )
    namespace: str = setting("default", "Of `kubernetes`.")
    stateful_set: str = setting(
        "", "Of `kubernetes`: the StatefulSet whose pods are the workers; without it the pool's name."
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.provider in PROVIDERS, f"provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}")
        check(self.minimum >= 0, f"minimum must not be negative, got {self.minimum}")
        check(
            self.maximum >= 1 and self.minimum <= self.maximum,
            f"maximum must be at least 1 and at least minimum ({self.minimum}), got {self.maximum}",
        )
        for name in ("serve_within", "start_within", "timeout"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name):g} s")
        for name in ("patience", "idle", "cool_down", "cost"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")
        check(0 < self.busy_share <= 1, f"busy_share must be above 0 and at most 1, got {self.busy_share:g}")
        check(self.budget is None or self.cost > 0, "budget needs cost: what one worker costs for an hour")
        check(self.provider != "hook" or bool(self.command), "command is missing: the program that starts workers")
        self._check_texts()

    def _check_texts(self) -> None:
        for text in self.devices:
            name, _, amount = text.partition("=")
            good = bool(name) and re.fullmatch(r"\d+(\.\d+)?", amount) is not None and float(amount) > 0
            check(good, f"devices must be texts such as cpu=4 or gpu=1, got {text!r}")
        here = [text for text in self.devices if text.partition("=")[0] not in ("cpu", "memory")]
        check(
            self.provider != "local" or not here,
            f"devices of local workers are cpu and memory, got {', '.join(here)}: processes of one machine would share it",
        )
        for text in self.options:
            check("=" in text, f"options must be texts such as partition=gpu, got {text!r}")
        try:
            self.windows  # noqa: B018  the reading is the check
        except ValueError as error:
            check(False, f"schedule {error}")
        try:
            ZoneInfo(self.timezone)
        except (OSError, ValueError) as error:
            check(False, f"timezone must be a zone such as Europe/Berlin, got {self.timezone!r} ({error})")

    @property
    def amounts(self) -> dict[str, float]:
        """`devices`, by resource."""
        return {name: float(amount) for name, _, amount in (text.partition("=") for text in self.devices)}

    @property
    def windows(self) -> tuple[Window, ...]:
        """`schedule`, read."""
        return tuple(map(window_of, self.schedule))

    @property
    def limits(self) -> PoolLimits:
        """As the rule takes them, without `schedule`."""
        return PoolLimits(
            minimum=self.minimum,
            maximum=self.maximum,
            serve_within=self.serve_within,
            patience=self.patience,
            idle=self.idle,
            cool_down=self.cool_down,
            busy_share=self.busy_share,
            cost=self.cost,
            budget=self.budget,
            in_order=self.provider == "kubernetes",
        )


def read_pools(path: Path) -> dict[str, PoolSettings]:
    """Return the pools of a file, by their names. Raises `SettingsError` that says where."""
    root = read_marked(str(path))
    names = root.mapping("the pools")
    for name in names:
        if not _NAME.fullmatch(name):
            raise root.keys[name].error(
                f"{name!r} is no name of a pool; expected small letters, digits and dashes, 40 at most, such as gpu-large"
            )
    classes: Mapping[str, type[PoolSettings]] = dict.fromkeys(names, PoolSettings)
    read = read_sections(path, classes, lookup=environment.read, given={}, without_effect={})
    return dict(read.sections)
