"""Writes docs/compatibility.md from what was run: a part of the tests in a fresh environment for each combination.

`python docs/compatibility_table.py [--only NAME ...] [--newer-python PATH]`: needs the package registry, and `apt-get` for
Debian's etcd (downloaded and unpacked, not installed). Environments are made in a temporary folder and deleted; a CUDA
build of torch takes 6 GB there. With `--only` the other rows of the page stay.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/compatibility.md"
TORCH = "2.13.0"
DEADLINE = 900
"""Seconds for one group of tests."""

GROUPS = {
    "unit": [
        *("tests/elastic/rules", "tests/elastic/data", "tests/elastic/observe", "tests/elastic/collectives"),
        *("tests/elastic/numerics", "tests/elastic/snapshots", "tests/elastic/lightning"),
    ],
    "etcd": ["tests/etcd", "tests/contract"],
    "live": [
        "tests/elastic/process/test_rescale.py::test_join",
        "tests/elastic/process/test_rescale.py::test_leave_on_sigterm",
        "tests/elastic/process/test_rescale.py::test_node_dies",
        "tests/elastic/process/test_death.py::test_worker_dies[forward-21-0]",
        "tests/elastic/process/test_death.py::test_worker_dies[validation-11-1]",
        "tests/elastic/process/test_runs.py::test_torchrun",
    ],
    "restart": [
        "tests/elastic/agent/test_restart.py::test_join_leave_and_finish",
        "tests/elastic/agent/test_restart.py::test_kill_worker",
        "tests/elastic/agent/test_restart.py::test_kill_agent",
        "tests/elastic/agent/test_restart.py::test_fsdp",
        "tests/elastic/agent/test_restart.py::test_hugging_face_trainer",
    ],
}
TOOLS = ("mypy", "ruff", "types-")
"""Parts of the `dev` extra that no test needs."""
HEADER = f"""# Compatibility

Written by `make compatibility` (`docs/compatibility_table.py`), which runs a part of the tests in a fresh environment for
each row: *unit* (the elastic core, the training parts, the Lightning adapters), *etcd* (client and store contract), *live*
(join, leave, kill -9 of a worker and of a node under Lightning; real torchrun), *restart* (stock scripts, plain DDP and
FSDP, through join, leave, kill -9 of a worker and of an agent; in the first row a Hugging Face Trainer too). Everything on
Linux, x86-64, CPU, gloo; torch {TORCH} is the only torch that was tried. A cell says how many tests passed, or which failed.

| combination | Python | torch | Lightning | etcd | unit | etcd client | live | restart | run on |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Combination:
    name: str
    lightning: str
    newer_python: bool = False
    debian_etcd: bool = False
    groups: Sequence[str] = tuple(GROUPS)
    more: Sequence[str] = ()
    """Packages that only some tests need."""


COMBINATIONS = (
    Combination("pinned", "2.6.6", more=("transformers", "accelerate")),
    Combination("first of this minor", "2.6.0", groups=("unit", "live", "restart")),
    Combination("minor before", "2.5.6", groups=("unit", "live", "restart")),
    Combination("Debian's etcd", "2.6.6", debian_etcd=True, groups=("etcd", "live", "restart")),
    Combination("newer Python", "2.6.6", newer_python=True),
)


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables}, timeout=DEADLINE
    )


def checked(*command: str | Path) -> str:
    result = run(*command)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{result.stdout}{result.stderr}")
    return result.stdout


def requirements() -> list[str]:
    """What the package and its tests need, but torch and Lightning."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [line for line in wanted if not re.match("torch|lightning", line) and not line.startswith(TOOLS)]


def make_environment(folder: Path, python: str, combination: Combination) -> Path:
    """Its Python."""
    checked(python, "-m", "venv", folder)
    inside = folder / "bin/python"
    lightning = combination.lightning
    pins = [f"torch=={TORCH}", f"lightning=={lightning}", f"pytorch-lightning=={lightning}"]
    checked(inside, "-m", "pip", "install", "--quiet", *pins, *requirements(), *combination.more)
    checked(inside, "-m", "pip", "install", "--quiet", "--no-deps", ROOT)
    return inside


def debian_etcd(folder: Path) -> Path:
    """The folder of the binary, for PATH."""
    folder.mkdir()
    result = subprocess.run(
        ["apt-get", "download", "etcd-server"], cwd=folder, check=False, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"apt-get download etcd-server: {result.stderr}")
    [package] = folder.glob("*.deb")
    checked("dpkg-deb", "-x", package, folder)
    return folder / "usr/bin"


def verdict(python: Path, group: str, variables: dict[str, str]) -> str:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *GROUPS[group]]
    try:
        result = run(*command, **variables)
    except subprocess.TimeoutExpired:
        return f"no end within {DEADLINE} s"
    print(result.stdout[-6000:], flush=True)
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|error)", result.stdout)}
    if result.returncode == 0 and counts.get("passed"):
        return f"{counts['passed']} passed"
    failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) \S*?([\w]+\.py(?:::[\w]+)?)", result.stdout, re.MULTILINE)))
    return (
        f"**{counts.get('failed', 0) + counts.get('error', 0)} failed**, {counts.get('passed', 0)} passed: "
        + ", ".join(f"`{name}`" for name in failed[:4])
    )


def row(combination: Combination, folder: Path, newer_python: str) -> str:
    python = make_environment(
        folder / "venv", newer_python if combination.newer_python else sys.executable, combination
    )
    path = f"{folder / 'venv/bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    if combination.debian_etcd:
        path = f"{debian_etcd(folder / 'etcd')}{os.pathsep}{path}"
    variables = {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    says = "import platform, torch, lightning\nfrom dtf_lightning.etcd.server.embedded import find_etcd\n"
    says += "print(platform.python_version(), torch.__version__, lightning.__version__, find_etcd().version)"
    versions = run(python, "-c", says, **variables).stdout.split()
    print(combination.name, versions, flush=True)
    cells = [verdict(python, group, variables) if group in combination.groups else "as pinned" for group in GROUPS]
    system = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {platform.freedesktop_os_release()['PRETTY_NAME']}"
    return " | ".join((f"| {combination.name}", *versions, *cells, f"{system} |"))


def write(line: str) -> None:
    """Put the row into the page in its place; the others, and the notes below the table, stay."""
    page = PAGE.read_text() if PAGE.exists() else ""
    lines = [*re.findall(r"^\| .*$", page, re.MULTILINE), line]
    notes = "".join(page.partition("\n## ")[1:])
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    PAGE.write_text(HEADER + "".join(f"{rows[each.name]}\n" for each in COMBINATIONS if each.name in rows) + notes)


def main() -> None:
    names = [combination.name for combination in COMBINATIONS]
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--newer-python", default="", help="an interpreter; without it that row is left out")
    options = parser.parse_args()
    for combination in COMBINATIONS:
        if (options.only and combination.name not in options.only) or (
            combination.newer_python and not options.newer_python
        ):
            continue
        folder = Path(tempfile.mkdtemp(prefix="dtf-compatibility-"))
        try:
            line = row(combination, folder, options.newer_python)
        finally:
            shutil.rmtree(folder)
        print(line, flush=True)
        write(line)


if __name__ == "__main__":
    main()
