"""Settings of a run, checked where they are made. Durations are float seconds.

Which timeout must exceed which (each is checked):

* `heartbeat_timeout` > 3 x `heartbeat_interval`: two lost or late heartbeats are no death;
* `rescale_timeout` > `heartbeat_timeout`: a frozen worker is ended by its own agent, before its node is put out;
* `max_wait` >= `stability_window` and `initial_window`: the cap on a window is no shorter than the window;
* `grace_period` > `stability_window`: a leaver lives long enough to leave by agreement;
* `lease_ttl` >= 2: etcd grants no less at its default election timeout.

Precedence: `--rdzv-conf` over the file that its key `config` names; `min_nodes` and `max_nodes` come from `--nnodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.fields import check, check_types, setting
from dtf_lightning.settings.keys import SettingKeys

MODES = ("live", "restart", "auto")

# torchrun adds `timeout` (900 by default) to every backend's configuration; nothing here needs it.
_IGNORED = frozenset({"timeout"})

COMEBACK_MARGIN = 2.0
"""Seconds on top of a lease's in which an agent that lost it registers again."""

_FROM_NNODES = ("min_nodes", "max_nodes")
_NOT_IN_A_FILE = frozenset({"config"})


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """How generations are decided. All agents of a run use the same."""

    min_nodes: int = setting(MISSING, "Below this the run pauses, and goes on by itself when nodes come.", unit="nodes")
    max_nodes: int = setting(MISSING, "Above this a node waits as a spare.", unit="nodes")
    stability_window: float = setting(
        0.2, "Changes (joins, leaves) that come within this time of each other enter one generation.", unit="seconds"
    )
    initial_window: float = setting(
        2.0, "The same for the first generation, where nodes start minutes apart or at once.", unit="seconds"
    )
    max_wait: float = setting(
        10.0, "A steady stream of changes postpones a generation no longer than this.", unit="seconds"
    )
    rescale_timeout: float = setting(
        60.0,
        "A member that has not answered, not unwound, or not come to the agreed boundary this long after the first "
        "did, is put out.",
        unit="seconds",
    )
    heartbeat_interval: float = setting(1.0, "Between two signs of life of a worker to its agent.", unit="seconds")
    heartbeat_timeout: float = setting(10.0, "Silence of a worker after which its agent ends it.", unit="seconds")
    max_consecutive_failures: int = setting(
        10,
        "Unplanned rescales in a row, none of which lived for `failure_window`; one more aborts the run.",
        unit="rescales",
    )
    failure_window: float = setting(60.0, "For how long a failure counts.", unit="seconds")
    failure_tolerance: float = setting(
        1.0,
        "Workers that may fail within `failure_window`, as a share of the largest world in it; more aborts the run.",
        unit="share",
    )

    fresh: bool = setting(
        False,
        "Where nobody is left who holds the state of a run that had trained, newcomers begin it anew at step 0, instead "
        "of going on from its newest snapshot or checkpoint.",
    )
    resume: bool = setting(
        False,
        "The id stays the run's when all its nodes have left: those that come later go on from its newest snapshot or "
        "checkpoint, and where it has finished they end with exit code 0. For nodes that a scheduler stops and starts; the "
        "run's folder must be one that all of them reach.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.min_nodes >= 1, f"min_nodes must be at least 1, got {self.min_nodes}")
        check(
            self.min_nodes <= self.max_nodes,
            f"min_nodes ({self.min_nodes}) must not exceed max_nodes ({self.max_nodes}): "
            "write --nnodes=MIN:MAX with the smaller number first",
        )
        for name in ("stability_window", "initial_window", "max_wait"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g} s")
        for name in ("rescale_timeout", "heartbeat_interval", "heartbeat_timeout", "failure_window"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name):g} s")
        for name in ("stability_window", "initial_window"):
            check(
                self.max_wait >= getattr(self, name),
                f"max_wait ({self.max_wait:g} s) caps {name} ({getattr(self, name):g} s) and must not be shorter: "
                f"raise max_wait or lower {name}",
            )
        check(
            self.heartbeat_timeout > 3 * self.heartbeat_interval,
            f"heartbeat_timeout ({self.heartbeat_timeout:g} s) must exceed three heartbeats "
            f"(3 x heartbeat_interval = {3 * self.heartbeat_interval:g} s), or a late heartbeat ends a healthy worker: "
            "raise heartbeat_timeout or lower heartbeat_interval",
        )
        check(
            self.rescale_timeout > self.heartbeat_timeout,
            f"rescale_timeout ({self.rescale_timeout:g} s) must exceed heartbeat_timeout "
            f"({self.heartbeat_timeout:g} s), so that a frozen worker is ended by its own agent before its whole node is put out: "
            "raise rescale_timeout or lower heartbeat_timeout",
        )
        check(
            self.max_consecutive_failures >= 0,
            f"max_consecutive_failures must not be negative, got {self.max_consecutive_failures} "
            "(0 aborts at the first failure)",
        )
        check(
            self.failure_tolerance > 0,
            f"failure_tolerance must be positive, got {self.failure_tolerance:g} "
            "(a share of the world: 0.5 is half; to abort at the first failure set max_consecutive_failures=0)",
        )


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """How one agent talks to etcd, to its peers and to its workers."""

    elastic: ElasticSettings
    mode: str = setting(
        "auto",
        "`live`: workers keep their processes over a rescale. `restart`: torchelastic starts them anew, any script will "
        "do. `auto`: restart for a script of which no file of the user's own names `dtf_lightning`, live for all others.",
    )
    lease_ttl: float = setting(
        5.0,
        "Time to live of the agent's lease: how long a node that vanished without a trace goes unnoticed. "
        "5 or more is sensible.",
        unit="seconds",
    )
    grace_period: float = setting(
        30.0,
        "From SIGTERM to the end of the workers, for a graceful leave. Longer than `max_wait` and a step is sensible.",
        unit="seconds",
    )
    notice: str | None = setting(
        None,
        "Where to ask for preemption notices: a URL of the machine's metadata server, or `package.module:callable` that "
        "returns `None` or a `Notice`. The node then leaves as on SIGTERM, with the time that is left.",
    )
    notice_interval: float = setting(5.0, "Between two questions for a preemption notice.", unit="seconds")
    stop_grace: float = setting(
        5.0,
        "Restart mode: from SIGTERM to SIGKILL of workers that are to be started anew. Workers that save on SIGTERM "
        "need as long as a save takes.",
        unit="seconds",
    )
    warm: bool = setting(
        False,
        "Restart mode: keep one process per worker that has imported the script's packages already, and start the next "
        "workers from those. Costs their memory.",
    )
    warm_delay: float = setting(
        10.0,
        "With `warm`: from the start of workers to that of the next spares, whose imports load the machine.",
        unit="seconds",
    )
    attach_timeout: float = setting(
        300.0,
        "A worker that has not constructed `ElasticCallback` by then is a stock script: error.",
        unit="seconds",
    )
    mesh: bool = setting(True, "Connections between agents that notice a dead one in milliseconds.")
    ca_cert: str | None = setting(None, "Path of the certificate (PEM) that signed etcd's; turns TLS on.")
    cert: str | None = setting(None, "Path of the client certificate (PEM); needs `key`.")
    key: str | None = setting(None, "Path of the client certificate's private key (PEM); needs `cert`.")
    server_name: str | None = setting(
        None, "The name that etcd's certificate must carry, if it is not the endpoint's host."
    )
    user: str | None = setting(None, "etcd user; needs `password_file`.")
    password_file: str | None = setting(
        None, "Path of a file that holds the etcd user's password and nothing else; needs `user`."
    )
    config: str | None = setting(None, "Path of a YAML file with the same keys; `--rdzv-conf` wins over it.")
    run_dir: str | None = setting(
        None, "Folder for event logs and ledgers; without it the script's, <default_root_dir>/dtf/<run id>."
    )

    metrics_port: int | None = setting(
        None,
        "Serve Prometheus metrics of this node on this port; 0 takes a free one, which is logged and written to "
        "`<run_dir>/metrics/`. Needs the extra `metrics`.",
        unit="port",
    )
    traces: bool = setting(
        False,
        "One OpenTelemetry trace for each rescale, over OTLP/HTTP to where the `OTEL_...` variables say. Needs the extra "
        "`traces`.",
    )

    progress: str | None = setting(
        None,
        "Path of a file that is to hold one line of JSON on the run as this node sees it: `generation`, `world_size`, `step`, "
        "`goodput`, `samples_per_second`. `$NAME` in it stands for that environment variable.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.mode in MODES, f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        check(
            self.lease_ttl >= 2,
            "lease_ttl must be at least 2 s (etcd grants no less at its default election timeout), "
            f"got {self.lease_ttl:g} s",
        )
        for name in ("grace_period", "attach_timeout", "stop_grace", "notice_interval", "warm_delay"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name):g} s")
        check(
            self.grace_period > self.elastic.stability_window,
            f"grace_period ({self.grace_period:g} s) must exceed stability_window "
            f"({self.elastic.stability_window:g} s), or no node can ever leave by agreement: raise grace_period or lower stability_window",
        )
        check(
            self.metrics_port is None or 0 <= self.metrics_port < 65536,
            f"metrics_port must be a port or 0, got {self.metrics_port}",
        )
        for name, partner in (("cert", "key"), ("user", "password_file")):
            given, missing = (name, partner) if getattr(self, name) else (partner, name)
            check(
                bool(getattr(self, name)) == bool(getattr(self, partner)),
                f"{name} and {partner} go together: got {given}, but no {missing}",
            )

    @property
    def comeback(self) -> float:
        """Seconds in which an agent that lost its lease registers again, if it lives."""
        return self.lease_ttl + COMEBACK_MARGIN

    @classmethod
    def from_rdzv_conf(cls, min_nodes: int, max_nodes: int, conf: Mapping[str, Any]) -> AgentSettings:
        """The settings of `torchrun --nnodes=MIN:MAX --rdzv-conf key=value,...`.

        Raises `SettingsError` for an unknown key, a value that does not parse, and settings that cannot work.
        """
        values: dict[str, Any] = {}
        if conf.get("config"):
            values.update(KEYS.read_yaml(Path(str(conf["config"])), without=_NOT_IN_A_FILE))
            for name, given in (("min_nodes", min_nodes), ("max_nodes", max_nodes)):
                in_file = values.pop(name, given)
                check(
                    in_file == given,
                    f"{name} is {in_file} in {conf['config']} but --nnodes says {given}: "
                    "remove it from the file, or make the two agree",
                )
        for name, value in conf.items():
            if name in _IGNORED:
                continue
            if name in _FROM_NNODES:
                raise SettingsError(f"--rdzv-conf: {name} comes from --nnodes=MIN:MAX; remove {name} from --rdzv-conf")
            KEYS.refuse_unknown(name, "--rdzv-conf", without=frozenset(_FROM_NNODES))
            values[name] = value
        return cls._from_values({**values, "min_nodes": min_nodes, "max_nodes": max_nodes}, "--rdzv-conf")

    @classmethod
    def from_yaml(cls, path: str | Path) -> AgentSettings:
        """The settings of a YAML file, `min_nodes` and `max_nodes` among them.

        Raises `SettingsError` that names the file, for a file that cannot be read, unknown keys and bad values.
        """
        values = KEYS.read_yaml(Path(path), without=_NOT_IN_A_FILE)
        for name in _FROM_NNODES:
            check(name in values, f"{path}: {name} is missing")
        return cls._from_values(values, str(path))

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], source: str) -> AgentSettings:
        parsed = KEYS.parse(values, source)
        try:
            return cls(elastic=ElasticSettings(**KEYS.of(ElasticSettings, parsed)), **KEYS.of(cls, parsed))
        except SettingsError as error:
            raise SettingsError(f"{source}: {error}") from error


# Keys of torch's own backends, whose users bring them along.
KEYS = SettingKeys(
    ElasticSettings,
    AgentSettings,
    foreign={
        "cacert": "ca_cert",
        "last_call_timeout": "stability_window",
        "join_timeout": "rescale_timeout",
        "keep_alive_interval": "heartbeat_interval",
        "keep_alive_max_attempt": "heartbeat_timeout",
    },
)
