"""Workers that were just started find each other on a store on which others met before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from dtf_lightning.elastic.collectives.restart_meeting import agree_on_word, connect
from dtf_lightning.environment import TorchelasticWorld


@pytest.fixture(scope="module")
def store():
    """An agent's."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def world(port: int, rank: int, size: int, *, agent_hosts_store: bool) -> TorchelasticWorld:
    return TorchelasticWorld(
        run_id="r", rank=rank, world_size=size, local_rank=rank, num_local_workers=size,
        store_host="127.0.0.1", store_port=port, agent_hosts_store=agent_hosts_store,
    )  # fmt: skip


def meet(port: int, size: int) -> list[str]:
    def one(rank: int) -> str:
        return agree_on_word(connect(world(port, rank, size, agent_hosts_store=True)), rank, size)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_each_round_has_its_own_word(store):
    """Rounds of growing and shrinking worlds on one store: all members hear one word, and never an old one."""
    words = [set(meet(store.port, size)) for size in (3, 1, 2, 3)]
    assert [len(each) for each in words] == [1, 1, 1, 1]
    assert len(set.union(*words)) == 4


def test_rank_0_hosts_the_store_where_no_agent_does(store):
    del store
    port = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port  # free again at once
    store = connect(world(port, 0, 2, agent_hosts_store=False))
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(lambda: agree_on_word(connect(world(port, 1, 2, agent_hosts_store=False)), 1, 2))
        assert agree_on_word(store, 0, 2) == other.result()


def test_a_member_that_does_not_come(store):
    """Not what an earlier round has left: it counts who has taken up its own word."""
    meet(store.port, 2)
    with pytest.raises(TimeoutError, match="1 of 2 workers did not come"):
        agree_on_word(store, 0, 2, timedelta(seconds=0.05))
