"""The dashboard for Grafana and the rules for Prometheus: every metric in them is one that a farm has, with its labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from dtf_lightning.farm.rules.watching.measures import COUNTED, METRICS, RAN, WAITED

CONFIGS = Path(__file__).parents[2] / "configs"
RULES = CONFIGS / "prometheus/dtf-farm.rules.yaml"
BOARD = CONFIGS / "grafana/dtf-farm.json"
LABELS = {metric.name: {metric.label} - {""} for metric in (*METRICS.values(), *COUNTED)} | {
    f"{metric.name}_bucket": {"le"} for metric in (RAN, WAITED)
}
OF_PROMETHEUS = {"job", "instance"}


def expressions() -> list[tuple[str, str]]:
    """Each with what it is shown by: a legend or a summary."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules = [(rule["expr"], rule["annotations"]["summary"]) for rule in group["rules"]]
    targets = [target for panel in json.loads(BOARD.read_text())["panels"] for target in panel["targets"]]
    return [*rules, *((target["expr"], target["legendFormat"]) for target in targets)]


@pytest.mark.parametrize(("expression", "shown"), expressions())
def test_an_expression(expression, shown):
    metrics = set(re.findall(r"\bdtf_\w+", expression))
    assert metrics <= LABELS.keys()
    assert metrics or "up{" in expression
    there = OF_PROMETHEUS.union(*(LABELS[metric] for metric in metrics))
    by = {label.strip() for found in re.findall(r"\bby \(([^)]*)\)", expression) for label in found.split(",")}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
    assert by | matched <= there
    assert set(re.findall(r"\$labels\.(\w+)", shown) + re.findall(r"\{\{(\w+)\}\}", shown)) <= (by or there)
    assert expression.count("(") == expression.count(")")
    if any(metric.endswith(("_total", "_bucket")) for metric in metrics):
        assert "rate(" in expression


def test_all_panels_and_rules_are_told_apart():
    panels = json.loads(BOARD.read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
