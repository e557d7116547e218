"""With what the instances that an objective is made of were made, such as `FocalLoss(2.0)`.

Of an instance nothing but its state is left, so only what bears the name of an argument of its class, is a plain value
and no default counts, and no method changes: a counter or the place of a log is another in each run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from .user_code import cells_of, functions_of, loads_of, stable_repr

MOST_TEXT = 40
"""Characters of a text that counts: a longer one is no choice, but a place, a title or data."""
DEEPEST = 3
"""An instance that was made with instances, and so on."""
_NO_INSTANCES = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, functools.partial)


def arguments_of(parts: Iterable[Any]) -> list[tuple[str, str]]:
    """Return the arguments of the instances that these are, hold or use as constants: a name and the value of each.

    Example:
        >>> import torch
        >>> arguments_of([torch.nn.CrossEntropyLoss(label_smoothing=0.1)]), arguments_of([torch.nn.CrossEntropyLoss()])
        ([('CrossEntropyLoss(label_smoothing=...)', '0.1')], [])
    """
    seen: dict[int, Any] = {}
    for part in parts:
        for value in _instances(part):
            seen.setdefault(id(value), value)
    return [named for value in seen.values() for named in _arguments(value, DEEPEST)]


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


def _arguments(value: Any, deepest: int) -> Iterator[tuple[str, str]]:
    kind, held = type(value), getattr(value, "__dict__", None)
    if not isinstance(held, dict) or isinstance(value, _NO_INSTANCES) or not deepest:
        return
    try:
        asked = inspect.signature(kind).parameters
    except (TypeError, ValueError):  # Some that are written in C have none.
        return
    changing = _changing(kind)
    held = {**held, **(held.get("_modules") or {})}
    for name, parameter in asked.items():
        its = next(
            (held[each] for each in (name, f"_{name}") if each in held and each not in changing), parameter.default
        )
        if _counts(its) and not _is_default(its, parameter.default):
            yield f"{kind.__qualname__}({name}=...)", stable_repr(its)
        elif its is not value:
            yield from _arguments(its, deepest - 1)


def _changing(kind: type) -> set[str]:
    """Return the attributes that methods of a class set after it was made."""
    methods = [each for base in kind.__mro__ for each in functions_of(base) if each.__name__ != "__init__"]
    return {name for method in methods for does, name in loads_of(method) if does == "STORE_ATTR"}


def _counts(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= MOST_TEXT and all(map(_counts, value))
    if isinstance(value, str):
        return len(value) <= MOST_TEXT and not {"/", "\\"} & set(value)
    return value is None or isinstance(value, bool | int | float)


def _is_default(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default
