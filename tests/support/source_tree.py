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


@cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """Every node of the text. Walking takes as long as parsing, and ten tests look at the whole tree."""
    return tuple(ast.walk(parse(text)))


def forget() -> None:
    """Let go of all that was parsed."""
    nodes.cache_clear()
    definitions.cache_clear()
    parse.cache_clear()


def sources(root: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """(path below `root`, text) of every Python file."""
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), path.read_text()


def module_of(path: str) -> str:
    """`elastic/rules/membership.py` is `elastic.rules.membership`, an `__init__.py` is its package."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__").removesuffix("__init__")


def imports(text: str) -> Iterator[str]:
    """Every module that an import names, at the top, inside a function or under `TYPE_CHECKING`."""
    for node in nodes(text):
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
    for node in nodes(text):
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


@cache
def definitions(text: str) -> tuple[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef], ...]:
    """Every class and function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                yield name[:-1], child
            yield from walk(child, name)

    return tuple(walk(parse(text), ""))


def is_record(node: ast.ClassDef) -> bool:
    """A dataclass, a model of pydantic's or an Enum: the names of its fields say it all."""
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or any(ast.unparse(base).endswith(("Enum", "Model")) for base in node.bases)


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
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) in names for node in nodes(text))


_SLEEPS = {"time.sleep", "asyncio.sleep", "signal.sigtimedwait"}
_FRESH = {"Event", "Condition", "Queue", "SimpleQueue", "LifoQueue", "PriorityQueue"}
_WAITS = {"wait", "wait_for", "get"}
_PROGRAMS = {"subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"}


def sleeps(text: str) -> list[str]:
    """Where the code lets time pass that nothing can shorten: by `sleep`, or by waiting for what nobody can announce."""
    if not any(word in text for word in ("sleep", "sigtimedwait", "select", *_FRESH)):
        return []
    found = [node for node in nodes(text) if _is_sleep(node)]
    scopes = [node for node in nodes(text) if isinstance(node, ast.FunctionDef | ast.Module)]
    found += [wait for scope in scopes for wait in _waits_for_nobody(scope)]
    return sorted({f"line {node.lineno}: {ast.unparse(node)}" for node in found})


def _is_sleep(node: ast.AST) -> bool:
    match node:
        case ast.Attribute():
            return node.attr in {"sleep", "sigtimedwait"} and ast.unparse(node) in _SLEEPS
        case ast.ImportFrom(module=str(module)):
            return any(f"{module}.{alias.name}" in _SLEEPS for alias in node.names)
        case ast.Call(func=ast.Attribute(value=ast.Call() as made, attr=attribute)):
            return attribute in _WAITS and _is_fresh(made)
        case ast.Call(args=[ast.List(elts=[]), ast.List(elts=[]), ast.List(elts=[]), _]):
            return ast.unparse(node.func).endswith("select")
        case ast.Call(args=[ast.List(elts=[ast.Constant(value="sleep"), *_]), *_]):
            return ast.unparse(node.func) in _PROGRAMS
    return False


def _is_fresh(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _FRESH


def _waits_for_nobody(scope: ast.AST) -> Iterator[ast.expr]:
    """Waits for an event that is made here and only waited for: nobody else has it, nobody sets it.

    Names are looked for in their function, attributes in their module.
    """
    kind = ast.Attribute if isinstance(scope, ast.Module) else ast.Name
    made = {
        ast.unparse(target)
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign)
        for target, value in _pairs(node)
        if _is_fresh(value) and isinstance(target, kind)
    }
    if not made:
        return
    uses: dict[str, list[ast.expr | None]] = {name: [] for name in made}
    ends = {name.rpartition(".")[2] for name in made}

    def known(node: ast.expr) -> str:
        """The name, if it is one of them; most are told by their last part alone, and unparsing takes long."""
        last = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        name = ast.unparse(node) if last in ends else ""
        return name if name in made else ""

    for node in ast.walk(scope):
        if isinstance(node, ast.Attribute) and (name := known(node.value)):
            uses[name].append(node if node.attr in {*_WAITS, "is_set"} else None)
    for node in ast.walk(scope):
        is_use = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        if is_use and (name := known(node)):
            uses[name].append(node)
    for name, found in uses.items():
        waits = [use for use in found if isinstance(use, ast.Attribute) and ast.unparse(use) != name]
        handed_on = sum(use is not None and ast.unparse(use) == name for use in found) - len(waits)
        if waits and None not in found and handed_on == 0:
            yield from waits


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value
