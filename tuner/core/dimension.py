"""One dimension of what is searched, in the one shape that all of bstune works with."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal


@dataclass(frozen=True)
class Dimension:
    """One dimension of the space, read from what the user gave for it.

    `core.arguments` checks its values; `check_search` is called with what users give.
    """

    kind: Literal["fixed", "list", "range"]
    raw: Any
    """As the user gave it: a scalar, a list, a tuple or an Optuna distribution. Studies store this."""
    values: tuple[Any, ...] = ()
    """The one value of `fixed`, those of a `list`, none of a `range`."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    """From `low`, where only some values of the range are meant."""
    integer: bool = False
    """Between the ends lie whole numbers only."""

    @classmethod
    def of(cls, raw: Any) -> Dimension:
        """Read a dimension as the user gave it: a scalar, a list, (low, high) or an Optuna distribution.

        A scalar fixes it, a list means exactly these, and (low, high) is a log range.

        Example:
            >>> Dimension.of((16, 64)).integer, Dimension.of([0.1, 0.2]).values
            (True, (0.1, 0.2))
        """
        if isinstance(raw, list):
            return cls("list", raw, tuple(raw))
        if isinstance(raw, tuple):
            low, high = raw
            return cls("range", raw, (), low, high, log=True, integer=all(isinstance(end, Integral) for end in raw))
        family = distribution(raw)
        if family is None:
            return cls("fixed", raw, (raw,))
        if family == "CategoricalDistribution":
            return cls("list", raw, tuple(raw.choices))
        step = None if raw.log else raw.step
        return cls("range", raw, (), raw.low, raw.high, raw.log, step, integer=family == "IntDistribution")


def distribution(value: Any) -> str | None:
    """Return which of Optuna's distributions a value is, without importing Optuna; None where it is none."""
    families = ("FloatDistribution", "IntDistribution", "CategoricalDistribution")
    bases = {base.__name__ for base in type(value).__mro__ if base.__module__ == "optuna.distributions"}
    return next((name for name in families if name in bases), None)
