"""The files of `dtf farm deploy`, and which command lines stand in them, read from the files as their programs read them."""

from __future__ import annotations

import configparser
import functools
import plistlib
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import yaml

from dtf_lightning.farm.deploy.files import RenderedFile
from dtf_lightning.farm.deploy.render import deployment_of, render_target
from dtf_lightning.farm.deploy.settings_files import Wanted
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings

WORKERS = (
    {"name": "worker", "replicas": 2},
    {"name": "gpu", "gpus": 1, "every_node": True},
)
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def wanted(**told: Any) -> Wanted:
    return Wanted(
        deployment=deployment_of(**{"workers": WORKERS} | told),
        coordinator=CoordinatorSettings(),
        worker=WorkerSettings(),
    )


@functools.cache
def rendered(target: str, **told: Any) -> dict[str, RenderedFile]:
    """Name -> file."""
    return {file.name: file for file in render_target(target, wanted(**told))}


def manifests(files: dict[str, RenderedFile]) -> list[dict[str, Any]]:
    return [one for file in files.values() if file.name.endswith(".yaml") for one in yaml.safe_load_all(file.text)]


def pod_specs(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in documents:
        spec = one.get("spec", {})
        if template := spec.get("jobTemplate", {}).get("spec", spec).get("template"):
            yield f"{one['kind']} {one['metadata']['name']}", template["spec"]


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(text)
    return parser


def scripts(pipeline: Any, key: str = "") -> Iterator[str]:
    """Yield the lines of shell in a pipeline of a forge."""
    if isinstance(pipeline, dict):
        for name, value in pipeline.items():
            yield from scripts(value, name)
    elif isinstance(pipeline, list):
        for one in pipeline:
            yield from scripts(one, key)
    elif key in ("run", "script", "before_script", "after_script"):
        yield str(pipeline)


def command_lines(file: RenderedFile) -> Iterator[list[str]]:
    """Yield the words after `dtf` of each command line in a file: those that are run, and those that comments name."""
    for line in file.text.splitlines():
        told = re.match(r"(?:#|rem)\s+(?:[A-Z][a-z ]*: )?(?:/opt/dtf-farm/bin/)?dtf (farm .*)", line.strip())
        if told:
            yield [word.strip('"') for word in told[1].split()]
    if file.name.endswith(".service"):
        yield shlex.split(unit(file.text)["Service"]["ExecStart"])[1:]
    elif file.name.startswith("Dockerfile"):
        yield re.findall(r'"([^"]*)"', re.search(r"^CMD .*", file.text, re.MULTILINE)[0])
    elif file.name.endswith(".plist"):
        yield plistlib.loads(file.data)["ProgramArguments"][1:]
    elif file.name.endswith(".xml"):
        yield ET.fromstring(file.data).find(f".//{TASK}Arguments").text.split()
    elif file.name.endswith(".cmd"):
        (line,) = re.findall(r'^"[^"]*dtf\.exe" (.*) >>', file.text, re.MULTILINE)
        yield re.findall(r'"([^"]*)"', line)
    elif file.name.endswith(".yml"):
        for text in scripts(yaml.safe_load(file.text)):
            yield from (shlex.split(line) for line in re.findall(r"\bdtf (farm [^\n|]*)", text))
    elif file.name.endswith((".sh", ".md")):
        for line in re.findall(r"(?:^|[\s'(|-])dtf (farm [^\n|&')]*)", file.text):
            yield shlex.split(line)
    elif file.name == "compose.yaml":
        yield from (one["command"] for one in yaml.safe_load(file.text)["services"].values() if "build" in one)
    elif file.name.endswith(".yaml"):
        for _, spec in pod_specs([one for one in yaml.safe_load_all(file.text) if isinstance(one, dict)]):
            yield from (one["args"] for one in spec["containers"] if "args" in one)
