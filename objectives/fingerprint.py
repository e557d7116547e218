"""What an objective's code is, as a hash, and which family its optimizer belongs to."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import dedent
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

from ..tuner.core.trials import OptimizerFamily

ADAM_LIKE = ("adam", "lamb", "lion", "rmsprop", "muon", "shampoo", "soap", "sophia", "novograd")
SGD_LIKE = ("sgd", "lars", "asgd", "rprop")
_OURS = tuple(f"{__name__.partition('.')[0]}.{room}." for room in ("objectives", "tuner"))
MOST_PARTS, MOST_NAME = 200, 100
"""Of the parts of a source that are told apart, and characters of the name of one."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Found = TypeVar("Found")


def optimizer_family(class_name: str | None) -> OptimizerFamily:
    """Return `sgd`, `adam` or `other` by the name of the optimizer's class.

    Example:
        >>> optimizer_family("AdamW"), optimizer_family("SGD"), optimizer_family("LBFGS")
        ('adam', 'sgd', 'other')
    """
    name = (class_name or "").lower()
    if any(word in name for word in ADAM_LIKE):
        return "adam"
    return "sgd" if any(word in name for word in SGD_LIKE) else "other"


def source_hash(*parts: Any) -> str:
    """Return a hash of functions and classes by source, or by byte code if they have none, and of values by repr."""
    return _hash(_text(part) + _held_text(part) for part in parts)


def code_hash(*parts: Any) -> str:
    """Return the same of what the source does: another comment, docstring or line break changes nothing."""
    texts = [(_text(part), _held_text(part)) for part in parts]
    return _hash((code_of(dedent(text)) or text) + held for text, held in texts)


def source_facts(*parts: Any) -> dict[str, Any]:
    """Return what `Facts` says of the code of an objective that is made of these functions, classes and values.

    What they use of the user's own code belongs to it: functions and classes, and constants with names in capitals.
    """
    parts = (*parts, *_reached(parts))
    named: list[tuple[str, str]] = []
    for part in parts:
        if callable(part):
            text = dedent(_text(part))
            found = [each for each in _parts_of(text) if each[0].endswith("()") or each[0].isidentifier()]
            named += found or [(_called(part), text)]
            named += [(name, repr(value)) for name, value in _held(part).items()]
        else:
            named.append(("its arguments", repr(part)))
    return {"source_hash": source_hash(*parts), "code_hash": code_hash(*parts), "code_parts": _grouped(named)}


def file_parts(source: bytes) -> tuple[tuple[str, str], ...]:
    """Return a hash of each function, class and variable of a file by name, to say later which was changed.

    Example:
        >>> dict(file_parts(b"x = 1")) == dict(file_parts(b"x = 2")), [name for name, _ in file_parts(b"x = 1")]
        (False, ['x'])
    """
    return _grouped(_parts_of(source))


def named_model(name: str | None) -> str | None:
    """Return what stands for the structure of a model that only its user sees; None where it has no name."""
    return None if name is None else source_hash("model", name)


def model_problems(name: str | None, optimizer: str | None) -> list[str]:
    """Return what is wrong with the name that a user gives a model, a sentence each."""
    if name is None or optimizer is not None:
        return []
    return [f"model={name!r}: expected optimizer= beside it, since the best learning rate depends on both"]


def code_of(source: str | bytes) -> str | None:
    """Return the code of a source without comments, docstrings and layout; None where it is no Python that can be read.

    Example:
        >>> code_of("x = (1)  # one") == code_of("x=1"), code_of("x = 1") == code_of("x = 2"), code_of("x =")
        (True, False, None)
    """
    return _read(source, ast.dump)


