"""The one file that reads and writes the environment.

Arguments beat the environment: whoever has a setting passes it on, and asks here only for what it was not given.
Every variable of ours starts with `DTF_`; the others belong to torchrun, torchelastic and gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

AGENT_SOCKET = "DTF_AGENT_SOCKET"
"""Set by the agent for its workers: the path of the unix socket on which it listens."""

RUN_ID = "DTF_RUN_ID"
"""Set by the agent for its workers: the run, as `--rdzv-id` named it."""

NODE = "DTF_NODE"
"""Set by the agent for its workers: this node's id."""

RUN_DIR = "DTF_RUN_DIR"
"""Set by the agent for its workers when `--rdzv-conf run_dir=...` was given: where event logs go."""

SIGNALS_TO_HANDLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""Set by torchrun: the signals for which torchelastic installs its own handler."""

WORKERS_IDENTICAL = "TORCH_ELASTIC_WORKER_IDENTICAL"
"""1 makes torchelastic skip the store in which it tells the number of local workers."""

ETCD_ENDPOINT = "DTF_ETCD_ENDPOINT"
"""Where `dtf status` and `dtf drain` look for etcd when no `--endpoint` is given."""

DEFAULT_ETCD_ENDPOINT = "127.0.0.1:2379"

GRPC_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def read(name: str) -> str | None:
    """The variable's value; `None` when it is unset or empty."""
    return os.environ.get(name) or None


def write(variables: Mapping[str, str]) -> None:
    """Set variables of this process and of the children that it starts from now on."""
    os.environ.update(variables)


def replace(variables: Mapping[str, str]) -> None:
    """Make the environment of this process exactly this."""
    os.environ.clear()
    os.environ.update(variables)


def remove(name: str) -> None:
    """Unset a variable; an unset one is no error."""
    os.environ.pop(name, None)


def etcd_endpoint() -> str:
    """Where etcd is, for commands that were not told."""
    return read(ETCD_ENDPOINT) or DEFAULT_ETCD_ENDPOINT


def agent_socket() -> str | None:
    """The path of this worker's agent; `None` in a process that no agent of ours has started."""
    return read(AGENT_SOCKET)


def local_rank() -> int:
    """This worker's rank on its node, as torchelastic set it; 0 outside of torchelastic."""
    return int(read("LOCAL_RANK") or 0)


@dataclass(frozen=True, kw_only=True)
class TorchelasticWorld:
    """What torchelastic has told one of its workers."""

    run_id: str
    """`--rdzv-id`; torchrun's default is `none`."""
    rank: int
    world_size: int
    local_rank: int
    num_local_workers: int
    store_host: str
    store_port: int
    agent_hosts_store: bool
    """The store outlives the workers; else rank 0 has to host it."""


def torchelastic_world() -> TorchelasticWorld | None:
    """This worker's place in torchelastic's world; `None` in a process that torchelastic has not started."""
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
    """Publish the rank of the running generation, for libraries that read it from the environment."""
    write({"RANK": str(rank)})


def for_child(added: Mapping[str, str], *, without_prefix: str) -> dict[str, str]:
    """This process's environment with `added`, and without the variables that would steer the child unseen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without_prefix)}
    return {**kept, **added}
