"""Files that no library writes, from templates: a value that a template names and nobody gives is an error.

Values are quoted by a filter of the language that the file is written in, never pasted.
"""

from __future__ import annotations

import functools
import shlex
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return a template's text with these values."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dtf_lightning.farm.deploy"),
        autoescape=False,  # nothing here is HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"sh": shlex.quote, "ps": quoted_for_powershell, "cmd": quoted_for_cmd}
    return environment


def quoted_for_powershell(text: str) -> str:
    """Return a text as PowerShell's string of single quotes, in which only these mean something."""
    return "'" + text.replace("'", "''") + "'"


def quoted_for_cmd(text: str) -> str:
    """Return a text as a word of a batch file. Raises `ValueError` for one that cannot be written there."""
    if any(sign in text for sign in '"\r\n'):
        raise ValueError(f"{text!r} cannot be a word of a batch file")
    return '"' + text.replace("%", "%%") + '"'