def _read(source: str | bytes, then: Callable[[ast.Module], Found]) -> Found | None:
    """Return what is made of a source without docstrings; None where it is no Python that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the user's own file; running it tells them.
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:]
        return then(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parts_of(source: str | bytes) -> list[tuple[str, str]]:
    """Return the code of each function, class and variable of a source with its name; methods on their own."""
    return _read(source, _named) or []


def _named(tree: ast.Module) -> list[tuple[str, str]]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, _FUNCTIONS)]
            found += [(f"{node.name}.{each.name}()", ast.dump(each)) for each in methods]
            node.body = [each for each in node.body if each not in methods]
        found.append((_name(node), ast.dump(node)))
    return found


def _name(node: ast.stmt) -> str:
    if isinstance(node, _FUNCTIONS):
        return f"{node.name}()"
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "its imports"
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else "lines outside of functions"


def _called(part: Any) -> str:
    name: str = getattr(part, "__qualname__", type(part).__qualname__)
    return "a lambda" if name.endswith("<lambda>") else name


def _grouped(named: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the hash of all that bears a name; nothing where that is more than anybody wants to keep."""
    texts: dict[str, list[str]] = {}
    for name, text in named:
        texts.setdefault(name[:MOST_NAME], []).append(text)
    return tuple((name, _hash(each)) for name, each in texts.items()) if len(texts) <= MOST_PARTS else ()


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _text(part: Any) -> str:
    if not callable(part):
        return repr(part)
    if isinstance(part, functools.partial):
        return _text(part.func)
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        code = getattr(part, "__code__", None)
        return _code_text(code) if code else getattr(part, "__qualname__", type(part).__qualname__)


def _held(part: Any) -> dict[str, Any]:
    """Return the plain values that a function takes from outside: from where it was made, and constants."""
    if isinstance(part, functools.partial):
        held = {**{f"argument {n}": value for n, value in enumerate(part.args, 1)}, **part.keywords}
        return {**_held(part.func), **_plain(held)}
    names = getattr(getattr(part, "__code__", None), "co_freevars", ())
    held = {
        name: function.__globals__[name]
        for function in _functions_of(part)
        for name in _names_in(function.__code__)
        if name.isupper() and name in function.__globals__
    }
    for name, cell in zip(names, getattr(part, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # What has no value yet.
            held[name] = cell.cell_contents
    return _plain(held)


def _reached(parts: Iterable[Any]) -> list[Any]:
    """Return the user's own functions and classes that these use, and that those use, each once."""
    found = [part for part in parts if callable(part)]
    n_given, known = len(found), set(map(id, found))
    for part in found:  # It grows meanwhile.
        used = [value for function in _functions_of(part) for value in _used_by(function)]
        for value in (*used, *(part.__mro__ if isinstance(part, type) else ())):
            if id(value) not in known and _is_users(value.__module__):
                known.add(id(value))
                found.append(value)
    return found[n_given:]


def _used_by(function: FunctionType) -> list[Any]:
    values = [function.__globals__.get(name) for name in _names_in(function.__code__)]
    return [value for value in values if isinstance(value, type | FunctionType)]


def _functions_of(part: Any) -> list[FunctionType]:
    """Return the user's own function, or those of a class, that a part is."""
    if isinstance(part, functools.partial):
        return _functions_of(part.func)
    own = vars(part).values() if isinstance(part, type) else [part]
    bare = [
        each.__func__
        if isinstance(each, staticmethod | classmethod | MethodType)
        else each.fget
        if isinstance(each, property)
        else each
        for each in own
    ]
    return [each for each in bare if isinstance(each, FunctionType) and _is_users(each.__module__)]


def _names_in(code: CodeType) -> list[str]:
    inner = [_names_in(item) for item in code.co_consts if isinstance(item, CodeType)]
    return list(dict.fromkeys([*code.co_names, *itertools.chain.from_iterable(inner)]))


def _is_users(module: Any) -> bool:
    """Tell whether a module is the user's own: neither installed, nor of Python, nor of bstune."""
    if not isinstance(module, str) or module.partition(".")[0] in sys.stdlib_module_names or module.startswith(_OURS):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _held_text(part: Any) -> str:
    return "".join(f"\n{name} = {value!r}" for name, value in _held(part).items())


def _code_text(code: CodeType) -> str:
    constants = (_code_text(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts)
    return f"{code.co_code!r}{code.co_names!r}{'|'.join(constants)}"
