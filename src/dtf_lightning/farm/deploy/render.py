"""The targets: name -> renderer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import ValidationError

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.model import Deployment
from dtf_lightning.farm.deploy.settings_files import Wanted
from dtf_lightning.farm.deploy.targets.docker import render_docker
from dtf_lightning.farm.deploy.targets.kubernetes import render_kubernetes
from dtf_lightning.farm.deploy.targets.launchd import render_launchd
from dtf_lightning.farm.deploy.targets.runners import render_github, render_gitlab
from dtf_lightning.farm.deploy.targets.slurm import render_slurm
from dtf_lightning.farm.deploy.targets.systemd import render_systemd
from dtf_lightning.farm.deploy.targets.windows import render_windows
from dtf_lightning.settings.marked_yaml import nearest

TARGETS: Mapping[str, Callable[[Wanted], list[RenderedFile]]] = {
    "systemd": render_systemd,
    "docker": render_docker,
    "kubernetes": render_kubernetes,
    "slurm": render_slurm,
    "launchd": render_launchd,
    "windows": render_windows,
    "github": render_github,
    "gitlab": render_gitlab,
}
"""Name of a target -> what renders its files."""


def render_target(target: str, wanted: Wanted) -> list[RenderedFile]:
    """Return the files of a target. Raises `SettingsError` for one that does not exist."""
    if target not in TARGETS:
        raise SettingsError(f"no target {target!r}{nearest(target, TARGETS)}: there are {', '.join(TARGETS)}")
    return TARGETS[target](wanted)


def deployment_of(**told: object) -> Deployment:
    """Return a deployment. Raises `SettingsError` that says what does not fit."""
    try:
        return Deployment.model_validate(told)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, one['loc'])) or 'the deployment'}: {one['msg']}, got {one['input']!r}"
            for one in error.errors(include_url=False)
        ]
        raise SettingsError("; ".join(faults)) from error
