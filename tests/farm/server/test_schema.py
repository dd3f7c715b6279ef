"""The API against what its own description allows and forbids: it may refuse, and never answers that it has failed.

`pytest -m chaos tests/farm/server/test_schema.py` asks more of each operation.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.__main__ import main
from dtf_lightning.farm.cli.api.openapi import describe_without_a_farm
from dtf_lightning.farm.server.routes.operations import OPERATIONS
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread

LATER = {name for name, operation in OPERATIONS.items() if operation.summary.endswith(": not yet.")}
"""They answer 501."""


def operations(schema: dict[str, Any]) -> set[str]:
    return {operation["operationId"] for path in schema["paths"].values() for operation in path.values()}


def test_it_describes_every_operation(capsys):
    """`dtf farm openapi`, without a farm: each with its name, its access and the shape of an error."""
    assert main(["farm", "openapi"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert operations(told) == {name for name in OPERATIONS if not name.endswith((".connect", ".follow", ".aggregate"))}
    for path in told["paths"].values():
        for operation in path.values():
            assert operation["x-access"] == OPERATIONS[operation["operationId"]].access.value
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    body = told["paths"]["/api/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "tasks" in told["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert json.dumps(told).count("#/$defs") == 0


def no_failure(coordinator: CoordinatorInThread, examples: int) -> None:
    """Ask everything of every operation, by its description."""
    schemathesis = pytest.importorskip(
        "schemathesis", reason="schemathesis is not installed: pip install 'dtf-lightning[dev]'"
    )
    described = describe_without_a_farm()
    schema = schemathesis.openapi.from_dict(described)
    headers = {"Authorization": f"Bearer {read_token(coordinator.token_file)}"}
    asked: dict[str, int] = {}

    def ask(case: Any) -> None:
        if case.query and "wait" in case.query:
            case.query["wait"] = 0
        answer = case.call(base_url=coordinator.url, headers=headers, timeout=DEADLINE)
        name = case.operation.definition.raw["operationId"]
        asked[name] = asked.get(name, 0) + 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.status_code, answer.text)
        if answer.status_code >= 400 and case.method != "HEAD":
            assert isinstance(answer.json()["error"], str), answer.text

    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.definition.raw["operationId"] not in LATER:
            cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])
            chosen(given(case=cases)(ask))()
    assert operations(described) - LATER == asked.keys()


@pytest.mark.process
def test_no_failure(coordinator):
    no_failure(coordinator, 3)


@pytest.mark.process
@pytest.mark.chaos
def test_no_failure_at_length(coordinator):
    no_failure(coordinator, 200)
