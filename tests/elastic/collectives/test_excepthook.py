"""torch's exception hooks do not pile up from group to group."""

from __future__ import annotations

import sys

import torch.distributed as dist

from dtf_lightning.elastic.collectives.process_group import GenerationGroup


def test_one_prefix_however_many_groups(monkeypatch, capsys):
    """With a group a traceback names its rank once; without one it is as the user's own hook has it."""
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: sys.stderr.write(f"mine: {error}\n"))
    own = sys.excepthook
    group = GenerationGroup()
    for _ in range(3):
        group.form_local(host="", port=0, prefix="", rank=0, world_size=1)
        sys.excepthook(ValueError, ValueError("x"), None)
        group.destroy()
        assert sys.excepthook is own
    assert capsys.readouterr().err.splitlines() == ["[rank0]: mine: x"] * 3
    assert not dist.is_initialized()
