"""`Agreement` compares the members' training states, and makes known to DDP which parameters are trained.

Rules that this file guards:

* in the first step of every generation, and every `verify_every_n_steps` steps, all members compare checksums of weights,
  optimizers, schedulers, `requires_grad` and scaler, as they are when the step's forward pass begins; no optimizer steps
  before the verdict, so that no step is trained on two states;
* a receiver that differs from its sender (in buffers, too) is refused; among members that did not receive anything, buffers
  may differ, because DDP gives all of them rank 0's before each forward pass;
* members that did not receive anything and differ are told so; only `verify_every_n_steps` puts them out, because on a
  mixed pool of processors the last bits may differ;
* when the set of trained parameters changes in mid-run, all members change to it in the same batch, and the model is
  wrapped anew: DDP reduces what was trained when it was made.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives.gathering import gather_objects
from dtf_lightning.elastic.lightning.rewind.optimizer_state import named_parameters
from dtf_lightning.elastic.lightning.rewind.unwinding import unwrap_ddp
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.numerics.tensor_hash import hash_tensors
from dtf_lightning.errors import GenerationBroken, StateDiffers, StateRefused

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

Things = dict[str, str]
"""A hash or a value of each thing of a training state, by name, in an order that is the same on all members."""


@dataclass(frozen=True)
class Checksum:
    """Hold the checksum of a member's training state in two parts, of different rules."""

    state: int
    """Of everything but buffers; signed, 64 bits."""
    buffers: int
    verified: bool
    """Whether no state that this member has received waits for its verdict."""


def to_refuse(rows: Sequence[Checksum], sources: Mapping[int, int]) -> dict[int, int]:
    """Return the ranks whose received state is not what it should be, each with the rank that it differs from.

    A receiver must be what its sender is, in every part. One that received its state in an earlier generation, which broke
    before the verdict, must have the state of the lowest rank that is verified.
    """
    verified = next((rank for rank, row in enumerate(rows) if row.verified), 0)
    found = {}
    for rank, row in enumerate(rows):
        source = sources.get(rank)
        if source is not None:
            if (row.state, row.buffers) != (rows[source].state, rows[source].buffers):
                found[rank] = source
        elif not row.verified and row.state != rows[verified].state:
            found[rank] = verified
    return found


def minority(rows: Sequence[Any]) -> tuple[int, list[int]]:
    """Return the lowest rank that has what most ranks have (at a tie, what rank 0 has), and the ranks that have not."""
    counts = Counter(rows)
    most = max(rows, key=lambda row: (counts[row], -rows.index(row)))
    return list(rows).index(most), [rank for rank, row in enumerate(rows) if row != most]


def first_difference(mine: Things, theirs: Things) -> str:
    """Return the first thing that differs, with both values where people can read them: short, and no hash."""
    for name in dict.fromkeys((*theirs, *mine)):
        if mine.get(name) != theirs.get(name):
            here, there = mine.get(name, "missing"), theirs.get(name, "missing")
            return (
                name
                if "#" in here + there or max(len(here), len(there)) > 40
                else f"{name} (here {here}, there {there})"
            )
    moved = next((name for name, other in zip(theirs, mine, strict=True) if name != other), None)
    return "nothing" if moved is None else f"{moved}, which stands in another order"


