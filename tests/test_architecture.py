"""Imports point one way, down the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aiomas_ng"

LAYERS = [
    {"exceptions", "liveness", "tuning"},
    {"_core"},
    {"util", "_io.local_transport"},
    {"codecs", "ca", "clocks", "local_queue", "deadlines"},
    {"_io"},
    {"channel", "faults", "access", "supervision"},
    {"content"},
    {"message"},
    {"error"},
    {"_coap.deadlines", "_coap.driving", "_coap.events"},
    {"pipe"},
    {"_coap.remote", "_coap.incoming", "tokenmanager"},
    {"linkformat", "cache"},
    {"_coap.admission"},
    {
        "_coap.observation",
        "_coap.observers",
        "_coap.blockwise",
        "_coap.bodies",
        "_coap.requests",
        "_coap.site",
        "_coap.states",
        "_coap.verbs",
    },
    {"resource"},
    {"rpc"},
    {"protocol"},
    {"forwarding"},
    {"_coap"},
    {"_container"},
    {"agent"},
    {"directory"},
    {"subproc"},
]
"""Modules and sub-packages from the lowest layer to the highest; each may import its own and those below."""

LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = len(LAYERS)
"""The level of the package itself, which gathers the names of all layers."""

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def level_of(parts: tuple[str, ...]) -> int:
    """Return the layer of a module that is named by its *parts* below the package."""
    return LEVELS.get(".".join(parts[:2]), LEVELS[parts[0]]) if parts else TOP


def parts_of(path: Path) -> tuple[str, ...]:
    """Return the name of the module at *path* as parts below the package."""
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_for_types_only(node: ast.AST) -> bool:
    """Return whether *node* is what only the type checker sees; it makes no module depend on another."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes_below(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below *node* that run, inside of functions too."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from nodes_below(child)


def imports_of(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield line and name of what the module at *path* imports from the package."""
    for node in nodes_below(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["aiomas_ng", *path.parts[:-1]]
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from aiomas_ng import codecs` imports the module, not the package.
            names = [[*base, alias.name] if base == ["aiomas_ng"] else base for alias in node.names]
        else:
            continue
        for _, *parts in filter(lambda name: name[0] == "aiomas_ng", names):
            yield node.lineno, tuple(parts) if parts and parts[0] in LEVELS else ()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """No module imports one of a higher layer, nor the package itself."""
    parts = parts_of(path)
    assert not parts or parts[0] in LEVELS or parts == ("__main__",), "give the module a layer in LAYERS"
    own = TOP if parts == ("__main__",) else level_of(parts)
    upward = [
        f"line {line} imports {'.'.join(('aiomas_ng', *name))}"
        for line, name in imports_of(path)
        if level_of(name) > own
    ]
    assert not upward


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not any(part.startswith("_") for part in parts_of(path))], ids=str
)
def test_public_module_says_what_is_public(path: Path) -> None:
    """Every public module assigns ``__all__``."""
    body = ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    assert any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)
