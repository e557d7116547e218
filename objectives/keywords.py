"""What the user's classes and functions can be called with, by their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def keywords_for(makers: Sequence[Callable[..., Any]], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return which keywords each of several classes or functions takes.

    Each takes what it names; what none names goes to the first that takes any.
    """
    found: list[dict[str, Any]] = []
    takes_any = []
    for make in makers:
        try:
            signature = list(inspect.signature(make).parameters.values())
        except ValueError:  # Some that are written in C have none.
            signature = []
        names = {one.name for one in signature if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        found.append({name: value for name, value in params.items() if name in names})
        takes_any.append(any(one.kind is one.VAR_KEYWORD for one in signature))
    if True in takes_any:
        found[takes_any.index(True)] |= {
            name: value for name, value in params.items() if not any(name in each for each in found)
        }
    return found


def takes_two(make: Any) -> bool:
    """Tell whether something can be called with two positional arguments, as far as its signature says."""
    try:
        inspect.signature(make).bind(None, None)
    except ValueError:  # Some that are written in C have none.
        return True
    except TypeError:
        return False
    return True
