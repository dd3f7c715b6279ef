"""Pipelines that `dtf farm ci write` makes: the forges' schemas, the shell's checker, and the scripts themselves, run."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dtf_lightning.__main__ import build_parser, main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.pipelines.buildkite import script
from dtf_lightning.farm.ci.pipelines.job import TOLD, Job
from dtf_lightning.farm.ci.pipelines.render import PIPELINES, render_pipeline

SECRETS = {"DTF_FARM_TOKEN": "the-token", "DTF_FARM_CA_PEM": "the-authority"}
JOIN = {"url": "https://farm.lab:8080"}
KINDS = {"start": {}, "join": JOIN, "all": {**JOIN, "tell": TOLD, "setup": ("pip install -e .", "make data")}}


def files(forge, **told):
    return {file.name: file.text for file in render_pipeline(forge, Job(**told))}


def steps(told=None):
    text = files("github", **(told or {}))[".github/actions/dtf-farm/action.yml"]
    return yaml.safe_load(text)["runs"]["steps"]


@functools.cache
def published(schema):
    import jsonschema
    from check_jsonschema.builtin_schemas import get_builtin_schema

    body = get_builtin_schema(schema)
    return jsonschema.validators.validator_for(body)(body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("forge", "name", "schema", "fault"),
    [
        ("github", ".github/workflows/farm.yml", "vendor.github-workflows", ("runs-on:", "runs-off:")),
        ("github", ".github/actions/dtf-farm/action.yml", "vendor.github-actions", ("shell: bash", "shall: bash")),
        ("gitlab", ".gitlab-ci.yml", "vendor.gitlab-ci", ("when: always", "when: [often]")),
        (
            "buildkite",
            ".buildkite/pipeline.yml",
            "vendor.buildkite",
            ("timeout_in_minutes: 120", "timeout_in_minutes: soon"),
        ),
    ],
)
def test_schemas(forge, name, schema, fault, kind):
    """check-jsonschema's own copies of what the forges publish; each finds a planted fault."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("no check-jsonschema here: `pip install 'dtf-lightning[dev]'` brings it")
    validator = published(schema)
    text = files(forge, **KINDS[kind])[name]
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    assert fault[0] in text
    assert list(validator.iter_errors(yaml.safe_load(text.replace(*fault, 1))))


def scripts():
    yield from ((f"github {step['name']}", step["run"]) for step in steps(KINDS["all"]) if "run" in step)
    for kind, told in KINDS.items():
        yield f"buildkite {kind}", script(Job(**told))
        (job,) = yaml.safe_load(files("gitlab", **told)[".gitlab-ci.yml"]).values()
        for part in ("before_script", "script", "after_script"):
            yield f"gitlab {kind} {part}", "\n".join(job[part]) + "\n"


def test_scripts():
    """shellcheck takes each, all in one process; it finds a quote that is missing."""
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck here: `pip install 'dtf-lightning[dev]'` brings it")

    def said(text):
        # SC2154: variables come from the forge. SC1091: an environment that is made on the way. SC2329: a trap within a function.
        words = [program, "--shell=bash", "--exclude=SC2154,SC1091,SC2329", "-"]
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    functions = [f"part_{number}() {{\n{text}\n}}\npart_{number}\n" for number, (_, text) in enumerate(scripts())]
    whole = "".join(functions)
    assert said(whole) == ""
    assert 'install "$DTF_PACKAGE"' in whole
    assert "SC2086" in said(whole.replace('install "$DTF_PACKAGE"', "install $DTF_PACKAGE"))


def test_no_expression_in_a_script():
    """What an input holds is a variable's value: it is not read as code of the shell."""
    assert all("${{" not in step.get("run", "") for step in steps())
    given = {
        name
        for step in steps()
        for value in step.get("env", {}).values()
        for name in re.findall(r"inputs\.([\w-]+)", value)
    }
    text = files("github")[".github/actions/dtf-farm/action.yml"]
    assert given == set(yaml.safe_load(text)["inputs"])


def test_every_command_line_is_one():
    parser = build_parser()
    lines = [line for _, text in scripts() for line in re.findall(r"\bdtf (farm [^\n|]*)", text)]
    assert len(lines) > 8
    for line in lines:
        parser.parse_args([word.strip("\"'") for word in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", line)])


def test_permissions_are_those_that_are_needed():
    def of(*tell):
        return yaml.safe_load(files("github", tell=tell)[".github/workflows/farm.yml"])["permissions"]

    assert of() == {"contents": "read"}
    assert of("comment") == {"contents": "read", "pull-requests": "write"}
    assert of(*TOLD) == {"contents": "read", "statuses": "write", "pull-requests": "write", "checks": "write"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"name": "a\n- run: evil"}, "the name is"),
        ({"package": "x; rm -rf /"}, "the package is"),
        ({"url": "file:///etc"}, "the farm's address is"),
        ({"results": ("../../secret",)}, "a file of results is"),
        ({"results": ("$(date)",)}, "a file of results is"),
        ({"tell": ("everybody",)}, "--tell everybody: expected some of status"),
        ({"command": "  "}, "there is no command to run"),
        ({"minutes": 0}, "expected 1 or more"),
    ],
)
def test_bad_input(told, message):
    with pytest.raises(SettingsError, match=message):
        Job(**told)


