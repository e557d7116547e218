"""The base of all results: frozen dataclasses that are written as JSON and read back equal.

A document may come from anywhere. What is read has numbers that can be used, or one error names the field that
does not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from .errors import BstuneError

if TYPE_CHECKING:
    from typing_extensions import Self

DEEPEST = 20
"""Objects and lists within each other, in a value of any type."""


@dataclass(frozen=True)
class Range:
    """The least and the most that a number of a document may be."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        """Return the range in words that follow `a number`."""
        return f" of at least {self.least:g}" if self.most == math.inf else f" from {self.least:g} to {self.most:g}"


Count = Annotated[int, Range(0, 2**53)]
Size = Annotated[int, Range(1, 2**53)]
Bytes = Annotated[int, Range(0, 2**60)]
Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(1e-30, 1e30)]
Seconds = Annotated[float, Range(0, 1e9)]
StepSeconds = Annotated[float, Range(1e-12, 1e9)]
Spread = Annotated[float, Range(0, 100)]
_INTEGER = Range(-(2**63), 2**63 - 1)
_NUMBER = Range(-math.inf)


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that can be written as JSON and read back equal."""

    def __post_init__(self) -> None:
        """Replace what JSON cannot express: numbers that are not finite become None, lists become tuples."""
        # A search makes thousands of settings for each choice, and a record of a trial at each report.
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if type(value) not in _PLAIN and (finite := _finite(value)) is not value:
                object.__setattr__(self, name, finite)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers; `json.dumps` takes them as they are."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as one JSON document."""
        return json_text(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote; keys that a newer version added are ignored.

        Raises:
            BstuneError: A key is missing or a value is not of the field's type.
        """
        if not isinstance(data, Mapping):
            raise BstuneError(f"Not a {cls.__name__}: expected a JSON object, found {_shown(data)}.")
        hints = _hints(cls)
        values = {}
        for item in dataclasses.fields(cls):
            if item.name in data:
                values[item.name] = _typed(hints[item.name], data[item.name], f"{cls.__name__}.{item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise BstuneError(f"Not a {cls.__name__}: the key {item.name!r} is missing.")
        return cls(**values)


def json_text(data: Any, *, indent: int | None = 2) -> str:
    """Return one JSON document in printable ASCII: `json.dumps` leaves one control character as it is."""
    return json.dumps(data, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


_HINTS: dict[Any, dict[str, Any]] = {}
_PLAIN = frozenset({int, str, bool, type(None)})


def _hints(record: type[Any]) -> dict[str, Any]:
    """Return the types of a record's fields, worked out once: that takes half a millisecond."""
    return _HINTS.get(record) or _HINTS.setdefault(record, typing.get_type_hints(record, include_extras=True))


def _finite(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return tuple([item if type(item) in _PLAIN else _finite(item) for item in value])
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


# --- reading ------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    if isinstance(value, (str, int, float, type(None))):
        try:
            text = repr(value[:80] if isinstance(value, str) else value)
        except ValueError:  # Python writes no integer of many thousand digits.
            text = "a number of thousands of digits"
        return text if len(text) <= 80 else f"{text[:76]} ..."
    return f"a value of type {type(value).__name__}"


def _wrong(where: str, expected: str, value: Any) -> BstuneError:
    return BstuneError(f"{where}: expected {expected}, found {_shown(value)}.")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return the value in the field's type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        # What JSON cannot express was written as null.
        if type(value) is float and not math.isfinite(value) and type(None) in inner:
            return None
        return _typed(next(option for option in inner if option is not type(None)), value, where)
    if origin is Annotated:
        return _number(inner[0], value, where, inner[1])
    if origin is tuple:
        return _items(inner, value, where)
    if origin is dict:
        return _object(inner[1], value, where)
    if origin is Literal:
        if value not in inner:
            raise _wrong(where, f"one of {', '.join(map(repr, inner))}", value)
        return value
    if hint is Any:
        return _json(value, where)
    if issubclass(hint, Record):
        return hint.from_dict(value)
    if hint in (int, float):
        return _number(hint, value, where, _INTEGER if hint is int else _NUMBER)
    if type(value) is not hint:
        raise _wrong(where, {str: "a text", bool: "true or false"}.get(hint, hint.__name__), value)
    return value


def _number(kind: type[int] | type[float], value: Any, where: str, within: Range) -> int | float:
    expected = f"{'a whole number' if kind is int else 'a number'}{'' if within is _NUMBER else within}"
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _wrong(where, expected, value)
    try:
        number = kind(value)
    except OverflowError:  # A whole number too large for a float.
        raise _wrong(where, expected, value) from None
    if not within.least <= number <= within.most or number in (math.inf, -math.inf):  # NaN is within no range.
        raise _wrong(where, expected, value)
    return number


def _items(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if inner[-1] is Ellipsis:
        return tuple(_typed(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(inner) != len(value):
        raise BstuneError(f"{where}: expected {len(inner)} values, found {len(value)}.")
    return tuple(_typed(part, item, where) for part, item in zip(inner, value, strict=True))


def _object(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    for key in value:
        if type(key) is not str:
            raise _wrong(where, "keys that are texts", key)
    return {key: _typed(hint, item, f"{where}[{_shown(key)}]") for key, item in value.items()}


def _json(value: Any, where: str, depth: int = 0) -> Any:
    """Return a value of any type, as long as it can be written as JSON and read back."""
    if depth > DEEPEST:
        raise BstuneError(f"{where}: expected at most {DEEPEST} lists and objects within each other.")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return _number(int, int(value), where, _INTEGER)
    if isinstance(value, (list, tuple)):
        return tuple(_json(item, where, depth + 1) for item in value)
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise BstuneError(f"{where}: expected an object whose keys are texts.")
        return {key: _json(item, where, depth + 1) for key, item in value.items()}
    raise _wrong(where, "what JSON can say", value)
