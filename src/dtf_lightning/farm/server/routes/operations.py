"""The operations of the API: each route declares one of these names, which is what permissions are given for (`security/permissions.py`).

Rule: a route without a name of this table is a mistake (`tests/farm/server/test_operations.py`), and so is a name without
a route.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Access(Enum):
    """What an operation does to the farm."""

    READ = "read"
    """Nothing."""
    SUBMIT = "submit"
    """Adds or ends work."""
    WORK = "work"
    """What a worker says and asks."""
    JOIN = "join"
    """What a machine asks that becomes a worker, or stays one."""
    OPERATE = "operate"
    """Changes the farm itself."""
    ADMIT = "admit"
    """Lets others in."""


@dataclass(frozen=True)
class Operation:
    """One operation."""

    access: Access
    summary: str


def _of(access: Access, **summaries: str) -> dict[str, Operation]:
    return {name.replace("__", "."): Operation(access, text) for name, text in summaries.items()}


OPERATIONS: dict[str, Operation] = {
    **_of(
        Access.READ,
        task__list="Tasks that are not done and those that are, page by page.",
        task__get="One task; with `wait` when something has happened.",
        task__past="How a test fared before, and where it last passed.",
        task__ends="Which of some tasks have ended; with `wait` when one has.",
        client__connect="A client's connection, a WebSocket; each message on it is an operation of its own.",
        update__follow="Be told what changes, over the WebSocket.",
        task__logs="What an attempt has written.",
        task__artifacts="The files that an attempt has left.",
        artifact__get="A file that an attempt has left.",
        source__exists="Whether an archive of files is here.",
        source__get="An archive of files.",
        plan__get="How many of a plan's tasks are at what, and which have ended.",
        schedule__list="The plans that are submitted at certain times, each with its latest run.",
        quarantine__list="Tests whose failures do not count for a while, and those whose quarantine has expired.",
        secret__list="The names of the secrets that the farm keeps, and who set each.",
        orchestration__get="A job that is split over devices, with its subtasks and its result.",
        orchestration__list="Jobs that are split over devices, page by page.",
        schedule__get="One of them, with its plan and its latest runs.",
        reservation__list="Workers that people have reserved.",
        scaling__get="The pools that the farm scales: what waits for each, what was done and why, or would be.",
        health__findings="What is wrong with the farm, how bad that is, why, and what to do.",
        metrics__get="The farm's metrics, as Prometheus reads them.",
        alert__list="What fires and has fired, who was told, silences, rules and handlers.",
        result__list="Results of tasks that are done, page by page.",
        result__get="One result.",
        result__aggregate="Statistics of results: not yet.",
        result__query="One SELECT over the results.",
        worker__list="The workers, page by page.",
        worker__get="One worker.",
        worker__capabilities="What workers offer.",
        dashboard__get="What a page of the farm shows.",
        api__describe="What the API takes, as OpenAPI.",
        project__list="The projects, with their weights and limits.",
        licence__list="The licences, and how many there are of each.",
        status__get="The farm in numbers.",
        cluster__status="Who leads, since when, and the coordinators.",
        cluster__nodes="The coordinators, page by page.",
        cluster__health="How the coordinators' machines are.",
        cluster__visualize="The coordinators as a page.",
        cluster__leader="Who leads, and who led before.",
    ),
    **_of(
        Access.SUBMIT,
        task__submit="Accept tasks.",
        task__cancel="End a task.",
        task__stdin="Add to what a task reads.",
        task__retry="Submit a task that is done again, with what was skipped because of it.",
        task__rerun="Run a task that is done once more: on other workers, with another's code or variables.",
        plan__submit="Accept all tasks of a plan, or register its schedule.",
        quarantine__set="Let a test fail for a while.",
        quarantine__remove="Let a test count again.",
        secret__set="Keep a secret for a project's tasks.",
        secret__remove="Forget a secret.",
        schedule__pause="Let a schedule rest.",
        schedule__resume="Let a schedule go on.",
        schedule__remove="Forget a schedule.",
        schedule__run="Submit a schedule's plan now.",
        plan__cancel="End a plan's tasks.",
        plan__retry="Submit again what did not complete of a plan.",
        source__put="Keep an archive of files.",
        orchestration__submit="Split a job over devices.",
        orchestration__cancel="End a job that is split over devices, with all its subtasks.",
    ),
    **_of(
        Access.WORK,
        worker__connect="A worker's own connection, a WebSocket.",
        worker__register="Offer a worker over REST.",
        worker__tasks="The attempts that a worker over REST is to make.",
        worker__health="A worker over REST is there.",
        attempt__complete="An attempt has completed, over REST.",
        attempt__fail="An attempt has not completed, over REST.",
        subtask__complete="An attempt at a subtask of a job has completed, over REST.",
        subtask__fail="An attempt at a subtask of a job has not completed, over REST.",
        attempt__stdin="What a task reads.",
        attempt__logs="Keep a part of what an attempt has written.",
        attempt__offer_artifacts="Say which of the files that an attempt has left are wanted.",
        attempt__put_artifact="Keep a file that an attempt has left.",
        attempt__token="A token for an attempt's command, for the worker that makes it.",
        attempt__secrets="The secrets that an attempt's task names, for the worker that makes it.",
    ),
    **_of(
        Access.OPERATE,
        cluster__disable="Take work away from a coordinator.",
        cluster__enable="Let a coordinator work again.",
        worker__drain="Let a worker finish what it runs, and end.",
        worker__cordon="Give a worker nothing more.",
        worker__uncordon="Give a worker tasks again.",
        reservation__make="Reserve workers, for maintenance or for a project.",
        reservation__cancel="Take a reservation back.",
        alert__acknowledge="Say that somebody is at an incident: it does not escalate.",
        alert__silence="Let nothing be said of some alerts for a while.",
        alert__unsilence="Let it be said again.",
        alert__test="Let a handler of alerts say that this is a test.",
        project__set="Make a project, or change its weight and limits.",
        licence__set="Say how many there are of a licence.",
    ),
    **_of(
        Access.ADMIT,
        token__create="Make a token for somebody.",
        token__list="The tokens that were made, and the workers that have joined.",
        token__revoke="Make a token good no more.",
        token__rotate_keys="Sign tokens with a new key.",
        secret__rotate="Seal all secrets with the newest key.",
    ),
    **_of(
        Access.JOIN,
        token__join="Become a worker, with a token to join with.",
        token__refresh="A worker's next tokens.",
    ),
}
"""Name -> the operation."""
