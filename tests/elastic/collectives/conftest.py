"""Real processes, started quickly: a server that has imported torch forks them."""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing import forkserver

import pytest
import torch.distributed as dist

from support.elastic.ranks import PRELOAD, Rank


@pytest.fixture(scope="session")
def _fork_server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        # Every TCPStore client asks DNS for the name of ::ffff:127.0.0.1; where nobody answers, that is 5 s each time.
        patch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="session")
def store():
    """What an agent hosts: the store over which groups form."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def start_ranks(_fork_server):
    """Start processes without a group."""
    with contextlib.ExitStack() as opened:

        def start(number):
            ranks = [Rank(_fork_server) for _ in range(number)]
            for rank in ranks:
                opened.callback(rank.close)
            return ranks

        yield start


@pytest.fixture(scope="session")
def prefixes():
    """The names of the generations so far."""
    return []


@pytest.fixture
def new_prefix(prefixes):
    """Name one more."""

    def new():
        prefixes.append(f"run/gen{len(prefixes) + 1}")
        return prefixes[-1]

    return new


@pytest.fixture
def last_prefix(prefixes):
    return lambda: prefixes[-1]


@pytest.fixture
def start_group(start_ranks, store, new_prefix):
    """Start processes that have formed a group; arguments beyond the number go to `GenerationGroup.form`."""

    def start(number, *arguments):
        ranks, prefix = start_ranks(number), new_prefix()
        for index, rank in enumerate(ranks):
            rank.start("form", store.port, prefix, index, number, *arguments)
        for rank in ranks:
            rank.result()
        return ranks

    return start
