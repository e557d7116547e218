"""Messages between the host and a worker as JSON, and back into checked dataclasses. No pickle: reading one runs code.

A message is an object whose `type` is the name of a dataclass from a closed list, and whose other keys are its fields.
Numbers that are not finite are written as Python's JSON writes them; arrays, which only a trace has, as base64 beside
their type.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ..core.plain_text import of_type, one_line
from . import messages
from .wire import MalformedError

ARRAY_TYPES = ("int8", "int16", "int32", "int64")
MOST_TEXT = 1 << 18
"""Characters of one text in a message."""
MOST_SAID = 200
"""Most characters of an error about a message that cannot be read: it may contain anything."""


def encode(message: Any) -> bytes:
    """Return a message as it travels.

    Raises:
        TypeError: Something in it is no plain data.
    """
    return json.dumps(_plain(message), separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value):
        named = {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"type": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()  # NumPy's own numbers.
    if getattr(value, "ndim", None) == 1 and str(value.dtype) in ARRAY_TYPES:
        return {"dtype": str(value.dtype), "data": base64.b64encode(value.tobytes()).decode()}
    raise TypeError(
        f"{one_line(repr(value))[:MOST_SAID]} cannot be sent: expected numbers, text, and lists and mappings of them"
    )


def decode(body: bytes, *allowed: type[Any]) -> Any:
    """Return the message in `body`, which must be of one of the allowed types in every part.

    Raises:
        MalformedError: It is not.
    """
    try:
        data = json.loads(body.decode("ascii"))
    except Exception:  # What a parser says of bytes that anybody may have written is of no use.
        raise MalformedError(f"sent bstune something that is not a message: {_said(repr(bytes(body[:40])))}") from None
    kind = next((kind for kind in allowed if isinstance(data, dict) and data.get("type") == kind.__name__), None)
    if kind is None:
        found = f"of type {data.get('type')!r}" if isinstance(data, dict) else f"that is {of_type(data)}"
        raise MalformedError(f"sent bstune a message {_said(found)}, which it was not asked for")
    try:
        return _checked(kind, data, kind.__name__)
    except (
        Exception
    ) as error:  # From text that anybody may have written anything may come, such as a number that is too large.
        raise MalformedError(f"sent bstune a message that cannot be read: {_said(str(error))}") from None


def _said(text: str) -> str:
    return one_line(text[: 10 * MOST_SAID])[:MOST_SAID].rstrip(".")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, worked out once: that takes half a millisecond."""
    names: dict[str, Any] = {}
    if kind is messages.Measured:
        from ..memory.trace import Trace  # Imports NumPy.

        names["Trace"] = Trace
    return typing.get_type_hints(kind, localns=names)


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Return a value of the type that a field has, or raise."""
    if type(value) is hint and hint is not str:
        return value
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        options = [option for option in inner if option is not type(None)]
        named = value.get("type") if isinstance(value, dict) else None
        return _checked(
            next((option for option in options if getattr(option, "__name__", None) == named), options[0]), value, where
        )
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    if origin is tuple and isinstance(value, list) and (inner[-1] is Ellipsis or len(inner) == len(value)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _checked(kind, item, f"{where}[{index}]")
            for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {
            _checked(str, key, where): _checked(inner[1], item, f"{where}[{key[:40]!r}]") for key, item in value.items()
        }
    if getattr(origin, "__name__", "") == "ndarray":
        return _array(typing.get_args(inner[1])[0], value, where)
    return _plain_checked(hint, value, where)


def _plain_checked(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise MalformedError(f"{where}: expected at most {MOST_TEXT:,} characters, found {len(value):,}")
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is hint or (typing.get_origin(hint) is Literal and value in typing.get_args(hint)):
        return value
    raise MalformedError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    names = {item.name for item in dataclasses.fields(kind)}
    if not isinstance(value, dict) or value.get("type") != kind.__name__ or value.keys() - {"type"} != names:
        raise MalformedError(f"{where}: expected type, {', '.join(sorted(names))}")
    hints = _hints(kind)
    return kind(**{name: _checked(hints[name], value[name], f"{where}.{name}") for name in names})


def _array(kind: type[Any], value: Any, where: str) -> Any:
    import numpy

    if not isinstance(value, dict) or value.keys() != {"dtype", "data"} or value["dtype"] != kind.__name__:
        raise MalformedError(f"{where}: expected an array of {kind.__name__}")
    return numpy.frombuffer(base64.b64decode(value["data"], validate=True), dtype=kind).copy()
