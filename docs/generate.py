"""Writes the parts of the docs that come from the code: `python docs/generate.py`, or `--check` to see if they are old.

* docs/state-diagram.md, wholly: the tables of phases and worker states;
* docs/settings.md, between its markers: every setting with unit, default and meaning;
* docs/farm-settings.md, between its markers: the keys of coordinator.yaml and worker.yaml;
* docs/architecture.md, between its markers: the rooms of the package, from the lists that tests/architecture holds the
  imports to, each with the first sentence of its docstring;
* docs/observability.md, between its markers: the farm's metrics;
* docs/farm.md, between its markers: the keys of a plan and of its tasks;
* docs/plan.schema.json, wholly: the same keys as JSON Schema;
* docs/security.md, between its markers: which role may do which operation;
* docs/compatibility.md and docs/guarantees.md, between their markers: what becomes of all that Lightning ships, from the
  table that the tests of the matrix hold (tests/support/elastic/matrix/table.py).
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from dtf_lightning.elastic.rules.records import WORKER_TRANSITIONS
from dtf_lightning.elastic.rules.state import PHASE_TRANSITIONS, RescalePhase
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.farm.plans.keys import PLAN_KEYS, TASK_KEYS, Key, plan_schema
from dtf_lightning.farm.rules.watching.measures import COUNTED, METRICS
from dtf_lightning.farm.security.permissions import GIVEN, PERMISSIONS, Reach, Role
from dtf_lightning.farm.settings import coordinator, pools, worker
from dtf_lightning.settings.fields import setting_docs, settings_table

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent / "tests"))

from support.elastic.matrix import table  # noqa: E402  which lies beside the tests that hold it

BEGIN = "<!-- {}: written by docs/generate.py -->"
END = "<!-- end -->"


def phase_diagram() -> list[str]:
    lines = ["stateDiagram-v2", f"    [*] --> {RescalePhase.GATHERING.value}"]
    for phase, following in PHASE_TRANSITIONS.items():
        lines += [f"    {phase.value} --> {after.value}: {why}" for after, why in following.items()]
        if not following:
            lines.append(f"    {phase.value} --> [*]")
    return lines


def worker_diagram() -> list[str]:
    lines = ["stateDiagram-v2", "    [*] --> joining"]
    for state, following in WORKER_TRANSITIONS.items():
        lines += [f"    {state.value} --> {after}" for after in sorted(after.value for after in following)]
        if not following:
            lines.append(f"    {state.value} --> [*]")
    return lines


def state_diagram_page() -> str:
    return "\n".join(
        [
            "# States",
            "",
            "<!-- Written by docs/generate.py from the tables in src/dtf_lightning/elastic; do not edit. -->",
            "",
            "## The run",
            "",
            "What the leader is at. Kept in memory only: a new leader finds the phase from the keys.",
            "",
            "```mermaid",
            *phase_diagram(),
            "```",
            "",
            "## A node's workers",
            "",
            "What a node's record says. A reader may miss states in between.",
            "",
            "```mermaid",
            *worker_diagram(),
            "```",
            "",
        ]
    )


def settings_page(text: str) -> str:
    """The page with fresh tables between its markers."""
    for cls in (ElasticSettings, AgentSettings):
        text = between(text, cls.__name__, settings_table(cls))
    return text


def sections_table(classes: Mapping[str, type]) -> list[str]:
    """Every key of a file of sections."""
    lines = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for section, cls in classes.items():
        for doc in setting_docs(cls):
            cells = (f"`{section}.{doc.name}`", doc.type, doc.default, doc.unit or "-", doc.doc)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def without_effect_table(keys: Mapping[str, str]) -> list[str]:
    """Keys that are accepted and mean nothing, by what takes their place."""
    alike: dict[str, list[str]] = {}
    for key, instead in keys.items():
        alike.setdefault(instead, []).append(f"`{key}`")
    return [
        "| keys without effect | instead |",
        "|---|---|",
        *(f"| {', '.join(names)} | {instead[0].upper()}{instead[1:]}. |" for instead, names in alike.items()),
    ]


def farm_settings_page(text: str) -> str:
    """The page with fresh tables of both files between its markers."""
    text = between(text, "COORDINATOR", sections_table(coordinator.CoordinatorSettings.sections()))
    text = between(text, "COORDINATOR_WITHOUT_EFFECT", without_effect_table(coordinator.WITHOUT_EFFECT))
    text = between(text, "POOLS", settings_table(pools.PoolSettings))
    text = between(text, "WORKER", sections_table(worker.WorkerSettings.sections()))
    return between(text, "WORKER_WITHOUT_EFFECT", without_effect_table(worker.WITHOUT_EFFECT))


def rooms() -> dict[str, list[list[str]]]:
    """Each list of rooms by its name, a line of rooms for each layer."""
    tree = ast.parse((DOCS.parent / "tests" / "architecture" / "test_imports.py").read_text(encoding="utf-8"))
    lists = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in ("SHARED", "ELASTIC", "FARM"):
            lists[target.id] = [sorted(layer) for layer in ast.literal_eval(node.value)]
    return lists


def sentence_of(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = DOCS.parent.joinpath("src", "dtf_lightning", *room.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".") + "."


def rooms_table(name: str) -> list[str]:
    lines = ["| room | what it holds |", "|---|---|"]
    for layer in rooms()[name]:
        for room in layer:
            folder = DOCS.parent.joinpath("src", "dtf_lightning", *room.split(".")).is_dir()
            lines.append(f"| `{room.replace('.', '/')}{'/' if folder else '.py'}` | {sentence_of(room)} |")
    return lines


def architecture_page(text: str) -> str:
    """The page with fresh tables of rooms between its markers."""
    for name, layers in rooms().items():
        if layers:
            text = between(text, name, rooms_table(name))
    return text


def keys_table(keys: Mapping[str, Key]) -> list[str]:
    return ["| key | meaning |", "|---|---|", *(f"| `{name}` | {key.meaning} |" for name, key in keys.items())]


def farm_page(text: str) -> str:
    """The page with fresh tables of a plan's keys between its markers."""
    for name, keys in {"PLAN_KEYS": PLAN_KEYS, "TASK_KEYS": TASK_KEYS}.items():
        text = between(text, name, keys_table(keys))
    return text


