"""Finds calls and imports by which data could become code, in Python source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

CODE_IN_DATA = frozenset({"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"})
"""Modules that turn bytes into objects of any kind."""

RUNNERS = frozenset({"eval", "exec", "compile", "__import__"})

FORBIDDEN_CALLS = frozenset(
    {
        "torch.load",
        "torch.hub.load",
        "joblib.load",
        "pandas.read_pickle",
        "pd.read_pickle",
        "yaml.unsafe_load",
        "yaml.full_load",
        "yaml.load_all",
        "yaml.unsafe_load_all",
        "yaml.full_load_all",
        "os.system",
        "os.popen",
        "builtins.eval",
        "builtins.exec",
    }
)
FORBIDDEN_METHODS = frozenset({"recv_pyobj", "send_pyobj"})
NUMPY_LOADS = frozenset({"np.load", "numpy.load"})
FORBIDDEN_TRUE = frozenset({"allow_pickle", "trust_remote_code", "shell"})


@dataclass(frozen=True)
class Finding:
    """What was found, and in which line."""

    line: int
    what: str


def findings(source: str) -> list[Finding]:
    """Return everything forbidden in a module's source, by line."""
    tree = ast.parse(source)
    names = _imported(tree)
    found = [finding for node in ast.walk(tree) for finding in _of_node(node, tree, names)]
    return sorted(found, key=lambda finding: finding.line)


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name stands for: ``from yaml import load as l`` gives ``l`` as ``yaml.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _of_node(node: ast.AST, tree: ast.Module, names: dict[str, str]) -> Iterator[Finding]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    elif isinstance(node, ast.Call):
        yield from _of_call(node, tree, names)
        return
    else:
        return
    for module in modules:
        if module.partition(".")[0] in CODE_IN_DATA:
            yield Finding(node.lineno, f"import of {module}")


def _of_call(call: ast.Call, tree: ast.Module, names: dict[str, str]) -> Iterator[Finding]:
    name = _dotted(call.func, names)
    last = name.rpartition(".")[2]
    if name in RUNNERS | FORBIDDEN_CALLS or name.partition(".")[0] in CODE_IN_DATA or last in FORBIDDEN_METHODS:
        yield Finding(call.lineno, f"call of {name}")
    if name in NUMPY_LOADS and not _is_constant(_keyword(call, "allow_pickle"), value=False):
        yield Finding(call.lineno, f"{name} without allow_pickle=False")
    if name == "yaml.load" and not _loads_safely(call, tree, names):
        yield Finding(call.lineno, "yaml.load without a safe loader")
    if name == "importlib.import_module" and call.args and _literal(call.args[0]).partition(".")[0] in CODE_IN_DATA:
        yield Finding(call.lineno, f"import of {_literal(call.args[0])}")
    for keyword in call.keywords:
        # A value that is computed might be true, so only a plain False will do.
        if keyword.arg in FORBIDDEN_TRUE and not _is_constant(keyword.value, value=False):
            yield Finding(call.lineno, f"{keyword.arg} that is not False")


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is_constant(node: ast.expr | None, *, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _literal(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _loads_safely(call: ast.Call, tree: ast.Module, names: dict[str, str]) -> bool:
    loader = call.args[1] if len(call.args) > 1 else _keyword(call, "Loader")
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    safe |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases and {_dotted(base, names) for base in node.bases} <= safe
    }
    return loader is not None and _dotted(loader, names) in safe
