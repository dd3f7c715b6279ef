"""GitHub: a composite action that starts a farm on the runner or joins one, and a workflow that uses it.

Rule: no expression (`${{ }}`) stands in a script: inputs reach it as variables, which a shell does not read as code.
"""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.ci.pipelines.job import CA, END, FOLDER, OVER_THE_FARM, RESULTS, START, TOKEN, WRITE_TOKEN, Job
from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.settings.written_yaml import write_yaml

ACTION = ".github/actions/dtf-farm/action.yml"
WORKFLOW = ".github/workflows/farm.yml"
_SCOPES = {"status": "statuses", "comment": "pull-requests", "check-run": "checks"}
"""What is told -> the permission that it needs."""
_HEADER = (
    f"# Runs: {START.line()}\n"
    f"# Secrets of the repository, for a farm that is joined: {TOKEN}, what `dtf farm token create --role ci --print` says; {CA}, the\n"
    "# farm's authority.\n"
)


def render_github(job: Job) -> list[RenderedFile]:
    """Return the files."""
    return [
        RenderedFile(name=WORKFLOW, text=_HEADER + write_yaml(_workflow(job))),
        RenderedFile(name=ACTION, text=_HEADER + write_yaml(_action(job))),
    ]


def _workflow(job: Job) -> dict[str, Any]:
    given = {"name": job.name, "command": job.command, "results": " ".join(job.results)}
    if job.setup:
        given["setup"] = "\n".join(job.setup)
    if job.url:
        given |= {"url": job.url, "token": f"${{{{ secrets.{TOKEN} }}}}", "ca": f"${{{{ secrets.{CA} }}}}"}
    if job.tell:
        given |= {"tell": ",".join(job.tell), "github-token": "${{ github.token }}"}
    tests: dict[str, Any] = {"runs-on": "ubuntu-latest", "timeout-minutes": job.minutes}
    if job.url:  # from a fork there are no secrets
        tests["if"] = (
            "github.event_name == 'push' || github.event.pull_request.head.repo.full_name == github.repository"
        )
    tests["steps"] = [
        {"uses": "actions/checkout@v4", "with": {"persist-credentials": False}},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.11"}},
        {"uses": f"./{ACTION.rpartition('/')[0]}", "with": given},
    ]
    return {
        "name": "farm",
        "on": {"push": {"branches": [job.branch]}, "pull_request": {}},
        "permissions": {"contents": "read", **{_SCOPES[one]: "write" for one in job.tell}},
        "concurrency": {"group": "farm-${{ github.ref }}", "cancel-in-progress": True},
        "jobs": {"tests": tests},
    }


def _action(job: Job) -> dict[str, Any]:
    inputs = {
        "command": ("what to run, a line of bash", OVER_THE_FARM),
        "setup": ("lines of bash before it", ""),
        "results": (
            "files with what came out, with blanks between: JUnit XML, or what --json of dtf farm printed",
            RESULTS,
        ),
        "name": ("of the job, in reports", job.name),
        "url": ("of the farm to join; empty: one is started on this runner", ""),
        "token": ("of the role ci, to join with", ""),
        "ca": ("certificate of the farm's authority (PEM)", ""),
        "tell": ("some of status, comment, check-run, with commas", ""),
        "github-token": ("for what is told", ""),
        "package": ("that pip installs", job.package),
    }
    return {
        "name": "dtf farm",
        "description": "Runs a command over a farm, and reports what came out",
        "inputs": {
            name: {"description": text, "required": False, "default": default}
            for name, (text, default) in inputs.items()
        },
        "runs": {"using": "composite", "steps": list(_steps())},
    }


def _steps() -> list[dict[str, Any]]:
    places = (
        'DTF_FARM_TOKEN_FILE="$RUNNER_TEMP/farm.token"',
        'DTF_FARM_CA="$RUNNER_TEMP/farm-ca.pem"',
        *WRITE_TOKEN,
        'printf "%s\\n" "DTF_FARM_URL=$DTF_URL" "DTF_FARM_TOKEN_FILE=$DTF_FARM_TOKEN_FILE" "DTF_FARM_CA=$DTF_FARM_CA" >> "$GITHUB_ENV"',
    )
    report = (
        'read -r -a results <<< "$DTF_RESULTS"',
        f'dtf farm ci report --name "$DTF_NAME" --output {FOLDER} --tell "$DTF_TELL" --ended "$DTF_ENDED" "${{results[@]}}"',
    )
    told = {f"DTF_{name.upper()}": f"${{{{ inputs.{name} }}}}" for name in ("name", "tell", "results")}
    return [
        _bash("Install dtf", 'python3 -m pip install "$DTF_PACKAGE"', env={"DTF_PACKAGE": "${{ inputs.package }}"}),
        _bash(
            "Join the farm",
            *places,
            when="inputs.url != ''",
            env={TOKEN: "${{ inputs.token }}", CA: "${{ inputs.ca }}", "DTF_URL": "${{ inputs.url }}"},
        ),
        _bash("Start a farm on this runner", START.line(), when="inputs.url == ''"),
        _bash(
            "Run",
            f"mkdir -p {FOLDER}",
            'bash -eo pipefail -c "$DTF_SETUP"',
            'bash -eo pipefail -c "$DTF_COMMAND"',
            id="command",
            env={"DTF_SETUP": "${{ inputs.setup }}", "DTF_COMMAND": "${{ inputs.command }}"},
        ),
        _bash(
            "Report", *report,
            when="always()",
            env={**told, "DTF_ENDED": "${{ steps.command.outcome }}", "GITHUB_TOKEN": "${{ inputs.github-token }}"},
        ),
        {
            "name": "Keep the results",
            "if": "always()",
            "uses": "actions/upload-artifact@v4",
            "with": {"name": "dtf-farm-${{ github.job }}-${{ strategy.job-index }}", "path": FOLDER, "if-no-files-found": "ignore"},
        },
        _bash("End the farm of this runner", END.line(), when="always() && inputs.url == ''"),
    ]  # fmt: skip


def _bash(name: str, *lines: str, when: str = "", env: dict[str, str] | None = None, id: str = "") -> dict[str, Any]:  # noqa: A002
    told = {"name": name, "id": id, "if": when, "shell": "bash", "env": env, "run": "\n".join(lines) + "\n"}
    return {key: value for key, value in told.items() if value}