class Agreement:
    """Keep one worker's training state the same as its peers'. Every member calls the same methods at the same batches.

    Args:
        every_n_steps: optimizer steps between two comparisons besides those after transfers; `None` for none.
        patience: seconds to wait for peers that do not train the same parameters.
    """

    def __init__(self, trainer: pl.Trainer, *, every_n_steps: int | None, patience: float) -> None:
        self._trainer = trainer
        self._every = every_n_steps
        self._patience = timedelta(seconds=patience)
        self._world: World | None = None
        self._sources: Mapping[int, int] = {}
        self._due = False
        self._verified = True
        """See `Checksum.verified`."""
        self._parameters: list[tuple[str, torch.nn.Parameter]] = []
        self._trained: list[bool] = []
        """Which parameters were trained when the model was wrapped."""
        self._running: tuple[Any, list[torch.Tensor], tuple[Things, Things]] | None = None
        """Exchange of checksums under way, with this worker's things and buffers."""

    def entered(self, world: World, sources: Mapping[int, int]) -> None:
        """Begin a generation, whose model is wrapped. `sources`: see `Resumption.sources`."""
        self._world, self._sources, self._running = world, sources, None
        self._due = True
        self._verified = self._verified and world.rank not in sources
        self._note_trained()

    def before_training_step(self, *, begins_step: bool) -> None:
        """Compare what is due, and follow a change of the trained parameters; hooks before the step have run.

        Raises `StateDiffers` on a member that does not train what most members train, `GenerationBroken` on the others.
        """
        assert self._world is not None
        if self._world.size > 1 and [parameter.requires_grad for _, parameter in self._parameters] != self._trained:
            self._train_others()
        if begins_step and self._every is not None and self._trainer.global_step % self._every == 0:
            self._due = True
        if self._due and self._world.size > 1:
            self._begin()

    def before_weights_change(self) -> None:
        """Wait for the verdict, if states are being compared.

        Raises `StateRefused` or `StateDiffers` on a member that differs, and `GenerationBroken` on the others.
        """
        if self._running is not None:
            (work, rows, things), self._running = self._running, None
            work.wait()
            numbers = [row.tolist() for row in rows]
            self._judge([Checksum(state, buffers, bool(verified)) for state, buffers, verified in numbers], things)
            self._verified, self._sources = True, {}

    def finish(self) -> None:
        """Compare what is still due, because no step came after a transfer. Raises like `before_weights_change`."""
        if self._due and self._world is not None and self._world.size > 1:
            self._begin()
        self.before_weights_change()

    # --- checksums ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self._world is not None
        self._due = False
        state, buffers = state_of(self._trainer), buffers_of(self._trainer.lightning_module)
        mine = torch.tensor([_digest(state), _digest(buffers), int(self._verified)])
        rows = [torch.empty_like(mine) for _ in range(self._world.size)]
        self._running = dist.all_gather(rows, mine, async_op=True), rows, (state, buffers)

    def _judge(self, rows: list[Checksum], things: tuple[Things, Things]) -> None:
        assert self._world is not None
        world = self._world
        refused = to_refuse(rows, self._sources)
        reference, others = minority([row.state for row in rows])
        if not refused and not others:
            return
        everyone = gather_objects(things)
        if refused:
            texts = {
                one: f"{world.sources[one]} holds another state than {world.sources[other]}: "
                + first_difference(
                    {**everyone[one][0], **everyone[one][1]}, {**everyone[other][0], **everyone[other][1]}
                )
                for one, other in refused.items()
            }
            if world.rank in refused:
                raise StateRefused(
                    f"this worker may not join: {texts[world.rank]}. A hook that runs on a joiner only has changed it, or "
                    "the transfer went wrong. The run goes on without this worker"
                )
            log.error("refused: %s. Training goes on without", "; ".join(texts.values()))
            raise GenerationBroken("; ".join(texts.values()))
        texts = {
            one: f"{world.sources[one]} differs from {world.sources[reference]}: "
            f"{first_difference(everyone[one][0], everyone[reference][0])}"
            for one in others
        }
        if self._every is None:  # a mixed pool of processors may round differently: said, and no more
            log.error(
                "the members' training states differ although they have trained together: %s", "; ".join(texts.values())
            )
            return
        if world.rank in texts:
            raise StateDiffers(
                f"{texts[world.rank]}. Something has changed this worker's state that did not change the others' alike: code "
                "that depends on the rank, a parameter that DDP does not reduce, or its hardware. The others go on"
            )
        log.error("put out: %s. Training goes on without", "; ".join(texts.values()))
        raise GenerationBroken("; ".join(texts.values()))

    # --- trained parameters ------------------------------------------------------------------------------------------

    def _note_trained(self) -> None:
        self._parameters = list(self._trainer.lightning_module.named_parameters())
        self._trained = [parameter.requires_grad for _, parameter in self._parameters]

    def _train_others(self) -> None:
        """Wrap the model anew for the parameters that are trained now, once all members train the same."""
        assert self._world is not None
        world, now = self._world, {name: str(parameter.requires_grad) for name, parameter in self._parameters}
        changed = [
            name
            for (name, one), before in zip(self._parameters, self._trained, strict=True)
            if one.requires_grad != before
        ]
        mine = torch.tensor([_digest(now)])
        rows = [torch.empty_like(mine) for _ in range(world.size)]
        try:
            dist.all_gather(rows, mine, async_op=True).wait(self._patience)
        except RuntimeError as error:
            if "imed out" not in str(error):
                raise
            raise StateDiffers(
                f"this worker ({world.sources[world.rank]}) has frozen or unfrozen {changed[0]} at step "
                f"{self._trainer.global_step}, and the others have not within {self._patience.total_seconds():g} s. All "
                "workers must train the same parameters at the same step: let no such change depend on the rank"
            ) from error
        sums = [int(row.item()) for row in rows]
        reference, others = minority(sums)
        if others:
            everyone = gather_objects(now)
            text = "; ".join(
                f"{world.sources[one]} does not train what {world.sources[reference]} trains: "
                f"{first_difference(everyone[one], everyone[reference])}"
                for one in others
            )
            if world.rank in others:
                raise StateDiffers(f"{text}. Let no change of `requires_grad` depend on the rank; the others go on")
            raise GenerationBroken(text)
        log.info(
            "step %d: %d of %d parameters are trained from here on (%s changed)",
            *(self._trainer.global_step, sum(one.requires_grad for _, one in self._parameters), len(now)),
            changed[0] if len(changed) == 1 else f"{changed[0]} and {len(changed) - 1} more",
        )
        unwrap_ddp(self._trainer, keep_gradients=True)
        self._trainer.strategy.wrap_model(sync=False)  # type: ignore[attr-defined]
        self._note_trained()


