"""`coordinator.yaml` and `worker.yaml` of a deployment: the user's own settings, with the target's places. Pure.

Rule: no secret is written, only the file in which it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile
from dtf_lightning.farm.deploy.model import Deployment
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings
from dtf_lightning.settings.sections import SettingsFile
from dtf_lightning.settings.written_yaml import write_yaml

Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is deployed, and what its owner has set."""

    deployment: Deployment
    coordinator: CoordinatorSettings
    worker: WorkerSettings


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie on a target's machines."""

    config: str
    """Folder of settings and certificates."""
    secrets: str
    """Folder of tokens and keys."""
    state: str
    """Folder of what the farm keeps."""
    separator: str = "/"

    def __call__(self, folder: str, *names: str) -> str:
        """Return a path below one of the folders."""
        return self.separator.join([folder, *names])


def changed(settings: SettingsFile) -> dict[str, dict[str, Any]]:
    """Return what differs from the defaults, by section, without secrets."""
    told: dict[str, dict[str, Any]] = {}
    for section in settings.sections():
        values = getattr(settings, section)
        for one in fields(values):
            value = getattr(values, one.name)
            if value != one.default and not one.metadata.get("secret"):
                told.setdefault(section, {})[one.name] = list(value) if isinstance(value, tuple) else value
    return told


def coordinator_sections(wanted: Wanted, places: Places, *, over: Sections | None = None) -> dict[str, dict[str, Any]]:
    """Return the sections of `coordinator.yaml`. `over`: the target's, which win."""
    deployment = wanted.deployment
    own: Sections = {
        "server": {"host": "0.0.0.0", "port": deployment.port},
        "farm": {"name": deployment.farm, "folder": places(places.state, "files")},
        "security": {
            "token_file": places(places.secrets, "token"),
            "tls_cert": places(places.config, "tls.crt"),
            "tls_key": places(places.secrets, "tls.key"),
        },
        "etcd": {"endpoint": ",".join(deployment.etcd)} if deployment.etcd else {},
        "archive": {"url": deployment.archive} if deployment.archive else {},
        "artifacts": {"url": deployment.artifacts} if deployment.artifacts else {},
    }
    return _merged(changed(wanted.coordinator), own, over or {})


def worker_sections(wanted: Wanted, places: Places, *, over: Sections | None = None) -> dict[str, dict[str, Any]]:
    """Return the sections of `worker.yaml`. `over`: the target's, which win."""
    own: Sections = {
        "coordinator": {
            "url": wanted.deployment.url,
            "token_file": places(places.secrets, "join.token"),
            "ca_cert": places(places.config, "ca.pem"),
        },
        "execution": {"working_dir": places(places.state, "worker")},
    }
    return _merged(changed(wanted.worker), own, over or {})


def settings_file(name: str, sections: Sections, command: FarmCommand, *, windows: bool = False) -> RenderedFile:
    """Return a settings file that says for which command it is."""
    return RenderedFile(name=name, text=f"# Read by: {command.line()}\n{write_yaml(dict(sections))}", windows=windows)


def _merged(*layers: Sections) -> dict[str, dict[str, Any]]:
    """Later layers win; `None` takes a key away."""
    told: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            told.setdefault(section, {}).update(values)
    kept = {
        section: {key: value for key, value in values.items() if value is not None} for section, values in told.items()
    }
    return {section: values for section, values in kept.items() if values}
