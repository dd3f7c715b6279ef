"""The targets: name -> renderer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.model import Deployment, WorkerClass
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


EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(("farm", "namespace", "user", "name"), "small letters, digits and hyphens, a letter first"),
    "address": "a host's name, such as farm.lab",
    "etcd": "HOST:PORT, several with commas",
    **dict.fromkeys(("image", "base", "etcd_image", "package"), "no blanks, quotes or other signs that a shell reads"),
}
"""Field of the deployment -> what its text may be."""


def render_target(target: str, wanted: Wanted) -> list[RenderedFile]:
    """Return the files of a target. Raises `SettingsError` for one that does not exist."""
    if target not in TARGETS:
        raise SettingsError(f"there is no target {target!r}{nearest(target, TARGETS)}")
    return TARGETS[target](wanted)


def deployment_of(**told: object) -> Deployment:
    """Return a deployment. Raises `SettingsError` that says what does not fit."""
    try:
        return Deployment.model_validate(told)
    except ValidationError as error:
        raise SettingsError("; ".join(_said(one) for one in error.errors(include_url=False))) from error


def _said(fault: Any) -> str:
    place = [str(one) for one in fault["loc"]]
    what, field = ".".join(place) or "the deployment", next((one for one in reversed(place) if not one.isdecimal()), "")
    if fault["type"] == "extra_forbidden":
        fields = WorkerClass.model_fields if place[0] == "workers" else Deployment.model_fields
        return f"{what} is unknown{nearest(field, fields)}"
    if fault["type"] == "string_pattern_mismatch":
        return f"{what}: got {fault['input']!r}, expected {EXPECTED[field]}"
    return f"{what}: {fault['msg']}, got {fault['input']!r}"
