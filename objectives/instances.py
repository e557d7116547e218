"""With what the instances that an objective is made of were made, such as `FocalLoss(2.0)`.

Of an instance nothing but its state is left, so only what bears the name of an argument of its class, is a plain value
and no default counts, and is not changed later: a counter or the place of a log is another in each run.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from .user_code import cells_of, functions_of, is_users, loads_of, stable_repr, used_by

MOST_TEXT = 40
"""Characters of a text that counts: a longer one is no choice, but a place, a title or data."""
DEEPEST = 3
"""An instance that was made with instances, and so on."""
_NO_INSTANCES = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, functools.partial)
_MAKING = {"__init__", "__post_init__", "__setstate__"}
"""Methods that run while an instance is made: what they set is what it was made with."""


def arguments_of(parts: Iterable[Any]) -> list[tuple[str, str]]:
    """Return the arguments of the instances that these are, hold or use as constants: a name and the value of each.

    Example:
        >>> import torch
        >>> arguments_of([torch.nn.CrossEntropyLoss(label_smoothing=0.1)]), arguments_of([torch.nn.CrossEntropyLoss()])
        ([('CrossEntropyLoss(label_smoothing=...)', '0.1')], [])
    """
    parts = list(parts)
    seen: dict[int, Any] = {}
    for part in parts:
        for value in _instances(part):
            seen.setdefault(id(value), value)
    changed = _set_by(part for part in parts if isinstance(part, FunctionType) and part.__name__ not in _MAKING)
    return [named for value in seen.values() for named in _arguments(value, changed, DEEPEST)]


def _instances(part: Any) -> Iterator[Any]:
    """Yield what may be an instance: a part itself, what it is bound to or filled with, and what its functions hold."""
    if isinstance(part, MethodType):
        yield from _instances(part.__self__)
    elif isinstance(part, functools.partial):
        for each in (part.func, *part.args, *part.keywords.values()):
            yield from _instances(each)
    elif not isinstance(part, _NO_INSTANCES):
        yield part
    for function in functions_of(part):
        yield from (value for value in cells_of(function).values() if not isinstance(value, _NO_INSTANCES))
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from (its for name, its in used_by(function).items() if name.rpartition(".")[2].isupper() and _tells(its))


def _tells(constant: Any) -> bool:
    """Tell whether arguments of a constant are the user's choice: a pool of threads has those of the machine."""
    torch_nn = sys.modules.get("torch.nn")
    return is_users(type(constant).__module__) or (torch_nn is not None and isinstance(constant, torch_nn.Module))


def _arguments(value: Any, changed: Collection[str], deepest: int) -> Iterator[tuple[str, str]]:
    kind, held = type(value), getattr(value, "__dict__", None)
    if not isinstance(held, dict) or isinstance(value, _NO_INSTANCES) or not deepest:
        return
    try:
        asked = inspect.signature(kind).parameters
    except (TypeError, ValueError):  # Some that are written in C have none.
        return
    modules = held.get("_modules")
    if isinstance(modules, Mapping):  # Of torch: each is an attribute by its name.
        held = {**held, **modules}
    kept = held.keys() - _set_by(_later(kind)) - set(changed)
    for name, parameter in asked.items():
        its = next((held[each] for each in (name, f"_{name}") if each in kept), parameter.default)
        if _counts(its) and not _is_default(its, parameter.default):
            yield f"{kind.__qualname__}({name}=...)", stable_repr(its)
        elif its is not value:
            yield from _arguments(its, changed, deepest - 1)


def _set_by(functions: Iterable[FunctionType]) -> set[str]:
    """Return the names of the attributes that these set."""
    return {name for function in functions for does, name in loads_of(function) if does == "STORE_ATTR"}


def _later(kind: type) -> list[FunctionType]:
    """Return the methods of a class that run after an instance was made: not those that only its making calls."""
    methods = [each for base in kind.__mro__ for each in functions_of(base)]
    making = _called([each for each in methods if each.__name__ in _MAKING], methods)
    return _called([each for each in methods if each not in making], methods)


def _called(first: list[FunctionType], methods: Iterable[FunctionType]) -> list[FunctionType]:
    """Return these methods and those of a class that they call, by name, and that those call."""
    found = list(first)
    for each in found:  # It grows meanwhile.
        names = {name for does, name in loads_of(each) if does.startswith("LOAD_") and isinstance(name, str)}
        found += [one for one in methods if one.__name__ in names and one not in found]
    return found


def _counts(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= MOST_TEXT and all(map(_counts, value))
    if isinstance(value, str):
        return len(value) <= MOST_TEXT and not {"/", "\\"} & set(value)
    return value is None or isinstance(value, bool | int | float)


def _is_default(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default