def metrics_page(text: str) -> str:
    """The page with a fresh table of the farm's metrics between its markers."""
    lines = [
        f"| `{metric.name}` | {f'`{metric.label}`' if metric.label else '-'} | {metric.help} |"
        for metric in (*METRICS.values(), *COUNTED)
    ]
    lines = ["| metric | label | what it tells |", "|---|---|---|", *lines]
    return between(text, "FARM_METRICS", lines)


def permissions_table() -> list[str]:
    """Which role may do which operation, those for which the same holds together."""
    roles = [role for role in Role if role in (*GIVEN, Role.TASK)]
    lines = [
        f"| operations | {' | '.join(role.value for role in roles)} | for projects |",
        f"|---|{'---|' * (len(roles) + 1)}",
    ]
    alike: dict[tuple[str, ...], list[str]] = {}
    reaches = {Reach.NONE: "–", Reach.TASKS: "task", Reach.BODY: "submission"}
    for name, permission in PERMISSIONS.items():
        cells = tuple("yes" if role in permission.roles else "" for role in roles)
        if any(cells):
            alike.setdefault((*cells, reaches.get(permission.reach, permission.reach.value)), []).append(f"`{name}`")
    return [*lines, *(f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in alike.items())]


MATRIX = {
    "Callbacks": table.CALLBACKS,
    "Strategies, by name": table.STRATEGIES,
    "Strategies, by class": table.STRATEGY_CLASSES,
    "What `DDPStrategy` takes, for itself and for torch": table.DDP_ARGUMENTS,
    "Hooks of a module": table.HOOKS,
    "Demos (`lightning.pytorch.demos`)": table.DEMOS,
    "Examples of Lightning's documentation": table.PATTERNS,
}
CELLS = {
    table.Verdict.HELD: "yes",
    table.Verdict.REFUSED: "refused",
    table.Verdict.BASE: "a base",
    table.Verdict.SETUP: "set-up",
    table.Verdict.OUTSIDE: "–",
    table.Verdict.NO_HOOK: "no hook",
}


