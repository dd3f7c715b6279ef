"""Tells a failed collective from an error in the user's code."""

from __future__ import annotations

import torch.distributed as dist

_COMMUNICATION_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "gloo",
    "Gloo",
    "Timed out waiting",
    "Socket closed",
    "Connection refused",
    "process group has not been initialized",
    "NCCL",
)


def is_communication_error(error: BaseException | None) -> bool:
    """Tell whether a collective failed, as far as the exception or one of its causes shows.

    gloo raises plain `RuntimeError`s, hence the look at their texts (those of gloo 2.13's transport and of c10d).
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
            return True
        text = str(error)
        if isinstance(error, RuntimeError) and any(sign in text for sign in _COMMUNICATION_SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False
