"""These functions are shared by the torchx components: they change torchx's `dist.ddp` to rendezvous on etcd. Internal.

torchx 0.7 has no argument for rendezvous endpoint and options, and refuses `-j 1:4`, so its command line is changed
here: the endpoint is replaced, two options are added.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.environment import etcd_endpoint
from dtf_lightning.errors import SettingsError

HINT = "torchx is not installed; it is an extra: pip install 'dtf-lightning[torchx]'"
MAX_RESTARTS = 100
"""Number of a node's own failed starts; the run itself ends after `max_consecutive_failures`."""


def hint_without_docker(argv: list[str]) -> None:
    """Say how to run here, if `torchx run` is about to use its default scheduler, docker's, on a machine without docker.

    torchx itself ends with a traceback of docker's library then, after the component has been made.
    """
    if not argv or Path(argv[0]).name != "torchx" or shutil.which("docker") is not None:
        return
    named = any(re.match(r"(-s|--scheduler)(=|$)", word) for word in argv)
    configuration = ConfigParser()
    configuration.read([Path.home() / ".torchxconfig", ".torchxconfig"])
    if not named and configuration.get("cli:run", "scheduler", fallback="") == "":
        sys.stderr.write(
            "dtf: there is no docker here, which torchx schedules with by default. On this machine: "
            "torchx run -s local_cwd dist.ddp ..., or `scheduler = local_cwd` under [cli:run] in .torchxconfig\n"
        )


def is_elastic(j: str) -> bool:
    """Tell whether `j` is `MIN:MAX` or `MIN:MAXxWORKERS`, not a fixed number of nodes."""
    return ":" in j


def with_workers(j: str) -> str:
    """Return `j` as torchx writes it: `1:4x1` for `1:4`. Raises `SettingsError` for an unknown form."""
    if re.fullmatch(r"\d+:\d+", j):
        return f"{j}x1"
    if re.fullmatch(r"\d+(:\d+)?x\d+|\d+", j):
        return j
    raise SettingsError(f"-j {j}: expected MIN:MAX, MIN:MAXxWORKERS, NODESxWORKERS or WORKERS, such as 1:4 or 1:4x2")


def torchx_ddp(*script_args: str, **options: Any) -> Any:
    """Return the `AppDef` of torchx's own component. Raises `SettingsError` if torchx is not installed."""
    try:
        dist = importlib.import_module("torchx.components.dist")
    except ImportError as error:
        raise SettingsError(f"{HINT} ({error})") from error
    return dist.ddp(*script_args, **options)


def elastic_ddp(*script_args: str, j: str, endpoint: str | None, conf: str, max_restarts: int, **options: Any) -> Any:
    """Return the `AppDef` of an elastic run on etcd.

    `endpoint`: etcd's endpoint; by default that of `DTF_ETCD_ENDPOINT` where torchx is run. `conf`: as `--rdzv-conf`.
    Raises `SettingsError` for a bad `j` or `conf`, before anything is scheduled.
    """
    hint_without_docker(sys.argv)
    j = with_workers(j)
    low, _, rest = j.partition(":")
    nodes = (int(low), int(rest.partition("x")[0])) if rest else (int(j.partition("x")[0]),) * 2
    pairs = [pair.partition("=") for pair in conf.split(",") if pair]
    AgentSettings.from_rdzv_conf(*nodes, {key.strip(): value.strip() for key, _, value in pairs})
    app = torchx_ddp(*script_args, j=j, rdzv_backend="etcd", **options)
    for role in app.roles:
        role.args = [_with_rendezvous(arg, endpoint or etcd_endpoint(), conf, max_restarts) for arg in role.args]
    return app


def _with_rendezvous(command: str, endpoint: str, conf: str, max_restarts: int) -> str:
    ours = f"--rdzv_endpoint {shlex.quote(endpoint)} --rdzv_conf {shlex.quote(conf)} --max_restarts {max_restarts}"
    return re.sub(r"--rdzv_endpoint \S+", ours.replace("\\", r"\\"), command)
