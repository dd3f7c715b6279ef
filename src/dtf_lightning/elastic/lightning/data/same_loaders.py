"""The members of a generation agree on what they read and how they divide it, or one of them is refused by name.

The fingerprint that a newcomer brings before it joins holds settings; loaders cannot be in it. They are made by the
user's hooks, which may read the world (`batch_size=256 // self.trainer.world_size`), so that they are known only once
the generation is formed. Rules that this file guards:

* every member describes each loader it has made in this world, and all descriptions are compared before a batch is drawn;
* the comparison is one number per member (8 bytes); only where these differ are the descriptions themselves exchanged;
* who has trained in the run before is right: a newcomer that differs is refused and goes, the others train on without it.
  Where all are new, all are told.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.collectives.gathering import gather_numbers, gather_objects
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.shards import ShardedElasticSampler
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader
from dtf_lightning.errors import RunRefused, SettingsError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

WHY = "Every node must read the same data in the same way, or the same sample number means another sample"


def describe_training(loader: DataLoader[Any] | StreamLoader) -> dict[str, str]:
    """Return what decides which samples a training loader's batches hold, by name; for a loader made elastic."""
    if isinstance(loader, StreamLoader):
        return {"streams": str(loader.places.num_streams), "batch_size": str(loader.batch_size)}
    sampler: Any = loader.sampler
    assert isinstance(sampler, ElasticDistributedSampler)
    described = {
        "samples": str(sampler.dataset_size),
        "batch_size": str(loader.batch_size),
        "drop_last": str(loader.drop_last),
        "sampler": type(sampler).__name__,
        "shuffle": str(sampler.shuffle),
        "sampler's seed": str(sampler.seed),
        "tail": sampler.tail,
    }
    if type(sampler) not in (ElasticDistributedSampler, ShardedElasticSampler):
        order = zlib.crc32(sampler.order().numpy().tobytes())  # weights, or whatever else `make_order` reads
        described["order of samples (CRC-32)"] = f"{order:08x}"
    return described


def describe_evaluation(loader: Any) -> dict[str, str]:
    """Return what decides how many batches an evaluation loader has, and how large they are, by name."""
    described = {"loader": type(loader).__name__, "batch_size": str(getattr(loader, "batch_size", None))}
    try:
        described["batches"] = str(len(loader))
    except TypeError:  # iterable data has no length
        described["batches"] = "unknown"
    data: Any = getattr(loader, "dataset", None)
    if hasattr(data, "__len__"):
        described["samples"] = str(len(data))
    return described


@dataclass(frozen=True)
class _Described:
    """One member's description."""

    node: str
    has_trained: bool
    """It was a member of this run before this generation."""
    description: Mapping[str, str]


class SameLoaders:
    """One worker's part.

    Args:
        node: name of this worker's node, for messages.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._first_generation: int | None = None
        """The generation in which this worker compared a loader first."""

    def agree(self, what: str, description: Mapping[str, str], *, generation: int) -> None:
        """Compare the description with those of all members: a collective.

        Args:
            what: name of the loader, for messages.
            generation: the generation's number.

        Raises:
            RunRefused: this worker is new in the run and differs from those that have trained in it.
            SettingsError: all members are new, and they differ.
        """
        if self._first_generation is None:
            self._first_generation = generation
        mine = _Described(self._node, self._first_generation < generation, description)
        number = zlib.crc32(json.dumps(sorted(description.items())).encode())
        if len({each for (each,) in gather_numbers([number])}) == 1:
            return
        members: list[_Described] = gather_objects(mine)
        problem = difference(what, members)
        if not problem or mine.has_trained:
            return
        right = next((member.description for member in members if member.has_trained), None)
        if right is None:
            raise SettingsError(f"{problem}. Start all nodes alike")
        if description != right:
            raise RunRefused(f"{problem}. The run goes on without this node; start it like the others")


def difference(what: str, members: Sequence[_Described]) -> str:
    """Return the first thing in which the members differ, with every node's value; empty if there is none."""
    for name in dict.fromkeys(name for member in members for name in member.description):
        values = {member.node: member.description.get(name, "nothing") for member in members}
        if len({member.description.get(name) for member in members}) > 1:
            found = ", ".join(f"{value} on {node}" for node, value in values.items())
            return f"{what} differs: {name} is {found}. {WHY}"
    return ""
