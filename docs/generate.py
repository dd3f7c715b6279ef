"""Writes the parts of the docs that come from the code: `python docs/generate.py`, or `--check` to see if they are old.

* docs/state-diagram.md, wholly: the tables of phases and worker states;
* docs/settings.md, between its markers: every setting with unit, default and meaning.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dtf_lightning.elastic.rules.records import WORKER_TRANSITIONS
from dtf_lightning.elastic.rules.state import PHASE_TRANSITIONS, RescalePhase
from dtf_lightning.elastic.settings import setting_docs

DOCS = Path(__file__).parent
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


def settings_table(of: str) -> list[str]:
    lines = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{doc.name}` | {doc.type} | {doc.default} | {doc.unit or '-'} | {doc.doc} |"
        for doc in setting_docs()
        if doc.of == of
    ]
    return lines


def settings_page(text: str) -> str:
    """The page with fresh tables between its markers."""
    for of in ("ElasticSettings", "AgentSettings"):
        begin = BEGIN.format(of)
        before, rest = text.split(begin, 1)
        _, after = rest.split(END, 1)
        text = before + "\n".join([begin, "", *settings_table(of), "", END]) + after
    return text


def pages() -> dict[Path, str]:
    settings = DOCS / "settings.md"
    return {
        DOCS / "state-diagram.md": state_diagram_page(),
        settings: settings_page(settings.read_text(encoding="utf-8")),
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
