"""Lightning's marks that a loop was loaded from a checkpoint."""

from __future__ import annotations

from lightning.pytorch.loops import _Loop


def clear_restart_flags(loop: _Loop) -> None:
    """Undo what `load_state_dict` marks: Lightning would skip and advance counters on its own guesses."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            clear_restart_flags(child)
