"""A failed collective is told from an error of the user's code."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from dtf_lightning.elastic.collectives.communication import is_communication_error
from support.elastic.ranks import RankFailed


@pytest.mark.process
def test_what_gloo_raises_when_a_peer_dies(start_group):
    """A real one: rank 1 is killed with -9 while rank 0 waits for it."""
    waiting, victim = start_group(2)
    waiting.start("all_reduce")
    victim.kill()
    with pytest.raises(RankFailed, match="RuntimeError") as caught:
        waiting.result()
    assert caught.value.communication, caught.value


@pytest.mark.process
def test_what_gloo_raises_at_its_timeout(start_group):
    waiting, _ = start_group(2, 10.0, 0.1)
    with pytest.raises(RankFailed, match="Timed out") as caught:
        waiting.call("all_reduce")
    assert caught.value.communication


@pytest.mark.parametrize("kind", [dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError])
def test_what_torch_has_a_class_for(kind):
    assert is_communication_error(kind("whatever it says"))


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("gloo is a backend"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x2)"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError("Timed out waiting for the database"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_what_the_user_did(error):
    """Also what sounds like it: a socket of the user's own raises OSErrors, gloo never does."""
    assert not is_communication_error(error)


def failed():
    return RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:4711")


def test_causes_are_followed():
    """However deep, by `raise from` and by raising in an `except`."""
    outer, middle, inner = KeyError("loss"), ValueError("reduction of the loss"), failed()
    outer.__context__, middle.__cause__ = middle, inner
    assert is_communication_error(outer)
    assert not is_communication_error(KeyError("loss"))


def test_causes_in_a_circle_end():
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert not is_communication_error(first)
    third = failed()
    third.__cause__ = third
    assert is_communication_error(third)
