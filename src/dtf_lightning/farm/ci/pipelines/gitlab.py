"""GitLab: one job, with its reports of JUnit and code quality."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.ci.pipelines.job import CA, END, FOLDER, START, TOKEN, WRITE_TOKEN, Job
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.settings.written_yaml import write_yaml

_HEADER = (
    f"# Runs: {START.line()}\n"
    f"# Masked, protected variables, for a farm that is joined: {TOKEN}, what `dtf farm token create --role ci --print` says; {CA}, the\n"
    "# farm's authority. For a status and a comment: DTF_GITLAB_TOKEN, a project's access token with the scope api.\n"
)


def render_gitlab(job: Job) -> list[RenderedFile]:
    """Return the files."""
    begin = [job.install]
    if job.url:
        begin += WRITE_TOKEN
    else:
        begin.append(START.line())
    after = [job.report('"$CI_JOB_STATUS"')]
    if not job.url:
        after.append(END.line())
    told: dict[str, Any] = {"image": job.image}
    if job.url:
        told["variables"] = {
            "DTF_FARM_URL": job.url,
            "DTF_FARM_TOKEN_FILE": "/tmp/farm.token",
            "DTF_FARM_CA": "/tmp/farm-ca.pem",
        }
    told |= {
        "timeout": f"{job.minutes}m",
        "interruptible": True,
        "rules": [
            {"if": "$CI_PIPELINE_SOURCE == 'merge_request_event'"},
            {"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"},
        ],
        "before_script": [*begin, f"mkdir -p {FOLDER}", *job.setup],
        "script": [job.command],
        "after_script": after,
        "artifacts": {
            "when": "always",
            "expire_in": "30 days",
            "paths": [f"{FOLDER}/"],
            "reports": {"junit": f"{FOLDER}/report.xml", "codequality": f"{FOLDER}/code-quality.json"},
        },
    }
    return [RenderedFile(name=".gitlab-ci.yml", text=_HEADER + write_yaml({job.name.replace(" ", "-"): told}))]
