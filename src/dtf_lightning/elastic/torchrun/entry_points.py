"""torchrun's names for this package's rendezvous handler: entry points of the group `torchrun.handlers`.

torch loads these in every process that imports `torch.distributed.elastic.rendezvous`, so nothing heavy is imported
before a handler is really asked for.

torch registers its own `etcd` and `etcd-v2` first (they speak etcd's v2 API, which etcd 3.6 has deleted) and its public
`register` refuses a second creator for a name. Hence the one private attribute touched here: the registry's dict. With
our creator in it already, torch's following `register` of the same creator is a no-op.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import (
        RendezvousHandler,
        RendezvousHandlerCreator,
        RendezvousParameters,
    )


def _create(params: RendezvousParameters) -> RendezvousHandler:
    from dtf_lightning.elastic.torchrun.create import create_handler

    return create_handler(params)


def _take_over(name: str) -> RendezvousHandlerCreator:
    from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry

    rendezvous_handler_registry._registry[name] = _create
    return _create


def etcd() -> RendezvousHandlerCreator:
    """Return the handler for `--rdzv-backend=etcd`."""
    return _take_over("etcd")


def etcd_v2() -> RendezvousHandlerCreator:
    """Return the handler for `--rdzv-backend=etcd-v2`, the name in torch's documentation; etcd v3 serves it as well."""
    return _take_over("etcd-v2")


def etcd_v3() -> RendezvousHandlerCreator:
    """Return the handler for `--rdzv-backend=etcd-v3`."""
    return _take_over("etcd-v3")