# --- what is compared ---------------------------------------------------------------------------------------------------


def state_of(trainer: pl.Trainer) -> Things:
    """Return weights, `requires_grad`, optimizers, schedulers and scaler as things to compare."""
    found = _Collector()
    for name, parameter in trainer.lightning_module.named_parameters():
        found.add(f"parameter {name}", parameter)
        found.add(f"requires_grad of {name}", parameter.requires_grad)
    for index, optimizer in enumerate(trainer.optimizers):
        parameters = named_parameters(trainer.lightning_module, optimizer)
        names = {id(parameter): name for name, parameter in parameters.items()}
        for number, group in enumerate(optimizer.param_groups):
            where = f"optimizer {index}, group {number}"
            found.add(f"{where}: parameters", [names[id(parameter)] for parameter in group["params"]])
            for key, value in group.items():
                if key != "params":
                    found.add(f"{where}: {key}", value)
        for name, stepped in parameters.items():
            for key, value in _items(optimizer.state.get(stepped, {})):
                found.add(f"optimizer {index}, state of {name}: {key}", value)
    for index, config in enumerate(trainer.lr_scheduler_configs):
        for key, value in _items(config.scheduler.state_dict()):
            found.add(f"scheduler {index}: {key}", value)
    for key, value in _items(trainer.precision_plugin.state_dict()):
        found.add(f"precision plugin: {key}", value)
    return found.things()


def buffers_of(module: torch.nn.Module) -> Things:
    """Return the module's buffers as things to compare."""
    found = _Collector()
    for name, buffer in module.named_buffers():
        found.add(f"buffer {name}", buffer)
    return found.things()


def _items(value: Any) -> Any:
    return value.items() if isinstance(value, dict) else enumerate([value])


def _digest(things: Things) -> int:
    text = "\n".join(f"{name}={value}" for name, value in things.items())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


class _Collector:
    """Gather named values; the tensors among them are hashed together."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._tensors: list[torch.Tensor] = []

    def add(self, name: str, value: Any) -> None:
        self._values[name] = self._plain(value)

    def things(self) -> Things:
        hashes = hash_tensors(self._tensors)
        return {name: _text(value, hashes) for name, value in self._values.items()}

    def _plain(self, value: Any) -> Any:
        """Return the value with its tensors taken out; of an object of another class its class alone is compared."""
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
            return _Hashed(len(self._tensors) - 1)
        if isinstance(value, dict):
            return {repr(key): self._plain(item) for key, item in sorted(value.items(), key=lambda item: repr(item[0]))}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return value
        return type(value).__qualname__


@dataclass(frozen=True)
class _Hashed:
    number: int


def _text(value: Any, hashes: list[int]) -> str:
    if isinstance(value, _Hashed):
        return f"#{hashes[value.number]:x}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(item, hashes)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item, hashes) for item in value) + "]"
    return repr(value)