def matrix_table(rows: Mapping[str, table.Row]) -> list[str]:
    """The rows by event; names of which the same is said share a row."""
    lines = [f"| | {' | '.join(table.EVENTS)} | what to know |", f"|---|{'---|' * len(table.EVENTS)}---|"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, row in sorted(rows.items(), key=lambda item: item[0].lower()):
        alike.setdefault((*[CELLS[row.verdict]] * len(table.EVENTS), row.says), []).append(f"`{name}`")
    if rows is table.PATTERNS:
        alike = {cells: [name.strip("`") for name in names] for cells, names in alike.items()}
    return [*lines, *(f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in alike.items())]


def compatibility_page(text: str) -> str:
    """The page with the whole matrix between its markers."""
    lines = [line for title, rows in MATRIX.items() for line in (f"### {title}", "", *matrix_table(rows), "")]
    return between(text, "MATRIX", lines[:-1])


def guarantees_page(text: str) -> str:
    """The page with a sentence on each callback and example between its markers."""
    happens = {
        table.Verdict.HELD: "held",
        table.Verdict.REFUSED: "refused at the start of `fit`",
        table.Verdict.BASE: "a base class; those that derive from it are held",
        table.Verdict.OUTSIDE: "outside of `fit`",
    }
    lines = ["| callback or example | what happens | what to know |", "|---|---|---|"]
    for rows, mark in ((table.CALLBACKS, "`"), (table.PATTERNS, "")):
        for name, row in sorted(rows.items(), key=lambda item: item[0].lower()):
            lines.append(f"| {mark}{name}{mark} | {happens[row.verdict]} | {row.says} |")
    return between(text, "CALLBACKS", lines)


def between(text: str, name: str, lines: list[str]) -> str:
    """The text with these lines between the markers of that name."""
    begin = BEGIN.format(name)
    before, rest = text.split(begin, 1)
    _, after = rest.split(END, 1)
    return before + "\n".join([begin, "", *lines, "", END]) + after


def pages() -> dict[Path, str]:
    farm_settings, observability = DOCS / "farm-settings.md", DOCS / "observability.md"
    settings, architecture, farm = DOCS / "settings.md", DOCS / "architecture.md", DOCS / "farm.md"
    compatibility, guarantees = DOCS / "compatibility.md", DOCS / "guarantees.md"
    security = DOCS / "security.md"
    return {
        security: between(security.read_text(encoding="utf-8"), "PERMISSIONS", permissions_table()),
        architecture: architecture_page(architecture.read_text(encoding="utf-8")),
        farm_settings: farm_settings_page(farm_settings.read_text(encoding="utf-8")),
        observability: metrics_page(observability.read_text(encoding="utf-8")),
        farm: farm_page(farm.read_text(encoding="utf-8")),
        DOCS / "plan.schema.json": json.dumps(plan_schema(), indent=2) + "\n",
        DOCS / "state-diagram.md": state_diagram_page(),
        settings: settings_page(settings.read_text(encoding="utf-8")),
        compatibility: compatibility_page(compatibility.read_text(encoding="utf-8")),
        guarantees: guarantees_page(guarantees.read_text(encoding="utf-8")),
    }


def main() -> int:
    old = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        print(*(f"{path} is old: run python docs/generate.py" for path in old), sep="\n", end="\n" if old else "")
        return 1 if old else 0
    for path in old:
        path.write_text(pages()[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
