"""What a function or class uses of its user's own code: other functions and classes, and plain values."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MOST_REACHED = 500
"""Functions and classes that are followed."""
MOST_VALUES = 10_000
"""In a container that counts as a constant, with what is in those in it; what holds more is data."""
_OURS = tuple(f"{__name__.partition('.')[0]}.{room}." for room in ("objectives", "tuner"))
_LIBRARIES = {"torch", "torchvision", "torchaudio", "timm", "transformers", "accelerate", "lightning", "ultralytics"}
"""Of others, also where they are installed from a checkout: by its place alone that looks like the user's."""
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_DEREF")
_LOADS_OF_A_MODULE = ("LOAD_ATTR", "LOAD_METHOD")


def reached(parts: Iterable[Any]) -> list[Any]:
    """Return the user's own functions and classes that these use, and that those use, each once."""
    found = [part for part in parts if callable(part)]
    n_given, known = len(found), set(map(id, found))
    for part in found:  # It grows meanwhile.
        for value in _code_in(_near(part)):
            if len(found) - n_given < MOST_REACHED and id(value) not in known and is_users(_home(value)):
                known.add(id(value))
                found.append(value)
    return found[n_given:]


def held(part: Any) -> dict[str, Any]:
    """Return the plain values that a function takes from outside: from where it was made, and constants.

    A constant has a name in capitals; it may also be a tuple, list, set or dict of plain values.
    """
    if isinstance(part, functools.partial):
        given = {**{f"argument {n}": value for n, value in enumerate(part.args, 1)}, **part.keywords}
        return {**held(part.func), **{name: value for name, value in given.items() if _is_plain(value)}}
    used = {name: value for function in functions_of(part) for name, value in used_by(function).items()}
    around = {name: value for layer in _layers(part) for name, value in cells_of(layer).items()}
    return {
        **{name: value for name, value in used.items() if name.rpartition(".")[2].isupper() and _is_plain(value)},
        **{name: value for name, value in around.items() if isinstance(value, bool | int | float | str)},
    }


def functions_of(part: Any) -> list[FunctionType]:
    """Return the user's own function, or those of a class, that a part is; those beneath a decorator too."""
    if isinstance(part, functools.partial):
        return functions_of(part.func)
    own = vars(part).values() if isinstance(part, type) else [part]
    return [each for value in own for each in _layers(value) if is_users(_home(each))]


def is_users(module: Any) -> bool:
    """Tell whether a module is the user's own: neither installed, nor of Python, nor of bstune."""
    if not isinstance(module, str) or module.startswith(_OURS):
        return False
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)


def stable_repr(value: Any) -> str:
    """Return what `repr` does, the same in each process: the order of a set is not.

    Example:
        >>> stable_repr({"b", "a"}), stable_repr((1, frozenset("ab")))
        ("{'a', 'b'}", "(1, {'a', 'b'},)")
    """
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(stable_repr, value))) + "}"
    if type(value) is dict:
        return "{" + ", ".join(f"{stable_repr(key)}: {stable_repr(its)}" for key, its in value.items()) + "}"
    if type(value) is tuple:
        return "(" + "".join(f"{stable_repr(each)}, " for each in value).rstrip(" ") + ")"
    return "[" + ", ".join(map(stable_repr, value)) + "]" if type(value) is list else repr(value)


def _near(part: Any) -> Iterator[Any]:
    """Yield all that a part uses itself."""
    if isinstance(part, functools.partial):
        yield from (part.func, *part.args, *part.keywords.values())
    yield from part.__mro__ if isinstance(part, type) else (part,)
    for function in functions_of(part):
        if not isinstance(part, type) or hasattr(function, "__wrapped__"):  # Else the text of the class has it.
            yield function
        yield from (*used_by(function).values(), *cells_of(function).values())
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def _code_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the functions and classes that these are, are made of, or are instances of."""
    for value in values:
        if isinstance(value, type):
            yield value
        elif isinstance(value, MethodType):
            yield from _code_in([value.__func__, value.__self__])
        elif isinstance(value, functools.partial):
            yield from _code_in([value.func, *value.args, *value.keywords.values()])
        else:
            yield from _layers(value)
            yield type(value)


def _layers(value: Any) -> Iterator[FunctionType]:
    """Yield the function of a method or property, and what its decorators have wrapped."""
    seen: list[Any] = []
    while not any(value is each for each in (None, *seen)) and not isinstance(value, type):
        seen.append(value)
        if isinstance(value, FunctionType):
            yield value
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, staticmethod | classmethod | MethodType):
            value = value.__func__
        elif isinstance(value, functools.cached_property):
            value = value.func
        else:
            value = inspect.getattr_static(value, "__wrapped__", None)


def _home(value: Any) -> Any:
    """Return the name of the module that a function or class was written in; a wrapper bears that of what it wraps."""
    return value.__globals__.get("__name__") if isinstance(value, FunctionType) else value.__module__


def used_by(function: FunctionType) -> dict[str, Any]:
    """Return what a function takes by name from around it; of a module of the user's, what it takes of that."""
    cells, found = cells_of(function), {}
    for code in _codes(function.__code__):
        name, value = "", None
        for does, named in _loads(code):
            around: Mapping[str, Any] = {}
            if does in _LOADS:
                around, name = cells if does == "LOAD_DEREF" else function.__globals__, named
            elif isinstance(value, ModuleType) and does in _LOADS_OF_A_MODULE and is_users(value.__name__):
                around, name = vars(value), f"{name}.{named}"
            value = around.get(named) if around else None
            if around and named in around:
                found[name] = value
    return found


def loads_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what each instruction of a function and of those within it does, and the name that it does it with."""
    for code in _codes(function.__code__):
        yield from _loads(code)


@functools.lru_cache(maxsize=4096)
def _loads(code: CodeType) -> list[tuple[str, Any]]:
    """Return what each instruction does, and the name that it does it with."""
    return [(step.opname, step.argval) for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _codes(item)


def cells_of(function: FunctionType) -> dict[str, Any]:
    """Return what a function holds from where it was made, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # What has no value yet.
            found[name] = cell.cell_contents
    return found


def _is_plain(value: Any) -> bool:
    inner = [value]
    for each in inner:  # It grows meanwhile.
        if isinstance(each, tuple | list | set | frozenset | dict) and len(inner) + len(each) <= MOST_VALUES:
            inner += (*each, *each.values()) if isinstance(each, dict) else each
        elif each is not None and not isinstance(each, bool | int | float | complex | str | bytes):
            return False
    return True
