"""`github` and `gitlab`: a job of each that runs a repository's tests on the farm, with a token of the role ci from the forge's secrets."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile
from dtf_lightning.farm.deploy.settings_files import Wanted
from dtf_lightning.settings.written_yaml import write_yaml

TESTS = FarmCommand(words=("farm", "run", "--", "python3", "-m", "pytest"))
TOKEN, CA = "DTF_FARM_TOKEN", "DTF_FARM_CA_PEM"
"""Secrets of the forge."""
WRITE_TOKEN = (
    "umask 077",
    f'printf "%s\\n" "${TOKEN}" > "$DTF_FARM_TOKEN_FILE"',
    f'printf "%s\\n" "${CA}" > "$DTF_FARM_CA"',
)


def render_github(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    deployment = wanted.deployment
    # A job's own `env` knows nothing of its runner: the step that writes the files tells those after it where they lie.
    places = (
        'DTF_FARM_TOKEN_FILE="$RUNNER_TEMP/farm.token"',
        'DTF_FARM_CA="$RUNNER_TEMP/farm-ca.pem"',
        *WRITE_TOKEN,
        'printf "%s\\n" "DTF_FARM_TOKEN_FILE=$DTF_FARM_TOKEN_FILE" "DTF_FARM_CA=$DTF_FARM_CA" >> "$GITHUB_ENV"',
    )
    secrets = {name: "${{ secrets." + name + " }}" for name in (TOKEN, CA)}
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4", "with": {"persist-credentials": False}},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.11"}},
        {"name": "Install dtf", "run": f"python3 -m pip install '{deployment.package}'"},
        {"name": "Write the token", "env": secrets, "run": "\n".join(places) + "\n"},
        {"name": "Run the tests on the farm", "run": TESTS.line()},
    ]
    workflow = {
        "name": "farm",
        "on": {"push": {"branches": ["main"]}, "pull_request": {}},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "farm-${{ github.ref }}", "cancel-in-progress": True},
        "jobs": {
            "tests": {
                # From a fork there are no secrets.
                "if": "github.event_name == 'push' || github.event.pull_request.head.repo.full_name == github.repository",
                "runs-on": "ubuntu-latest",
                "timeout-minutes": 120,
                "env": {"DTF_FARM_URL": deployment.url},
                "steps": steps,
            }
        },
    }
    return [RenderedFile(name=".github/workflows/farm.yml", text=_header() + write_yaml(workflow))]


def render_gitlab(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    deployment = wanted.deployment
    pipeline = {
        "farm-tests": {
            "image": deployment.base,
            "variables": {
                "DTF_FARM_URL": deployment.url,
                "DTF_FARM_TOKEN_FILE": "/tmp/farm.token",
                "DTF_FARM_CA": "/tmp/farm-ca.pem",
            },
            "timeout": "2h",
            "interruptible": True,
            "rules": [
                {"if": "$CI_PIPELINE_SOURCE == 'merge_request_event'"},
                {"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"},
            ],
            "before_script": [f"python3 -m pip install '{deployment.package}'", *WRITE_TOKEN],
            "script": [TESTS.line()],
        }
    }
    return [RenderedFile(name=".gitlab-ci.yml", text=_header() + write_yaml(pipeline))]


def _header() -> str:
    return (
        f"# Runs: {TESTS.line()}\n"
        f"# The forge's (masked, protected) variables: {TOKEN}, what `dtf farm token create --role ci --print` says; {CA}, the farm's\n"
        "# authority.\n"
    )