def test_the_command(tmp_path, capsys):
    """Files, once; what is yours is not overwritten; an unknown forge is bad input."""
    words = ["farm", "ci", "write", "github", "--output", str(tmp_path)]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (workflow := tmp_path / ".github/workflows/farm.yml").write_text("mine")
    assert main(words) == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    assert workflow.read_text() == "mine"
    assert main([*words, "--force", "--command", "make bench", "--results", "bench.json", "--tell", "comment"]) == 0
    told = yaml.safe_load(workflow.read_text())["jobs"]["tests"]["steps"][-1]["with"]
    assert (told["command"], told["results"], told["tell"]) == ("make bench", "bench.json", "comment")
    assert main(["farm", "ci", "write", "gitea", "--output", str(tmp_path)]) == 2
    assert "there is no forge 'gitea'" in capsys.readouterr().err


PROGRAM = """#!/bin/sh
token="" mode=""
if [ -s "$DTF_FARM_TOKEN_FILE" ]; then token=" $(cat "$DTF_FARM_TOKEN_FILE")" mode=" $(stat -c %a "$DTF_FARM_TOKEN_FILE")"; fi
printf '%s\\n' "NAME $*$token$mode" >> "$TEST_LOG"
if [ "NAME $2" = "python3 venv" ]; then mkdir -p "$3/bin"; : > "$3/bin/activate"; fi
"""


@pytest.fixture
def runner(tmp_path):
    """Runs a script of bash in a repository, with programs that say what they were asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dtf", "python3"):
        (programs / name).write_text(PROGRAM.replace("NAME", name))
        (programs / name).chmod(0o755)
    log = tmp_path / "log"
    (tmp_path / "work").mkdir()

    def run(text, **variables):
        log.write_text("")
        told = {"PATH": f"{programs}:{os.environ['PATH']}", "TEST_LOG": str(log), "TMPDIR": str(tmp_path), **variables}
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", text], cwd=tmp_path / "work", env=told, capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
        return done.returncode, log.read_text().splitlines()

    return run


@pytest.mark.parametrize("code", [0, 3])
def test_buildkites_script(runner, tmp_path, code):
    """The command's exit code is the job's; it is reported, and the farm ended, also when it fails; the agent halves the dollars."""
    step = yaml.safe_load(files("buildkite", command=f"exit {code}")[".buildkite/pipeline.yml"])["steps"][0]
    ended, said = runner(step["command"].replace("$$", "$"))
    assert ended == code
    assert [line.split(" /")[0] for line in said[2:]] == [
        "dtf farm up --detach",
        f"dtf farm ci report --name farm tests --output dtf-farm --ended {code} dtf-farm/junit.xml",
        "dtf farm down",
    ]
    assert "$" not in step["command"].replace("$$", "")
    assert not list(tmp_path.glob("tmp*"))


def test_a_token_is_its_owners(runner, tmp_path):
    """It is in a file that nobody else may read, and in no command line."""
    ended, said = runner(script(Job(command="dtf farm status", **JOIN)), **SECRETS)
    assert ended == 0
    assert said[-2:] == [
        "dtf farm status the-token 600",
        "dtf farm ci report --name farm tests --output dtf-farm --ended 0 dtf-farm/junit.xml the-token 600",
    ]
    assert not list(tmp_path.glob("tmp*"))


def test_githubs_steps(runner, tmp_path):
    """One after the other, as a runner runs them: what a step tells the next ones, and how it ended, is known there."""
    told_env, inputs = (
        {},
        {"url": "https://farm.lab:8080", "token": "the-token", "ca": "the-authority", "command": "exit 4"},
    )
    text = files("github")[".github/actions/dtf-farm/action.yml"]
    inputs = {name: one["default"] for name, one in yaml.safe_load(text)["inputs"].items()} | inputs
    (env_file := tmp_path / "env").write_text("")
    outcome, said, failed = "", [], False
    for step in steps():
        when = (
            step.get("if", "success()").replace("inputs.url != ''", "success()").replace("inputs.url == ''", "never()")
        )
        if "run" not in step or "never()" in when or (failed and "always()" not in when):
            continue
        expressions = {f"${{{{ inputs.{name} }}}}": value for name, value in inputs.items()} | {
            "${{ steps.command.outcome }}": outcome
        }
        env = {name: expressions[value] for name, value in step.get("env", {}).items()}
        code, lines = runner(step["run"], **env, **told_env, RUNNER_TEMP=str(tmp_path), GITHUB_ENV=str(env_file))
        failed |= code != 0
        said += lines
        told_env = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
        if step.get("id") == "command":
            outcome = "failure" if code else "success"
            assert code == 4
    assert told_env["DTF_FARM_URL"] == "https://farm.lab:8080"
    assert "the-token" not in str(told_env)
    assert stat.S_IMODE(os.stat(told_env["DTF_FARM_TOKEN_FILE"]).st_mode) == 0o600
    assert said[0].startswith("python3 -m pip install dtf-lightning[farm]==")
    assert said[1:] == [
        "dtf farm ci report --name farm tests --output dtf-farm --tell  --ended failure dtf-farm/junit.xml the-token 600"
    ]


def test_gitlabs_job(runner):
    """What is before and the command share a shell; what is after does not, and knows how the job ended."""
    (job,) = yaml.safe_load(files("gitlab", command="dtf farm status", **JOIN)[".gitlab-ci.yml"]).values()
    variables = {**SECRETS, **job["variables"]}
    variables["DTF_FARM_TOKEN_FILE"], variables["DTF_FARM_CA"] = "token", "ca"
    ended, said = runner("\n".join([*job["before_script"], *job["script"]]), **variables)
    assert (ended, said[-1]) == (0, "dtf farm status the-token 600")
    ended, said = runner("\n".join(job["after_script"]), **variables, CI_JOB_STATUS="failed")
    assert said == [
        "dtf farm ci report --name farm tests --output dtf-farm --ended failed dtf-farm/junit.xml the-token 600"
    ]


def test_each_forge_has_a_pipeline():
    assert set(PIPELINES) == {"github", "gitlab", "buildkite"}
