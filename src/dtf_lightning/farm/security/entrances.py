"""What leads to which operation beside the routes of the API, which declare theirs: messages, the page, and commands.

Rule: an entrance that is not here leads nowhere; `tests/farm/security/test_permissions.py` compares with what there is.
"""

from __future__ import annotations

from collections.abc import Mapping

WORKER_MESSAGES: Mapping[str, str] = {
    "Hello": "worker.connect",
    "Heartbeat": "worker.connect",
    "Started": "worker.connect",
    "Result": "worker.connect",
    "MeetingPlace": "worker.connect",
    "Draining": "worker.connect",
    "Gone": "worker.connect",
}
"""What a worker says over its WebSocket -> the operation that it is."""

PAGE: Mapping[str, str] = {
    "/": "dashboard.get",
    "/tasks": "task.list",
    "/tasks/{task}": "task.get",
    "/tasks/{task}/output": "task.logs",
    "/tasks/{task}/search": "task.logs",
    "/plans/{plan:path}": "plan.get",
    "/fleet": "worker.list",
    "/cluster": "cluster.status",
    "/grid": "result.list",
    "/test": "result.list",
    "/compare": "result.list",
    "/trainings": "task.list",
    "/trainings/{task}": "task.get",
}
"""Address of the page -> operation. The page shows all projects: it is not for tokens that are limited to some, nor for CI."""

ACTIONS: Mapping[str, str] = {
    "cancel-task": "task.cancel",
    "cancel-plan": "plan.cancel",
    "drain": "worker.drain",
    "cordon": "worker.cordon",
    "uncordon": "worker.uncordon",
}
"""What may be done from the page -> operation."""

OPEN_PAGES = ("/sign-in", "/sign-out", "/static")
"""Of the page, what is the same for everybody."""

_SUBMIT = ("source.exists", "source.put", "task.submit", "plan.submit", "project.list")
_FOLLOW = (
    "task.get",
    "task.ends",
    "task.logs",
    "task.stdin",
    "task.cancel",
    "plan.get",
    "plan.cancel",
    "client.connect",
    "update.follow",
)

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "up": (),
    "down": (),
    "demo": (),
    "doctor": (),
    "backup": (),
    "restore": (),
    "deploy": (),
    "ci write": (),
    "ci report": ("task.list", "quarantine.list"),
    "openapi": (),
    "sign-in": (),
    "coordinator": (),
    "worker": (
        "worker.connect",
        "attempt.logs",
        "attempt.stdin",
        "attempt.offer_artifacts",
        "attempt.put_artifact",
        "attempt.secrets",
        "attempt.token",
        "source.get",
        "artifact.get",
        "token.join",
        "token.refresh",
    ),
    "run": (*_SUBMIT, *_FOLLOW, "quarantine.list"),
    "submit": _SUBMIT,
    "train": (*_SUBMIT, *_FOLLOW),
    "orchestrate": ("source.exists", "source.put", "orchestration.submit", "orchestration.get", "orchestration.cancel"),
    "orchestrated": ("orchestration.list", "orchestration.get", "orchestration.cancel"),
    "compare": (*_SUBMIT, *_FOLLOW),
    "bisect": (*_SUBMIT, *_FOLLOW),
    "generate": _SUBMIT,
    "blame": (
        "task.get",
        "task.retry",
        "result.list",
        "worker.cordon",
        "task.past",
        "task.rerun",
        "task.cancel",
        "worker.list",
        "source.exists",
        "source.put",
    ),
    "cert init": (),
    "cert issue": (),
    "audit verify": (),
    "config check": (),
    "config show": (),
    "config schema": (),
    "quarantine add": ("quarantine.set",),
    "quarantine list": ("quarantine.list",),
    "quarantine remove": ("quarantine.remove",),
    "schedules": ("schedule.list",),
    "schedule": ("schedule.get", "schedule.pause", "schedule.resume", "schedule.remove", "schedule.run"),
    "verdict list": (),
    "verdict replay": (),
    "artifacts": ("task.artifacts", "artifact.get"),
    "results query": ("result.query",),
    "results changes": ("result.query",),
    "tasks": ("task.list",),
    "task": ("task.get",),
    "logs": ("task.get", "task.logs"),
    "cancel": ("task.cancel",),
    "retry": ("task.retry", "plan.retry"),
    "workers": ("worker.list",),
    "drain": ("worker.drain",),
    "cordon": ("worker.cordon",),
    "uncordon": ("worker.uncordon",),
    "report": ("dashboard.get", *PAGE.values()),
    "health": ("health.findings",),
    "scaling": ("scaling.get",),
    "reservation add": ("reservation.make",),
    "reservation list": ("reservation.list",),
    "reservation cancel": ("reservation.cancel",),
    "alerts list": ("alert.list",),
    "alerts acknowledge": ("alert.acknowledge",),
    "alerts silence": ("alert.silence",),
    "alerts unsilence": ("alert.unsilence",),
    "alerts test": ("alert.test",),
    "status": ("status.get",),
    "nodes": ("cluster.status",),
    "node disable": ("cluster.disable",),
    "node enable": ("cluster.enable",),
    "project list": ("project.list",),
    "project set": ("project.set",),
    "licence list": ("licence.list",),
    "licence set": ("licence.set",),
    "secret set": ("secret.set",),
    "secret list": ("secret.list",),
    "secret remove": ("secret.remove",),
    "secret rotate": ("secret.rotate",),
    "secret new-key": (),
    "token create": ("token.create",),
    "token list": ("token.list",),
    "token revoke": ("token.revoke",),
    "token rotate-keys": ("token.rotate_keys",),
}
"""Command of `dtf farm` -> what it asks of a farm."""
