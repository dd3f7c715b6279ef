"""The forges: name -> renderer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.pipelines.buildkite import render_buildkite
from dtf_lightning.farm.ci.pipelines.github import render_github
from dtf_lightning.farm.ci.pipelines.gitlab import render_gitlab
from dtf_lightning.farm.ci.pipelines.job import Job
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.settings.marked_yaml import nearest

PIPELINES: Mapping[str, Callable[[Job], list[RenderedFile]]] = {
    "github": render_github,
    "gitlab": render_gitlab,
    "buildkite": render_buildkite,
}
"""Name of a forge -> what renders its files."""


def render_pipeline(forge: str, job: Job) -> list[RenderedFile]:
    """Return a forge's files. Raises `SettingsError` for one that does not exist."""
    if forge not in PIPELINES:
        raise SettingsError(f"there is no forge {forge!r}{nearest(forge, PIPELINES)}")
    return PIPELINES[forge](job)
