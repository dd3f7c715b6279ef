"""This module is the only one that reads and writes environment variables.

Arguments have priority over the environment: code that has a setting passes it on, and reads here only what it was not
given. Variables of this package start with `DTF_`; the others belong to torchrun, torchelastic and gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

AGENT_SOCKET = "DTF_AGENT_SOCKET"
"""Variable with the path of the unix socket on which the agent listens; set by the agent for its workers."""

RUN_ID = "DTF_RUN_ID"
"""Variable with the run's id, from `--rdzv-id`; set by the agent for its workers."""

NODE = "DTF_NODE"
"""Variable with the node's id; set by the agent for its workers."""

RUN_DIR = "DTF_RUN_DIR"
"""Variable with the folder of event logs; set by the agent for its workers if `--rdzv-conf run_dir=...` was given."""

ABORT_NOTE = "DTF_ABORT_NOTE"
"""Variable with the file in which a worker of restart mode writes why the whole run must end; set by the agent."""

SIGNALS_TO_HANDLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""Variable with the signals for which torchelastic installs its own handler; set by torchrun."""

WORKERS_IDENTICAL = "TORCH_ELASTIC_WORKER_IDENTICAL"
"""Variable; 1 makes torchelastic skip the store in which agents exchange their numbers of local workers."""

ETCD_ENDPOINT = "DTF_ETCD_ENDPOINT"
"""Variable with etcd's endpoint, for commands that are given no `--endpoint`."""

FARM_URL = "DTF_FARM_URL"
"""Variable with the address of a farm's coordinator, for commands that are given no `--farm`."""

FARM_TOKEN_FILE = "DTF_FARM_TOKEN_FILE"
"""Variable with the file that holds that farm's token."""

FARM_CA = "DTF_FARM_CA"
"""Variable with the file of the authority that has signed that farm's certificates, where this machine does not know it."""

FARM_HOME = "DTF_FARM_HOME"
"""Variable with the folder in which a farm that `dtf farm up` starts keeps its things."""

FARM_UP = "DTF_FARM_UP"
"""Variable that marks the processes of one `dtf farm up`; set for its children."""

STATE_HOME = "XDG_STATE_HOME"
"""Variable with the user's folder for programs' state (XDG Base Directory Specification)."""
FARM_RESULTS = "DTF_FARM_RESULTS"
"""Variable with the folder for what a task reports; set by a farm worker for its attempts."""

FARM_RETURNED = "DTF_FARM_RETURNED"
"""Variable with the file in which a task that is a call tells what it returned; set by a farm worker for its attempts."""

DEFAULT_ETCD_ENDPOINT = "127.0.0.1:2379"

GRPC_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def read(name: str) -> str | None:
    """Return the variable's value; `None` if it is unset or empty."""
    return os.environ.get(name) or None


def starting_with(prefix: str) -> dict[str, str]:
    """Return the variables whose names start with these letters."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefix)}


def expanded(text: str) -> str:
    """Return a text with `$NAME` and `${NAME}` replaced by those variables, as far as there are such."""
    return os.path.expandvars(text)


def write(variables: Mapping[str, str]) -> None:
    """Set variables of this process and of the children that it starts from now on."""
    os.environ.update(variables)


def replace(variables: Mapping[str, str]) -> None:
    """Replace all environment variables of this process by these."""
    os.environ.clear()
    os.environ.update(variables)


def remove(name: str) -> None:
    """Unset a variable; it is no error if it is not set."""
    os.environ.pop(name, None)


def etcd_endpoint() -> str:
    """Return etcd's endpoint, for commands that were not given one."""
    return read(ETCD_ENDPOINT) or DEFAULT_ETCD_ENDPOINT


def agent_socket() -> str | None:
    """Return the socket path of this worker's agent; `None` in a process that no agent of this package has started."""
    return read(AGENT_SOCKET)


def local_rank() -> int:
    """Return this worker's rank on its node, as torchelastic set it; 0 outside of torchelastic."""
    return int(read("LOCAL_RANK") or 0)


@dataclass(frozen=True, kw_only=True)
class TorchelasticWorld:
    """Hold what torchelastic has told one of its workers."""

    run_id: str
    """Id of the run, from `--rdzv-id`; torchrun's default is `none`."""
    rank: int
    world_size: int
    local_rank: int
    num_local_workers: int
    store_host: str
    store_port: int
    agent_hosts_store: bool
    """Whether the agent hosts the store, which then outlives the workers; otherwise rank 0 has to host it."""


def torchelastic_world() -> TorchelasticWorld | None:
    """Return this worker's place in torchelastic's world; `None` in a process that torchelastic has not started."""
    run_id, rank, size = read("TORCHELASTIC_RUN_ID"), read("RANK"), read("WORLD_SIZE")
    host, port = read("MASTER_ADDR"), read("MASTER_PORT") or ""
    if run_id is None or rank is None or size is None or host is None or not port.isdigit():
        return None
    return TorchelasticWorld(
        run_id=run_id,
        rank=int(rank),
        world_size=int(size),
        local_rank=local_rank(),
        num_local_workers=int(read("LOCAL_WORLD_SIZE") or 1),
        store_host=host,
        store_port=int(port),
        agent_hosts_store=read("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def set_rank(rank: int) -> None:
    """Set the rank in the current generation, for libraries that read it from the environment."""
    write({"RANK": str(rank)})


def for_child(added: Mapping[str, str], *, without_prefix: str) -> dict[str, str]:
    """Return this process's environment with `added`, but without its variables that start with the prefix."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without_prefix)}
    return {**kept, **added}
