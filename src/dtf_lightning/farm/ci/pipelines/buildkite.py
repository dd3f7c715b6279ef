"""Buildkite: one step. Its agent puts variables into a pipeline when it is uploaded: what the shell is to read has two dollars."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.ci.pipelines.job import CA, END, FOLDER, START, TOKEN, WRITE_TOKEN, Job
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.settings.written_yaml import write_yaml

_HEADER = (
    f"# Runs: {START.line()}\n"
    f"# Secrets of the cluster, for a farm that is joined: {TOKEN}, what `dtf farm token create --role ci --print` says; {CA}, the farm's\n"
    "# authority.\n"
)


def script(job: Job) -> str:
    """Return the step's script, as bash is to read it."""
    begin = ['folder="$(mktemp -d)"', 'python3 -m venv "$folder/venv"', '. "$folder/venv/bin/activate"', job.install]
    if job.url:
        begin += [
            'export DTF_FARM_TOKEN_FILE="$folder/farm.token" DTF_FARM_CA="$folder/farm-ca.pem"',
            *WRITE_TOKEN,
        ]
    finish = ["finish() {", "  code=$?", "  " + job.report('"$code"') + " || true"]
    if not job.url:
        finish.append(f"  {END.line()} || true")
    finish += ['  rm -rf "$folder"', "}", "trap finish EXIT"]
    if not job.url:
        finish.append(START.line())
    return "\n".join(["set -eo pipefail", *begin, *finish, f"mkdir -p {FOLDER}", *job.setup, job.command]) + "\n"


def render_buildkite(job: Job) -> list[RenderedFile]:
    """Return the files."""
    step: dict[str, Any] = {
        "label": job.name,
        "key": "dtf-farm",
        "command": script(job).replace("$", "$$"),
        "timeout_in_minutes": job.minutes,
        "artifact_paths": [f"{FOLDER}/**/*"],
    }
    if job.url:
        step["env"] = {"DTF_FARM_URL": job.url}
        step["secrets"] = [TOKEN, CA]
    return [RenderedFile(name=".buildkite/pipeline.yml", text=_HEADER + write_yaml({"steps": [step]}))]
