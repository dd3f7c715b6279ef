"""What the command line says of a run over the farm, read once. Imports as little as the plugin, which imports it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from dtf_lightning import environment

NAME = "dtf-farm-run"
"""Of the plugin that runs the tests."""
PLUGIN = "dtf_lightning.farm.pytest_runs.plugin"
"""Of the one that knows the options: a worker's pytest is given it, whatever is installed there."""
ARTIFACTS = "farm_artifacts"
"""Setting of pytest's own settings file."""
PROCESSES = "numprocesses"
"""pytest-xdist's name of `-n`."""
PATH = pytest.StashKey[tuple[str, ...]]()
"""Where modules were found when pytest had just started."""
ASKED = pytest.StashKey[int | None]()
"""What `-n` said."""

_LOCAL_ONLY = {
    "usepdb": "--pdb", "trace": "--trace", "setuponly": "--setup-only", "setupshow": "--setup-show", "setupplan": "--setup-plan",
}  # fmt: skip
_WITHOUT_XDIST: dict[str, Any] = {PROCESSES: None, "maxprocesses": None, "dist": "no", "distload": False, "tx": []}
_OWN = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_")
"""Variables of pytest that do not travel: of the process itself, or told as arguments."""


@dataclass(frozen=True, kw_only=True)
class FarmOptions:
    """The options of `pytest --farm`; what is `None` or empty was not given."""

    url: str | None
    token_file: str | None
    ca: str | None
    shards: int | None
    timeout: float | None
    """Seconds of a test."""
    variables: Mapping[str, str]
    labels: tuple[str, ...]
    project: str
    python: tuple[str, ...]
    artifacts: tuple[str, ...]
    """Patterns, relative to the folder in which pytest was started."""

    @classmethod
    def of(cls, config: pytest.Config) -> FarmOptions:
        """Return what was given. Raises `pytest.UsageError` for what cannot be."""
        option = config.option
        for name, value in (("--farm-shards", option.farm_shards), ("--farm-timeout", option.farm_timeout)):
            if value is not None and not value > 0:
                raise pytest.UsageError(f"{name} {value}: expected a number above 0")
        return cls(
            url=option.farm_url,
            token_file=option.farm_token_file,
            ca=option.farm_ca,
            shards=option.farm_shards or config.stash.get(ASKED, None),
            timeout=option.farm_timeout,
            variables=_variables(option.farm_env),
            labels=tuple(sorted(option.farm_label)),
            project=option.farm_project,
            python=tuple(shlex.split(option.farm_python)),
            artifacts=(*config.getini(ARTIFACTS), *option.farm_artifacts),
        )


def arguments(config: pytest.Config) -> list[str]:
    """Return the words of a worker's command line: those of here, of `$PYTEST_ADDOPTS` first, as pytest reads them.

    Where output is shown as it comes, there it is kept all the same: here it is shown.
    """
    words = [*shlex.split(environment.read("PYTEST_ADDOPTS") or ""), *map(str, config.invocation_params.args)]
    options = words.index("--") if "--" in words else len(words)
    if config.option.capture in ("no", "tee-sys"):
        words.insert(options, "--capture=fd")
    return words


def refuse_local_only(config: pytest.Config) -> None:
    """Raise `pytest.UsageError` for options that make no sense where tests run elsewhere."""
    for name, word in _LOCAL_ONLY.items():
        if getattr(config.option, name, False):
            raise pytest.UsageError(f"{word} needs the tests to run here: leave out --farm, or {word}")
    if getattr(config.option, "cov_source", None) and not getattr(config.option, "no_cov", False):
        raise pytest.UsageError(
            "coverage of tests that run on a farm is not combined yet: add --no-cov, or leave out --farm"
        )


def leave_processes(config: pytest.Config) -> None:
    """Take what pytest-xdist was told for this run, and let it do nothing."""
    asked = str(getattr(config.option, PROCESSES, None))
    config.stash[ASKED] = int(asked) if asked.isdecimal() and int(asked) > 0 else None
    for name, value in _WITHOUT_XDIST.items():
        if hasattr(config.option, name):
            setattr(config.option, name, value)


def _variables(given: list[str]) -> dict[str, str]:
    found = {name: value for name, value in environment.starting_with("PYTEST_").items() if not name.startswith(_OWN)}
    ci = environment.read("CI")
    found |= {"CI": ci} if ci else {}
    for text in given:
        name, sign, value = text.partition("=")
        if not name:
            raise pytest.UsageError(f"--farm-env {text}: expected NAME=VALUE, or NAME")
        if not sign:
            here = environment.read(name)
            if here is None:
                raise pytest.UsageError(f"--farm-env {name}: there is no such variable here; write {name}=VALUE")
            value = here
        found[name] = value
    return found
