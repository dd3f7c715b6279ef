"""Lets workers that torchelastic has just started find each other, on a store that may have served earlier workers.

The store at MASTER_ADDR may be the agent's and outlive a round of workers, so that it still holds what earlier workers
wrote; and nothing that torchelastic tells a worker (the restart count is each node's own) names the round on all nodes.
So the members agree on a word that no earlier round has used: every member writes a word of its own, rank 0 answers
each word that it sees with the round's word, and waits until all other members have taken that up. Words that an
earlier round has left are answered too, and nobody reads the answer.
"""

from __future__ import annotations

import uuid
from datetime import timedelta

import torch.distributed as dist

from dtf_lightning.clock import poll_until
from dtf_lightning.environment import TorchelasticWorld

PATIENCE = timedelta(minutes=30)
"""The longest wait for the slowest member, which may still be importing its modules."""
POLL = 0.01
"""Seconds between two looks of rank 0 at which members have come."""


def connect(world: TorchelasticWorld, patience: timedelta = PATIENCE) -> dist.TCPStore:
    """Connect to the workers' store; rank 0 hosts it where the agent does not.

    The store must be kept as long as the workers meet on it.

    Raises torch's `DistNetworkError` or `DistStoreError` when the store does not answer in time.
    """
    return dist.TCPStore(
        world.store_host,
        world.store_port,
        is_master=world.rank == 0 and not world.agent_hosts_store,
        wait_for_workers=False,
        timeout=patience,
        multi_tenant=True,
    )


def agree_on_word(store: dist.Store, rank: int, world_size: int, patience: timedelta = PATIENCE) -> str:
    """Return the round's word, which is the same on every member, once all have come.

    Raises torch's `DistStoreError`, on rank 0 `TimeoutError`, when a member does not come in time.
    """
    if rank == 0:
        return _answer(store, world_size, patience)
    own = uuid.uuid4().hex
    store.set(f"dtf/here/{rank}", own)
    store.wait([f"dtf/word/{own}"], patience)
    word = store.get(f"dtf/word/{own}").decode()
    store.add(f"dtf/taken/{word}", 1)
    return word


def _answer(store: dist.Store, world_size: int, patience: timedelta) -> str:
    word, answered = uuid.uuid4().hex, set[bytes]()

    def all_are_here() -> bool:
        for rank in range(1, world_size):
            if not store.check([f"dtf/here/{rank}"]):
                continue
            own = store.get(f"dtf/here/{rank}")
            if own not in answered:
                answered.add(own)
                store.set(f"dtf/word/{own.decode()}", word)
        return bool(store.add(f"dtf/taken/{word}", 0) >= world_size - 1)

    try:
        poll_until(all_are_here, patience.total_seconds(), "the workers", interval=POLL)
    except TimeoutError:
        raise TimeoutError(
            f"{world_size - 1 - store.add(f'dtf/taken/{word}', 0)} of {world_size} workers did not come within "
            f"{patience.total_seconds():g} s; are they still importing, or has their node gone?"
        ) from None
    return word
