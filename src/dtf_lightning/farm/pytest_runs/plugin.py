"""The plugin by which pytest knows `--farm`. Entry point `pytest11`; its name there is this module's, so that `-p` finds it, too.

Rules that this file guards:
- Every pytest of an environment with this package imports it: it imports nothing but pytest and its settings, which import as little.
- Without `--farm` it adds options and a marker, and does nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from typing import Any

import pytest

from dtf_lightning.farm.pytest_runs.options import (
    ARTIFACTS,
    NAME,
    PATH,
    PROCESSES,
    FarmOptions,
    leave_processes,
    refuse_local_only,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `pytest --farm`."""
    group = parser.getgroup("farm", "tests over a farm (dtf-lightning)")
    group.addoption(
        "--farm", action="store_true", help="run the tests on a farm; results are shown as if they had run here"
    )
    group.addoption(
        "--farm-url",
        metavar="URL",
        help="of its coordinators (default: $DTF_FARM_URL, or what `dtf farm up` has started)",
    )
    group.addoption(
        "--farm-token-file",
        metavar="FILE",
        help="holds a token of the farm (default: $DTF_FARM_TOKEN_FILE, or that farm's)",
    )
    group.addoption(
        "--farm-ca", metavar="FILE", help="certificate of the authority of its certificates (default: $DTF_FARM_CA)"
    )
    group.addoption(
        "--farm-shards",
        metavar="N",
        type=int,
        help="into how many tasks the tests are cut (default: by workers and durations)",
    )
    group.addoption(
        "--farm-timeout",
        metavar="SECONDS",
        type=float,
        help="of a test whose mark says none; its process is ended then",
    )
    group.addoption(
        "--farm-env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the tests; NAME alone: as it is here",
    )
    group.addoption(
        "--farm-label", metavar="LABEL", action="append", default=[], help="that a worker must carry to run tests"
    )
    group.addoption(
        "--farm-project", metavar="NAME", default="default", help="whose share of the farm the tests count against"
    )
    group.addoption("--farm-python", metavar="WORDS", default="", help="how a worker starts Python (default: its own)")
    group.addoption(
        "--farm-artifacts",
        metavar="GLOB",
        action="append",
        default=[],
        help="files that tests write and that come back",
    )
    parser.addini(
        ARTIFACTS, "patterns of files that tests write and that come back with --farm", type="args", default=[]
    )
    if importlib.util.find_spec("xdist") is None:
        group._addoption(
            "-n", dest=PROCESSES, metavar="N", help="with --farm: as --farm-shards"
        )  # as pytest-xdist does


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Remember where modules are found, before pytest and the tests add to it."""
    early_config.stash[PATH] = tuple(sys.path)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Keep pytest-xdist from starting processes of its own: `-n` is how many shards there are."""
    if config.option.farm:
        refuse_local_only(config)
        leave_processes(config)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Let the farm run the tests."""
    from dtf_lightning.farm.pytest_runs.words import MARK

    config.addinivalue_line("markers", MARK)
    if config.option.farm and not config.option.collectonly:
        from dtf_lightning.farm.pytest_runs.run import FarmRun

        config.pluginmanager.register(FarmRun(config, FarmOptions.of(config)), NAME)
