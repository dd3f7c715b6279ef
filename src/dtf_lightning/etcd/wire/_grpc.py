"""This module imports grpc so that it lives beside forks.

Rules (each was measured):
- `GRPC_ENABLE_FORK_SUPPORT=0` before the first import: left unset, a fork for a DataLoader worker can stall a call of
  the parent and break its watches; with 1, the forked child hangs.
- A forked child never uses a channel or makes one: grpc's threads exist only in the parent. `check_not_forked` says so.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError, StoreError

__all__ = ["ResponseStream", "check_not_forked", "grpc"]

_TRUE = ("1", "true", "yes")


def _prepare() -> None:
    setting = environment.read(environment.GRPC_FORK_SUPPORT)
    if setting is not None and setting.lower() in _TRUE:
        raise SettingsError(
            f"{environment.GRPC_FORK_SUPPORT}={setting} is set: processes forked from this one (DataLoader workers, "
            f"for one) would hang. Unset it, or set {environment.GRPC_FORK_SUPPORT}=0"
        )
    if setting is not None:
        return
    if "grpc" in sys.modules:
        logging.getLogger(__name__).warning(
            "grpc was imported before dtf_lightning.etcd could set %s=0: a fork in this process may stall its calls to "
            "etcd. Set the variable before starting Python",
            environment.GRPC_FORK_SUPPORT,
        )
    environment.write({environment.GRPC_FORK_SUPPORT: "0"})


_prepare()

import grpc  # noqa: E402  (reads the variable that _prepare sets)

_home = os.getpid()


class ResponseStream(Protocol):
    """The answers to a streaming call; iterating raises `grpc.RpcError`."""

    def __iter__(self) -> Iterator[Any]: ...
    def cancel(self) -> object: ...


def check_not_forked() -> None:
    """Raise `StoreError` in a process that was forked after grpc was loaded."""
    if os.getpid() != _home:
        raise StoreError(
            f"process {os.getpid()} was forked from process {_home}, which talks to etcd: a forked process cannot use "
            "grpc. Talk to etcd from the parent, or start this process with spawn or exec"
        )
