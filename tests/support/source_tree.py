"""The package's source as a graph: its modules, what each imports, its classes. For the tests of its structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "dtf_lightning"


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def sources(root: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """(path below `root`, text) of every Python file."""
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), path.read_text()


def module_of(path: str) -> str:
    """`elastic/rules/membership.py` is `elastic.rules.membership`, an `__init__.py` is its package."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__").removesuffix("__init__")


def imports(text: str) -> Iterator[str]:
    """Every module that an import names, at the top, inside a function or under `TYPE_CHECKING`."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or ""
            if (node.module or "").split(".")[0] == "dtf_lightning":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported_modules() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports, both without the leading `dtf_lightning.`; the root is `""`."""
    texts = {module_of(path): text for path, text in sources()}
    return {module: {name for name in _named(text, texts.keys()) if name != module} for module, text in texts.items()}


def _named(text: str, modules: Set[str]) -> Iterator[str]:
    """The modules that the imports mean: `from dtf_lightning.a import b` is a.b where that is a module, else a."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Import):
            yield from (_inner(alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            home = _inner(node.module)
            for alias in node.names:
                name = f"{home}.{alias.name}".removeprefix(".")
                yield name if name in modules else home


def _inner(name: str) -> str:
    return name.removeprefix("dtf_lightning").removeprefix(".")


def _is_ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] == "dtf_lightning"


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            start = stack.index(node)
            component, stack[start:] = set(stack[start:]), []
            if len(component) > 1:
                found.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def definitions(text: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every class and function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                yield name[:-1], child
            yield from walk(child, name)

    return walk(parse(text), "")


def is_record(node: ast.ClassDef) -> bool:
    """A dataclass or Enum: the names of its fields say it all."""
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or any(ast.unparse(base).endswith("Enum") for base in node.bases)


def attributes(node: ast.ClassDef) -> set[str]:
    """What an instance holds: every `self.name` that a method assigns, every field that the class annotates."""
    held = {
        target.attr
        for child in ast.walk(node)
        for target in _assigned(child)
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
    fields = {
        child.target.id
        for child in node.body
        if isinstance(child, ast.AnnAssign)
        and isinstance(child.target, ast.Name)
        and "ClassVar" not in ast.unparse(child.annotation)
    }
    return held | fields


def _assigned(node: ast.AST) -> Iterator[ast.AST]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    for target in targets:
        yield from ast.walk(target)


def calls(text: str, *names: str) -> bool:
    """Whether the code (not its strings or comments) uses one of the dotted names."""
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) in names for node in ast.walk(parse(text)))
