"""How one life of a restarted worker ends, and what it leaves, for tests in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import pytest


def environment_of_torchrun(monkeypatch: pytest.MonkeyPatch, port: int, run_id: str = "run") -> None:
    """What torchelastic sets for its only worker; the store at `port` is the agent's."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": run_id, "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


_ENDED: WeakKeyDictionary[Ending, Any] = WeakKeyDictionary()
"""The module that each has ended: not an attribute, which would be put back with the step."""


class Ending(Callback):
    """Ends the life at a hook of a step: `stop` as SIGTERM does, `collective` as a lost peer does, `kill` at once."""

    def __init__(self, hook: str, step: int, kind: str = "stop") -> None:
        self.hook, self.step, self.kind = hook, step, kind
        setattr(self, hook, self._happen)

    def __str__(self) -> str:
        return f"{self.hook} {self.step} {self.kind}"

    @property
    def model(self) -> Any:
        """The module whose training it ended; `None` before."""
        return _ENDED.get(self)

    def _happen(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self.model is not None or trainer.global_step != self.step or trainer.sanity_checking:
            return
        _ENDED[self] = trainer.lightning_module
        match self.kind:
            case "stop":
                trainer.strategy.run.leaving("SIGTERM")  # type: ignore[attr-defined]
            case "collective":
                raise RuntimeError("[gloo] Connection closed by peer")
            case "kill":
                raise Killed


class Unhurried(Callback):
    """After each batch waits for what is being written: steps of a few milliseconds would be quicker than the writer."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.strategy.run.source._snapshotter.close()  # type: ignore[attr-defined]


class Killed(BaseException):
    """Nothing of ours runs any more, as far as one process can show that."""


def snapshots_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.snapshot"))
