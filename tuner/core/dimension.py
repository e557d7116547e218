"""One dimension of what is searched, in the one shape that all of bstune works with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal


@dataclass(frozen=True, init=False, repr=False)
class When:
    """Values of a dimension that is searched only where other dimensions have certain values.

    Where they have not, a trial has no such parameter. The others are dimensions of the same space with a list of
    values; with several conditions all must hold.

    Example:
        >>> When(optimizer="sgd", values=(0.5, 0.99))
        When(optimizer='sgd', values=(0.5, 0.99))
        >>> When(optimizer=["sgd", "rmsprop"], values=[0.0, 0.9]).conditions
        {'optimizer': ('sgd', 'rmsprop')}
    """

    values: Any
    """A scalar, a list, (low, high) or an Optuna distribution, as for any dimension."""
    conditions: Mapping[str, tuple[Any, ...]]
    """By name of another dimension, the values of which it must have one."""

    def __init__(self, *, values: Any, **conditions: Any) -> None:
        """Take the values, and by the name of another dimension the value (or list of values) that it must have."""
        listed = {name: tuple(v) if isinstance(v, (list, tuple)) else (v,) for name, v in conditions.items()}
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "conditions", listed)

    def __repr__(self) -> str:
        """Return what would make it."""
        shown = {name: v[0] if len(v) == 1 else list(v) for name, v in self.conditions.items()}
        return f"When({', '.join(f'{name}={value!r}' for name, value in {**shown, 'values': self.values}.items())})"


@dataclass(frozen=True)
class Dimension:
    """One dimension of the space, read from what the user gave for it.

    `core.arguments` checks its values; `check_search` is called with what users give.
    """

    kind: Literal["fixed", "list", "range"]
    raw: Any
    """As the user gave it: a scalar, a list, a tuple, an Optuna distribution or a `When`. Studies store this."""
    values: tuple[Any, ...] = ()
    """The one value of `fixed`, those of a `list`, none of a `range`."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    """From `low`, where only some values of the range are meant."""
    integer: bool = False
    """Between the ends lie whole numbers only."""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Names of other dimensions, each with the values of which it must have one for this dimension to be there."""

    def allows(self, value: float) -> bool:
        """Return whether a number is one of its values.

        Example:
            >>> Dimension.of((16, 64)).allows(48), Dimension.of([16, 64]).allows(48), Dimension.of(16).allows(16)
            (True, False, True)
        """
        return self.low <= value <= self.high if self.kind == "range" else value in self.values

    @classmethod
    def of(cls, raw: Any) -> Dimension:
        """Read a dimension as the user gave it: a scalar, a list, (low, high) or an Optuna distribution.

        A scalar fixes it, a list means exactly these, and (low, high) is a log range.

        Example:
            >>> Dimension.of((16, 64)).integer, Dimension.of([0.1, 0.2]).values
            (True, (0.1, 0.2))
        """
        if isinstance(raw, When):
            return cls.of(raw.values).only(raw.conditions)
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

    @property
    def given(self) -> Any:
        """What the user gave for its values, without the condition."""
        return self.raw.values if isinstance(self.raw, When) else self.raw

    def only(self, conditions: Mapping[str, tuple[Any, ...]]) -> Dimension:
        """Return the dimension under conditions."""
        return replace(self, raw=When(values=self.raw, **conditions), when=tuple(conditions.items()))

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Tell whether it is there beside these values of other dimensions.

        Example:
            >>> momentum = Dimension.of(When(optimizer="sgd", values=(0.5, 0.99)))
            >>> momentum.holds({"optimizer": "sgd"}), momentum.holds({"optimizer": "adam"}), momentum.holds({})
            (True, False, False)
        """
        return all(name in params and params[name] in allowed for name, allowed in self.when)

    def at(self, u: float) -> Any:
        """Return the value at the quantile `u` in [0, 1).

        Example:
            >>> Dimension.of((16, 64)).at(0.5), Dimension.of(["a", "b"]).at(0.0), Dimension.of((1e-4, 1e-2)).at(0.5)
            (32, 'a', 0.001)
        """
        choices, low, high = self.values, self.low, self.high
        if choices:
            return choices[min(int(u * len(choices)), len(choices) - 1)]
        value = math.exp(math.log(low) + u * math.log(high / low)) if self.log else low + u * (high - low)
        if self.step:
            value = low + round((value - low) / self.step) * self.step
        elif not self.integer:
            value = float(f"{value:.4g}")
        value = min(max(value, low), high)
        return round(value) if self.integer else float(value)


def params_of(
    dimensions: Mapping[str, Dimension],
    value: Callable[[str, Dimension], Any],
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the fixed parameters and a value of each dimension that is there; those with a condition come last."""
    params = dict(fixed or {})
    for name, dimension in sorted(dimensions.items(), key=lambda item: bool(item[1].when)):
        if dimension.holds(params):
            params[name] = value(name, dimension)
    return params


def distribution(value: Any) -> str | None:
    """Return which of Optuna's distributions a value is, without importing Optuna; None where it is none."""
    families = ("FloatDistribution", "IntDistribution", "CategoricalDistribution")
    bases = {base.__name__ for base in type(value).__mro__ if base.__module__ == "optuna.distributions"}
    return next((name for name in families if name in bases), None)
