"""What torchrun prints at its end: a sentence for what has one, the traceback for a bug."""

from __future__ import annotations

import json
import signal

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError

from dtf_lightning.elastic.torchrun.last_words import last_words
from dtf_lightning.errors import SettingsError


def failed(exitcode, error_file="<N/A>"):
    return ChildFailedError(
        "train.py", {1: ProcessFailure(local_rank=1, pid=99, exitcode=exitcode, error_file=error_file)}
    )


def test_a_worker_failed():
    assert last_words(failed(3)) == "worker 1 of this node (pid 99) ended with exit code 3. Its own error stands above"
    assert last_words(failed(-9)) == "worker 1 of this node (pid 99) was ended by SIGKILL. Its own error stands above"


def test_a_recorded_error(tmp_path):
    """A script decorated with `record` leaves its traceback in a file: its last line is the sentence's end."""
    path = tmp_path / "error.json"
    message = "Traceback (most recent call last):\n  File x\nValueError: batch 7 is empty\n"
    path.write_text(json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "1"}}}))
    assert last_words(failed(1, str(path))).endswith("ended with exit code 1: ValueError: batch 7 is empty")


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("no such key"),
        RendezvousClosedError("the run is over"),
        SignalException("SIGINT, the second signal: stopped at once", signal.SIGINT),
    ],
)
def test_messages_stand_alone(error):
    assert last_words(error) == str(error)


def test_a_bug_keeps_its_traceback():
    assert last_words(KeyError("x")) is None
