"""What a worker refuses before a task's command can start."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.spelling import imported, pickled
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.messages import Run
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.worker.service.preparation import Preparation
from dtf_lightning.farm.worker.service.secret_files import SecretFiles


def test_functions(tmp_path):
    """Those that travel by cloudpickle by its own setting; all are run by its own Python."""
    takes, refuses = [
        Preparation(Connection((), ""), tmp_path, 1 << 20, SecretFiles(None), allow_pickle=allowed)
        for allowed in (True, False)
    ]
    named = Run(
        task="t", number=1, revision=1, specification=TaskSpecification(command=imported("a:f", [], {}), call="import")
    )
    sent = replace(named, specification=TaskSpecification(command=pickled(3), call="pickle"))
    with pytest.raises(SettingsError, match="this worker takes no functions that travel by cloudpickle"):
        refuses.order(sent)
    order = takes.order(sent)
    assert order.returns
    assert order.command == (sys.executable, *pickled(3)[1:])
    assert refuses.order(named).command == (sys.executable, *imported("a:f", [], {})[1:])
    plain = replace(named, specification=TaskSpecification(command=("python", "x")))
    assert (refuses.order(plain).command, refuses.order(plain).returns) == (("python", "x"), False)
