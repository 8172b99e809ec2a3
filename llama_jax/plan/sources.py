"""Source files that a module is made of: itself, and all of llama_jax that it imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

from llama_jax import config

PACKAGE = Path(config.__file__).parent


def import_closure(module: str) -> list[Path]:
    """Return the files of `module`, "llama_jax.step" for one, and of every module of llama_jax that
    it imports, directly or through others, inside functions too. Imports nothing itself."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imports(path)
    return [found[name] for name in sorted(found)]


def _file(module: str) -> Path | None:
    """Return the file of a module of llama_jax; None for anything else, such as a function."""
    package, *parts = module.split(".")
    if package != "llama_jax":
        return None
    path = PACKAGE.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Yield the names that a file imports, each after the packages around it."""
    for node in _run(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a file but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run(node)
