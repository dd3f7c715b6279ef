"""Handlers by their settings: this package's own, and those that installed packages add by an entry point.

A package adds one in its `pyproject.toml`. What stands there is called with the settings' `options` as keywords, and gives a
`farm.alerts.notice.Handler`:

    [project.entry-points."dtf_lightning.farm.alert_handlers"]
    pager = "my_package.alerts:Pager"
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.alerts.commands import CommandHandler
from dtf_lightning.farm.alerts.github import API, GitHubHandler
from dtf_lightning.farm.alerts.mail import MailHandler
from dtf_lightning.farm.alerts.notice import Handler, Notice
from dtf_lightning.farm.alerts.webhooks import ChatHandler, WebhookHandler, slack_shape, teams_shape
from dtf_lightning.farm.settings.alerts import AlertHandlerSettings
from dtf_lightning.settings.marked_yaml import nearest

log = logging.getLogger(__name__)

GROUP = "dtf_lightning.farm.alert_handlers"

_LEVELS = {"critical": logging.ERROR, "warning": logging.WARNING}


class LogHandler:
    """Writes into the coordinator's log."""

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`."""
        del timeout  # a log takes none
        level = logging.INFO if notice.step == "resolved" else _LEVELS.get(notice.severity, logging.INFO)
        log.log(level, "%s", notice.text)


def make_handler(told: AlertHandlerSettings, path: Callable[[str], Path]) -> Handler:
    """Return a handler. `path`: makes a path of the settings an absolute one.

    Raises `SettingsError` for a type that nobody has, and for an installed one that does not load or is no handler.
    """
    secret = path(told.secret_file) if told.secret_file else None
    makers: dict[str, Callable[[], Handler]] = {
        "email": lambda: MailHandler(url=told.url, sender=told.sender, to=told.to, secret_file=secret),
        "webhook": lambda: WebhookHandler(url=told.url, secret_file=secret),
        "slack": lambda: ChatHandler(url=told.url, shape=slack_shape),
        "teams": lambda: ChatHandler(url=told.url, shape=teams_shape),
        "github": lambda: GitHubHandler(repository=told.repository, secret_file=secret or Path(), url=told.url or API),
        "command": lambda: CommandHandler(command=told.command),
    }
    return makers[told.type]() if told.type in makers else _installed(told, [*makers])


def _installed(told: AlertHandlerSettings, own: list[str]) -> Handler:
    known = [*own, *sorted(entry.name for entry in entry_points(group=GROUP))]
    entries = entry_points(group=GROUP, name=told.type)
    if not entries:
        raise SettingsError(
            f"alerts.handlers: {told.name} has the type {told.type!r}, which nobody has{nearest(told.type, known)}"
        )
    entry = next(iter(entries))
    options = dict(one.partition("=")[::2] for one in told.options)
    try:
        handler = entry.load()(**options)
    except Exception as error:
        raise SettingsError(
            f"alerts.handlers: {told.name} of the type {told.type!r} could not be made from {entry.value!r} with the options "
            f"{options}: {error!r}. Mend its options, or the package that adds it"
        ) from error
    if not callable(getattr(handler, "send", None)):
        raise SettingsError(f"alerts.handlers: {told.type!r} from {entry.value!r} is no handler: it has no `send`")
    made: Handler = handler
    return made
