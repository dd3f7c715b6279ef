"""The contents of a checkpoint's files: Lightning's dictionary, and the weights alone as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from dtf_lightning.elastic.checkpoints.reader import read_runs, verify
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.storage.interface import Storage, Write
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.errors import CheckpointDamaged, CheckpointError, SettingsError


def torch_file(state: Any) -> Write:
    """Return a writer of the file that `torch.save` makes and that plain Lightning loads."""

    def write(file: BinaryIO) -> None:
        torch.save(state, file)

    return write


def safetensors_file(weights: Mapping[str, Any]) -> Write:
    """Return a writer of a state_dict's tensors as safetensors, a format that loads without unpickling.

    Other languages read it too. Tied weights are written once per name: the format knows no sharing.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise SettingsError(
            "safetensors is not installed; pip install 'dtf-lightning[safetensors]', or do not ask for the export"
        ) from None

    def write(file: BinaryIO) -> None:
        seen: set[int] = set()
        tensors = {}
        for name, value in weights.items():
            if not isinstance(value, torch.Tensor):
                continue
            tensor = value.detach().cpu().contiguous()
            address = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if address in seen else tensor
            seen.add(address)
        file.write(save(tensors, metadata={"format": "pt"}))

    return write


def load_verified(storage: Storage, record: Record, *, weights_only: bool = False) -> dict[str, Any]:
    """Load a Lightning checkpoint after comparing its checksum.

    Args:
        weights_only: as in `torch.load`: refuse whatever is not a tensor or a plain value.

    Raises:
        CheckpointDamaged: the checkpoint is missing, or is not what was written.
    """
    verdict = verify(storage, record)
    if not verdict.intact:
        raise CheckpointDamaged(
            f"checkpoint {storage.location(record.name)} is {verdict.integrity.value}: {verdict.reason}"
        )
    with storage.open(record.name) as file:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=weights_only)
    return state


def load_tensors(location: str | os.PathLike[str], *, trust: bool = False) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint file by their path in it, for example `state_dict.layer.weight`.

    Args:
        location: the path or URL of a `.ckpt` or `.safetensors` file.
        trust: let the file's pickles run code; needed for checkpoints that hold objects of other classes.

    Raises:
        CheckpointError: the file is not there, is not readable, or needs `trust`.
        CheckpointDamaged: a manifest beside the file says that it is not what was written.
    """
    folder, _, name = os.fspath(location).rpartition("/")
    storage = open_storage(folder or ".")
    _refuse_damage(storage, name)
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            with storage.open(name) as file:
                tensors: dict[str, torch.Tensor] = load(file.read())
                return tensors
        with storage.open(name) as file:
            state = torch.load(file, map_location="cpu", weights_only=not trust)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{location} cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # pickle.UnpicklingError, and whatever a class's reconstruction raises
        hint = "" if trust else " If you trust whoever wrote it, allow its objects (--trust)."
        raise CheckpointError(f"{location} cannot be unpickled: {str(error).splitlines()[0]}.{hint}") from error
    return dict(_flatten(state, ""))


def _refuse_damage(storage: Storage, name: str) -> None:
    for loaded in read_runs(storage).values():
        for record in loaded.manifest.records if loaded.manifest else ():
            if name in (part.path for part in record.parts):
                verdict = verify(storage, record)
                if not verdict.intact:
                    raise CheckpointDamaged(f"{storage.location(name)} is {verdict.integrity.value}: {verdict.reason}")


def _flatten(value: Any, prefix: str) -> Any:
    if isinstance(value, torch.Tensor):
        yield prefix.removesuffix("."), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}{key}.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}{index}.")
