"""`github` and `gitlab`: the pipelines of `farm.ci`, with a job that runs a repository's tests on the deployed farm."""

from __future__ import annotations

from dtf_lightning.farm.ci.pipelines import github, gitlab
from dtf_lightning.farm.ci.pipelines.job import TESTS, Job
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.settings_files import Wanted


def render_github(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    return github.render_github(_job(wanted))


def render_gitlab(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    return gitlab.render_gitlab(_job(wanted))


def _job(wanted: Wanted) -> Job:
    deployment = wanted.deployment
    return Job(command=TESTS.line(), url=deployment.url, package=deployment.package, image=deployment.base, results=())
