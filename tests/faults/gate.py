"""The source gate: what turns data into code must not be in our packages. Works on the syntax tree, not on words."""

import ast
from collections.abc import Iterator
from typing import Final

BANNED_MODULES: Final = frozenset(
    {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}
)
BANNED_CALLS: Final = frozenset({"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"})
BANNED_METHODS: Final = frozenset({"recv_pyobj", "send_pyobj"})


def offences(source: str) -> list[str]:
    """Return each use of what is banned, with its line."""
    tree = ast.parse(source)
    names = _imported(tree)
    return [f"line {line}: {what}" for node in ast.walk(tree) for line, what in _found(node, names)]


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local names of imported things: ``from torch import load as l`` gives ``l`` for ``torch.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _found(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] in BANNED_MODULES:
                yield node.lineno, f"imports {alias.name}"
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in BANNED_MODULES:
        yield node.lineno, f"imports from {node.module}"
    if isinstance(node, ast.Call):
        called = _path(node.func, names)
        if called in BANNED_CALLS or called.removeprefix("builtins.") in BANNED_CALLS:
            yield node.lineno, f"calls {called}"
        if called.rpartition(".")[2] in BANNED_METHODS:
            yield node.lineno, f"calls {called}"
        if any(word.arg == "allow_pickle" and not _is_false(word.value) for word in node.keywords):
            yield node.lineno, "allows pickle"


def _path(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_path(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False
