"""The templates of generated tests: files, the truth; what their heads say; and what they make of a model.

Rules that this file guards:
- A file of one's own folder takes the place of the package's of the same name; a new `test_NAME.py.j2` is a new check.
- Nothing is left out silently: a name that a template does not get is an error, as everything that is wrong with one, with
  the file and the line (`StrictUndefined`).
- Equal files and an equal model give equal text: no clock, no chance, no absolute path.
"""

from __future__ import annotations

import ast
import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.checks import CONDITIONS, MEMORY, Check
from dtf_lightning.settings.marked_yaml import Node, nearest, parse_marked

PACKAGED = Path(__file__).with_name("templates")
SUFFIX = ".j2"
_TEST = "test_"
_HEAD_KEYS = ("version", *(field.name for field in fields(Check) if field.name != "name"))


@dataclass(frozen=True, kw_only=True)
class Template:
    """One file of a folder of templates."""

    name: str
    """Of the file, without `.j2`: its id."""
    path: Path
    text: str
    version: int
    digest: str
    """SHA-256 of the file, as hexadecimal digits."""
    inputs: tuple[str, ...]
    """Names that it takes."""
    check: Check | None
    """`None`: it is no file of tests."""


class TemplateLibrary:
    """The templates of the package, and of a folder of one's own.

    Raises `SettingsError` for a folder that is not there or without templates, and for a template that is wrong.
    """

    def __init__(self, own: Path | None = None) -> None:
        folders = [PACKAGED]
        if own is not None:
            if not own.is_dir() or not any(own.glob(f"*{SUFFIX}")):
                raise SettingsError(f"the folder of templates {own} has no files *{SUFFIX}")
            folders.append(own)
        self._environment = _environment(folders)
        found: dict[str, Template] = {}
        for folder in folders:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                template = _read(path, self._environment)
                found[template.name] = template
        self.templates: Mapping[str, Template] = dict(sorted(found.items()))

    @property
    def checks(self) -> list[Check]:
        """Those that there are."""
        return [template.check for template in self.templates.values() if template.check is not None]

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """Return what a template makes. Raises `SettingsError` with file and line for what is wrong in it."""
        template = self.templates[name]
        try:
            text = self._environment.get_template(name + SUFFIX).render(values)
        except jinja2.TemplateSyntaxError as error:
            raise _wrong(
                Path(error.filename or template.path), error.lineno, error.message or "wrong syntax"
            ) from error
        except SettingsError:
            raise
        except Exception as error:
            raise _wrong(template.path, _line_of(error, template.path), f"{type(error).__name__}: {error}") from error
        text = text.lstrip("\n").rstrip("\n") + "\n"
        if name.endswith(".py"):
            try:
                ast.parse(text)
            except SyntaxError as error:
                line = text.splitlines()[(error.lineno or 1) - 1].strip()
                raise SettingsError(
                    f"{template.path}: what it makes is no Python: {error.msg} in line {error.lineno} of {name}: {line}"
                ) from error
        return text


def _environment(folders: Sequence[Path]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder) for folder in reversed(folders)]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it makes Python, no HTML
    )
    environment.filters["python"] = _as_python
    environment.filters["yaml_amounts"] = lambda amounts: (
        f"{{{', '.join(f'{name}: {amount:g}' for name, amount in amounts.items())}}}"
    )
    environment.filters["yaml_list"] = lambda words: f"[{', '.join(json.dumps(str(word)) for word in words)}]"
    return environment


def _as_python(value: Any) -> str:
    """Return a value as this project writes it in Python: texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_python(one) for one in value)}]"
    return repr(value)


def _read(path: Path, environment: jinja2.Environment) -> Template:
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    try:
        inputs = jinja2.meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise _wrong(path, error.lineno, error.message or "wrong syntax") from error
    name = path.name.removesuffix(SUFFIX)
    version, check = _head(name, text, path)
    return Template(
        name=name,
        path=path,
        text=text,
        version=version,
        digest=hashlib.sha256(data).hexdigest(),
        inputs=tuple(sorted(inputs)),
        check=check,
    )


def _head(name: str, text: str, path: Path) -> tuple[int, Check | None]:
    """Return version and check of a template, from the comment that it begins with."""
    is_check = name.startswith(_TEST) and name.endswith(".py")
    called = name.removeprefix(_TEST).removesuffix(".py")
    if not text.startswith("{#"):
        return 0, Check(name=called, title=called) if is_check else None
    body = text[2 : text.find("#}")]
    head = parse_marked(body, str(path)) if body.strip() else None
    told = {}
    if head is not None:
        head.refuse_unknown(_HEAD_KEYS, "a template's head")
        told = {key: _READERS[key](node, key) for key, node in head.value.items()}
    version = told.pop("version", 0)
    return version, Check(**{"name": called, "title": called, **told}) if is_check else None


def _whole(node: Node, what: str) -> int:
    if not isinstance(node.value, int) or isinstance(node.value, bool):
        raise node.error(f"{what} is a whole number, got {node.kind}")
    return node.value


def _number(node: Node, what: str) -> float:
    if not isinstance(node.value, int | float) or isinstance(node.value, bool) or node.value < 0:
        raise node.error(f"{what} is a number, got {node.kind}")
    return float(node.value)


def _flag(node: Node, what: str) -> bool:
    if not isinstance(node.value, bool):
        raise node.error(f"{what} is true or false, got {node.kind}")
    return node.value


def _texts(node: Node, what: str) -> tuple[str, ...]:
    return tuple(one.scalar(f"each of {what}") for one in node.sequence(what))


def _conditions(node: Node, what: str) -> tuple[str, ...]:
    for one in node.sequence(what):
        if one.text not in CONDITIONS:
            raise one.error(f"{one.text!r} is no condition{nearest(one.text, CONDITIONS)}")
    return _texts(node, what)


def _memory(node: Node, what: str) -> str:
    if node.text not in MEMORY:
        raise node.error(f"{what} is one of {', '.join(MEMORY)}{nearest(node.text, MEMORY)}")
    return node.text


_READERS: Mapping[str, Any] = {
    "version": _whole,
    "title": lambda node, what: node.scalar(what),
    "after": _texts,
    "priority": _whole,
    "needs": _conditions,
    "memory": _memory,
    "seconds": _number,
    "runs": _whole,
    "exclusive": _flag,
}


def _line_of(error: BaseException, path: Path) -> int:
    """Return the template's line in which an error came up; 1 if it was nowhere in it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
    return (frames[-1].lineno or 1) if frames else 1


def _wrong(path: Path, line: int, told: str) -> SettingsError:
    return SettingsError(f"{path}, line {line}: {told}")
