"""`dtf farm ci write`: a forge's pipeline files; and `dtf farm ci report`: what came out of a job, told to its forge."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning import environment
from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.exit_codes import BAD_INPUT
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect

if TYPE_CHECKING:
    from dtf_lightning.farm.ci.forges.place import Place
    from dtf_lightning.farm.ci.report import Group, Report

_SUMMARY, _JUNIT, _QUALITY = "summary.md", "report.xml", "code-quality.json"
_AGENT_PATIENCE = 60.0


def add_ci(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    ci = actions.add_parser("ci", help="pipelines of GitHub, GitLab and Buildkite, and reports of their jobs")
    kinds = ci.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_write(kinds)
    _add_report(kinds)


def _add_write(kinds: Commands) -> None:
    write = add_farm_command(
        kinds, "write", _write, "write a forge's pipeline: a job that runs a command over a farm, and reports"
    )
    write.add_argument("forge", metavar="FORGE", help="github, gitlab or buildkite")
    write.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the repository, or where the files go"
    )
    write.add_argument(
        "--url", metavar="URL", help="of the farm to join (default: a farm is started on the job's runner)"
    )
    write.add_argument(
        "--command",
        dest="command_line",
        metavar="LINE",
        help="of bash (default: pytest --farm, which writes JUnit XML)",
    )
    write.add_argument(
        "--setup",
        action="append",
        metavar="LINE",
        help="before it, such as 'python3 -m pip install -e .[test]'; several times",
    )
    write.add_argument(
        "--results", action="append", metavar="FILE", help="what the command writes: JUnit XML, or what --json printed"
    )
    write.add_argument("--tell", metavar="WHAT,...", help="the forge's API: status, comment, check-run (default: none)")
    for name, metavar, text in (
        ("name", "NAME", "of the job (default: farm tests)"),
        ("package", "REQUIREMENT", "that pip installs (default: dtf-lightning[farm] of this version)"),
        ("image", "IMAGE", "of GitLab's job (default: python:3.11-slim-bookworm)"),
        ("branch", "NAME", "whose pushes GitHub runs it for (default: main)"),
    ):
        write.add_argument(f"--{name}", dest=f"job_{name}", metavar=metavar, help=text)
    write.add_argument("--minutes", type=int, metavar="N", help="after which the job is ended (default: 120)")
    write.add_argument("--force", action="store_true", help="overwrite files that have another content")
    add_json(write)


def _add_report(kinds: Commands) -> None:
    report = add_farm_command(kinds, "report", _report, "tell a forge what came out of a job")
    report.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="JUnit XML, or what --json of `dtf farm compare` or `dtf farm run PLAN.yaml` printed",
    )
    report.add_argument(
        "--plan", action="append", default=[], metavar="ID", help="of the farm, which is asked; several times"
    )
    report.add_argument(
        "--ended", default="", metavar="HOW", help="the command's exit code, or the forge's word for it"
    )
    report.add_argument("--name", dest="named", default="farm tests", help="of the job (default: %(default)s)")
    report.add_argument(
        "--output",
        type=Path,
        default=Path("dtf-farm"),
        metavar="DIR",
        help="of summary.md, report.xml (JUnit) and code-quality.json (default: %(default)s)",
    )
    report.add_argument("--forge", default="", help="github, gitlab, buildkite or none (default: by the environment)")
    report.add_argument(
        "--tell",
        default="",
        metavar="WHAT,...",
        help="the forge's API: status, comment, check-run; what it refuses is a warning",
    )
    add_farm(report)


def _write(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.ci.pipelines.job import Job
    from dtf_lightning.farm.ci.pipelines.render import render_pipeline
    from dtf_lightning.farm.deploy.files import write_files

    told = {name: getattr(arguments, f"job_{name}") for name in ("name", "package", "image", "branch")}
    told |= {"url": arguments.url, "minutes": arguments.minutes, "command": arguments.command_line}
    told |= {name: tuple(value) for name in ("setup", "results") if (value := getattr(arguments, name))}
    if arguments.command_line is not None and arguments.results is None:
        told["results"] = ()  # only what is known to be written is looked for
    if arguments.tell:
        told["tell"] = _words(arguments.tell)
    job = Job(**{name: value for name, value in told.items() if value is not None})
    places = write_files(arguments.output, render_pipeline(arguments.forge, job), force=arguments.force)
    if arguments.json:
        print(json.dumps([str(place) for place in places]))
        return DONE
    for place in places:
        print(place)
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.ci.forges.place import VARIABLES, Place
    from dtf_lightning.farm.ci.pipelines.job import TOLD
    from dtf_lightning.farm.ci.reading import ended_well, read_report

    wanted = _words(arguments.tell)
    if unknown := sorted(set(wanted) - set(TOLD)):
        raise SettingsError(f"--tell {unknown[0]}: expected some of {', '.join(TOLD)}")
    variables = {name: value for prefix in VARIABLES for name, value in environment.starting_with(prefix).items()}
    place = Place.of(variables, arguments.forge)
    ended = ended_well(arguments.ended)
    report = read_report(arguments.named, arguments.files, ended, _plans(arguments))
    _keep(arguments.output, report, place)
    _show(report, place)
    for what in wanted:
        _tell(what, report, place)
    for problem in report.problems:
        _warn(problem)
    return BAD_INPUT if report.problems else DONE


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _plans(arguments: argparse.Namespace) -> list[Group]:
    """What the farm says of plans. Raises `SettingsError` for one that it does not know."""
    if not arguments.plan:
        return []
    from dtf_lightning.farm.ci.reading import group_of_plan
    from dtf_lightning.farm.verdicts.quarantine import Quarantine

    groups, known = [], dict[str, Quarantine]()
    with connect(arguments) as farm:

        def excused(project: str, name: str) -> str:
            if project not in known:
                known[project] = Quarantine(farm.quarantine(project))
            found = known[project].of(name)
            return found.told if found else ""

        for plan in arguments.plan:
            tasks = [task.raw for task in farm.tasks(plan=plan, sort="name")]
            if not tasks:
                raise SettingsError(
                    f"--plan {plan}: the farm knows no tasks of it; expected what `dtf farm submit PLAN.yaml` printed"
                )
            groups.append(group_of_plan(plan, tasks, excused))
    return groups


def _keep(folder: Path, report: Report, place: Place) -> None:
    """Write the files of a report. Raises `SettingsError` where they cannot be written."""
    from dtf_lightning.farm.ci.annotations import code_quality
    from dtf_lightning.farm.ci.junit import write_junit
    from dtf_lightning.farm.ci.markdown import markdown
    from dtf_lightning.whole_files import write_whole

    summary = markdown(report, link=place.link).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (
            (_SUMMARY, summary),
            (_JUNIT, write_junit(report.groups)),
            (_QUALITY, code_quality(report)),
        ):
            write_whole(folder / name, data)
        if place.summary is not None:
            with place.summary.open("ab") as file:
                file.write(summary + b"\n")
    except OSError as error:
        raise SettingsError(f"the report cannot be written to {folder}: {error}") from error


def _show(report: Report, place: Place) -> None:
    """Say in the job's output how it ended; there is nothing in it that a forge would take for a command but ours."""
    from dtf_lightning.farm.ci.annotations import workflow_commands
    from dtf_lightning.farm.ci.markdown import markdown

    print(f"{report.name}: {report.state.value}: {report.headline}")
    if place.forge == "github":
        for line in workflow_commands(report):
            print(line)
    agent = shutil.which("buildkite-agent") if place.forge == "buildkite" else None
    if agent is not None:
        style = {"passed": "success", "failed": "error", "unsure": "warning"}[report.state.value]
        words = [agent, "annotate", "--style", style, "--context", report.name]
        try:
            done = subprocess.run(
                words, input=markdown(report, link=place.link).encode(), timeout=_AGENT_PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _warn(f"the build was not annotated: {error}")
        else:
            if done.returncode:
                _warn(f"the build was not annotated: buildkite-agent ended with exit code {done.returncode}")


def _tell(what: str, report: Report, place: Place) -> None:
    """Tell the forge; that it refuses, as of a fork's job, is a warning: the job's end is that of its command."""
    from dtf_lightning.farm.ci.forges.api import ForgeRefused
    from dtf_lightning.farm.ci.forges.telling import forge_of

    if what == "comment" and place.change is None and place.forge != "none":
        return  # a push has nothing to comment on
    try:
        forge = forge_of(place)
        {"status": forge.status, "comment": forge.comment, "check-run": forge.check_run}[what](report)
    except ForgeRefused as refusal:
        _warn(f"--tell {what}: {refusal}")


def _warn(text: str) -> None:
    print(f"dtf farm ci: {text}", file=sys.stderr)
