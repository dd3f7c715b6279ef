"""The table of permissions: whole, and nobody beside it gets through."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Route

from dtf_lightning.cli.main import build_parser
from dtf_lightning.farm import messages
from dtf_lightning.farm.cli.commands import register
from dtf_lightning.farm.page.actions import ACTIONS as PAGE_ACTIONS
from dtf_lightning.farm.page.app import Page
from dtf_lightning.farm.security.entrances import ACTIONS, COMMANDS, OPEN_PAGES, PAGE, WORKER_MESSAGES
from dtf_lightning.farm.security.identity import IN_SCOPE, OWNER, Identity, Unauthorised, identity_of
from dtf_lightning.farm.security.permissions import (
    GIVEN,
    PERMISSIONS,
    TASK_MAY,
    Reach,
    Role,
    reason_against,
    reason_against_task,
)
from dtf_lightning.farm.server.routes.operations import OPERATIONS, Access
from dtf_lightning.farm.server.updates.requests import OPERATIONS as CLIENT_MESSAGES
from support.farm.app import farm_app, farm_parts


def test_every_operation_has_its_permission():
    """`test_operations.py` holds that every route declares an operation."""
    assert PERMISSIONS.keys() == OPERATIONS.keys()


def test_every_route_is_checked():
    with farm_app() as app:
        unchecked = [
            route
            for route in app.routes
            if not isinstance(route, APIRoute | APIWebSocketRoute) or "_checked" not in route.app.__qualname__
        ]
    assert unchecked == []


def test_every_message_is_an_operation():
    assert set(CLIENT_MESSAGES.values()) <= PERMISSIONS.keys()
    of_workers = {kind.__name__ for kind in messages.FromWorker.__args__}
    assert of_workers == WORKER_MESSAGES.keys()
    assert set(WORKER_MESSAGES.values()) <= PERMISSIONS.keys()


def test_every_address_of_the_page_is_an_operation(tmp_path):
    with farm_parts() as (app, coordinator, doors):
        page = Page(app, coordinator, "secret", tmp_path, doors)
    shown = {
        route.path
        for route in page._app.routes
        if isinstance(route, Route) and not route.path.startswith((*OPEN_PAGES, "/do/"))
    }
    assert shown == PAGE.keys()
    assert set(PAGE.values()) <= PERMISSIONS.keys()
    assert ACTIONS.keys() == PAGE_ACTIONS.keys()
    assert set(ACTIONS.values()) <= PERMISSIONS.keys()


def commands(parser: argparse.ArgumentParser, name: str = "") -> set[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {
                one for word, parsed in action.choices.items() for one in commands(parsed, f"{name} {word}".strip())
            }
    return {name}


def test_every_command_says_what_it_asks():
    there = {name.removeprefix("farm ") for name in commands(build_parser([register])) if name.startswith("farm ")}
    assert there == COMMANDS.keys()
    assert {one for used in COMMANDS.values() for one in used} <= PERMISSIONS.keys()


def test_what_has_no_entry_nobody_may():
    assert "nobody may do x.y" in reason_against("x.y", Role.ADMIN, limited=False)
    assert "nobody may do this" in reason_against("", Role.ADMIN, limited=False)


def test_who_may_not_hears_what_it_needs():
    assert reason_against("task.submit", Role.VIEWER, limited=False) == (
        "task.submit needs the role developer, ci, operator or admin; this token's role is viewer"
    )


@pytest.mark.parametrize(
    ("access", "roles"),
    [
        (Access.SUBMIT, {Role.DEVELOPER, Role.CI, Role.OPERATOR, Role.ADMIN, Role.TASK}),
        (Access.WORK, {Role.WORKER, Role.ADMIN}),
        (Access.OPERATE, {Role.OPERATOR, Role.ADMIN}),
        (Access.ADMIT, {Role.ADMIN}),
    ],
)
def test_changes_are_for_few(access, roles):
    """What an operation does to the farm says at most who may do it."""
    assert [
        name for name, one in OPERATIONS.items() if one.access is access and not PERMISSIONS[name].roles <= roles
    ] == []


def test_the_admin_may_everything_but_what_is_for_one_use():
    assert {name for name, one in PERMISSIONS.items() if Role.ADMIN not in one.roles} == {"token.join", "token.refresh"}


def test_a_task_may_what_stands_in_its_table():
    """And no more by `read` than to read; no token of the role can be made for somebody."""
    may = {name for name in PERMISSIONS if not reason_against(name, Role.TASK, limited=True)}
    assert may == TASK_MAY["read"] | TASK_MAY["submit"]
    assert Role.TASK not in GIVEN
    assert {OPERATIONS[name].access for name in TASK_MAY["read"]} == {Access.READ}
    assert {OPERATIONS[name].access for name in TASK_MAY["submit"]} == {Access.SUBMIT}
    for name in PERMISSIONS:
        allowed = {one for one in ((), ("read",), ("submit",)) if not reason_against_task(name, one)}
        assert allowed == {
            one for one in (("read",), ("submit",)) if name in TASK_MAY[one[0]] or (one == ("submit",) and name in may)
        }


@pytest.mark.parametrize("role", [Role.JOIN, Role.REFRESH])
def test_a_token_for_one_use_is_good_for_that_alone(role):
    may = [name for name in PERMISSIONS if not reason_against(name, role, limited=False)]
    assert may == [f"token.{role.value}"]
    assert role not in GIVEN


def test_only_reading_reaches_all_of_it_with_a_limited_token():
    """A change that a limited token may make is of a task, a plan or a body that is looked at."""
    everything = {name for name, one in PERMISSIONS.items() if one.reach is Reach.ALL}
    assert {name for name in everything if OPERATIONS[name].access is not Access.READ} == {"source.put"}


def test_nobody_has_looked():
    with pytest.raises(Unauthorised):
        identity_of({})
    assert identity_of({IN_SCOPE: OWNER}) is OWNER
    assert replace(OWNER, token="t").names == ("t",)
    assert Identity(subject="w", role=Role.WORKER, token="t", family="f").names == ("t", "f")
