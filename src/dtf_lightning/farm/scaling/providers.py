"""Makes a pool's provider from its settings."""

from __future__ import annotations

from pathlib import Path

from dtf_lightning.farm.scaling.hook import HookProvider
from dtf_lightning.farm.scaling.kubernetes import KubernetesProvider
from dtf_lightning.farm.scaling.local import LocalProvider
from dtf_lightning.farm.scaling.provider import Provider
from dtf_lightning.farm.scaling.torchx_pilots import TorchxProvider
from dtf_lightning.farm.settings.pools import PoolSettings


def provider_of(name: str, settings: PoolSettings, folder: Path) -> Provider:
    """Return the provider of a pool. `folder`: of the farm's files on this machine."""
    if settings.provider == "hook":
        return HookProvider(settings.command)
    if settings.provider == "torchx":
        options = dict(text.split("=", 1) for text in settings.options)
        return TorchxProvider(settings.scheduler, options, settings.image)
    if settings.provider == "kubernetes":
        return KubernetesProvider(settings.api, settings.namespace, settings.stateful_set or name)
    return LocalProvider(folder / "pools")
