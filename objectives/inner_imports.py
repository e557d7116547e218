"""Code of the user's own that functions import within themselves, read from its files.

Such a module need not be loaded yet, and is not loaded for this: what is found is the same at each call. From a file
count the functions, classes and variables that are used, and what they use of it and of others, each by its code.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from .user_code import MOST_REACHED, functions_of, is_users, is_users_file

MOST_BYTES = 1 << 20
"""Of a file that is read."""


class Use(NamedTuple):
    """A name of a module that some code uses, and the attributes that it takes of it."""

    module: str
    name: str
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Content:
    """What stands in a file at its top level."""

    package: str
    defined: Mapping[str, list[ast.stmt]] = field(default_factory=dict)
    imports: tuple[ast.stmt, ...] = ()


def imported_code(parts: Iterable[Any]) -> list[tuple[str, str]]:
    """Return the name and the code of all that these functions and classes import within themselves."""
    found: dict[str, str] = {}
    uses = [use for part in parts for use in _of_part(part)]
    known = set(uses)
    for use in uses:  # It grows meanwhile.
        content = _content(use.module)
        if content is None or len(found) >= MOST_REACHED:
            continue
        nodes = content.defined.get(use.name, [])
        if nodes:
            found[f"{use.module}.{use.name}"] = "\n".join(map(_code, nodes))
            more = {each for node in nodes for each in _uses(node, content.package, content.imports)}
            names = {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}
            more |= {Use(use.module, name) for name in names & content.defined.keys()}
        else:  # Imported there in turn, or a module of a package.
            again = _bound(content.imports, content.package).get(use.name) or Use(f"{use.module}.{use.name}", "")
            more = set(_through(again, use.name, {use.name: use.attributes}))
        uses += sorted(more - known)
        known |= more
    return sorted(found.items())


def _of_part(part: Any) -> Iterator[Use]:
    """Yield what the functions of a part import within themselves."""
    for function in functions_of(part):
        try:
            tree = ast.parse(dedent(inspect.getsource(function.__code__)))
        except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
            continue
        yield from _uses(tree, str(function.__globals__.get("__package__") or ""), ())


def _uses(tree: ast.AST, package: str, around: Iterable[ast.stmt]) -> Iterator[Use]:
    """Yield what a code uses of what it imports itself, or what is imported around it."""
    own = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    bound: dict[str, Use] = _bound([*around, *own], package)
    taken: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            taken.setdefault(node.id, set())
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node.value) if isinstance(node.value, ast.Name | ast.Attribute) else ""
            taken.setdefault(dotted, set()).add(node.attr)
    for name, target in bound.items():
        if name in taken:
            yield from _through(target, name, taken)


def _through(target: Use, name: str, taken: Mapping[str, Iterable[str]]) -> Iterator[Use]:
    """Yield what is used of what a name stands for: the one thing, or what is taken of the module."""
    if target.name:
        yield Use(target.module, target.name, frozenset(taken[name]))
    else:
        for attribute in sorted(taken[name]):
            yield Use(target.module, attribute, frozenset(taken.get(f"{name}.{attribute}", ())))


def _bound(imports: Iterable[ast.stmt], package: str) -> dict[str, Use]:
    """Return what each name stands for after these imports; of a module the name is empty."""
    bound: dict[str, Use] = {}
    for node in imports:
        if isinstance(node, ast.Import):
            bound |= {each.asname or each.name: Use(each.name, "") for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(filter(None, [*base, node.module]))
            bound |= {each.asname or each.name: Use(module, each.name) for each in node.names}
    return bound


def _content(module: str) -> Content | None:
    """Return what stands in the file of a module, if it is the user's own and can be read."""
    path = _file(module)
    if path is None or not is_users_file(module, path):
        return None
    try:
        stat = os.stat(path)
        return None if stat.st_size > MOST_BYTES else _read(module, path, stat.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _read(module: str, path: str, changed_ns: int) -> Content | None:
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    defined: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _names(node):
            defined.setdefault(name, []).append(node)
    imports = tuple(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    package = module if Path(path).stem == "__init__" else module.rpartition(".")[0]
    return Content(package, defined, imports)


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def _code(node: ast.stmt) -> str:
    """Return the code of a definition, without comments, docstrings and layout."""
    tree = ast.parse(ast.unparse(node))
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(each):
            each.body = each.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _file(module: str) -> str | None:
    """Return the file of a module that may not be loaded; nothing is run to find it."""
    spec = _spec(module)
    origin = None if spec is None else spec.origin
    return origin if origin is not None and origin.endswith(".py") else None


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    parent, _, _ = module.rpartition(".")
    if not parent:
        if module in sys.stdlib_module_names or not module.isidentifier():
            return None
        return importlib.machinery.PathFinder.find_spec(module)
    above = _spec(parent) if is_users(parent) else None
    places = None if above is None else above.submodule_search_locations
    return None if places is None else importlib.machinery.PathFinder.find_spec(module, list(places))
