"""Which parameter of an Optuna study is the batch size, which the learning rate, and what a step is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import Checks
from ..core.dimension import Dimension
from ..core.trials import OptimizerFamily

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Steps = Literal["optimizer", "samples", "epochs"]

EPOCH = 1 << 30
"""Samples that an epoch counts as: equal epochs are equal samples, however many those are."""
MOST_SIZES = 16
"""Batch sizes that are considered of a longer range."""
RATE_RANGE = 1e5
"""A learning rate that is drawn from 0 is considered from so many times below its highest."""
BATCH_WORDS = frozenset({"batch", "bs", "batchsize", "bsz"})
RATE_WORDS = frozenset({"lr", "learning_rate", "learning", "eta"})


@dataclass(frozen=True)
class Meaning:
    """What the parameters and the steps of a study mean.

    Attributes:
        batch: Name of the parameter that holds the batch size; or the size itself, where the study does not vary it.
        lr: Name of the parameter that holds the learning rate.
        steps: What `trial.report` counts.
        to_batch: Global batch size of a value of the parameter; None: the value itself.
        family: Of the optimizer, which says what learning rates are usual.
    """

    batch: str | int
    lr: str
    steps: Steps = "optimizer"
    to_batch: Callable[[Any], int] | None = None
    family: OptimizerFamily = "other"

    def __post_init__(self) -> None:
        """Refuse what is wrong on its face.

        Raises:
            ArgumentError: One or more arguments are; all are listed.
        """
        checks = Checks()
        if not isinstance(self.batch, str):
            checks.integer("batch", self.batch, 1)
        elif not self.batch:
            checks.wrong("batch='': expected the name of the parameter that holds the batch size, or a batch size.")
        if not isinstance(self.lr, str) or not self.lr or self.lr == self.batch:
            checks.wrong(f"lr={self.lr!r}: expected the name of the parameter that holds the learning rate.")
        checks.choice("steps", self.steps, ("optimizer", "samples", "epochs"))
        checks.choice("optimizer", self.family, ("sgd", "adam", "other"))
        if self.to_batch is not None and not callable(self.to_batch):
            checks.wrong(f"to_batch={self.to_batch!r}: expected a function of the parameter's value.")
        checks.done()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that a study must have."""
        return (self.lr,) if isinstance(self.batch, int) else (self.batch, self.lr)

    def did_you_mean(self, names: Iterable[str], who: str) -> str:
        """Return a question that names parameters of a study which may be the two; what to do where there are none.

        Args:
            names: Of the study's parameters.
            who: Whose arguments they are: `Sampler` or `Pruner`.

        Example:
            >>> Meaning("batch_size", "lr").did_you_mean(["bs", "learning_rate", "depth"], "Sampler")
            "Did you mean Sampler(batch='bs', lr='learning_rate')?"
        """
        names = list(names)
        said = {}
        for argument, own, words in (("batch", self.batch, BATCH_WORDS), ("lr", self.lr, RATE_WORDS)):
            alike = [name for name in names if words & {name.lower(), *re.split("[^a-z]+", name.lower())}]
            if own not in names and isinstance(own, str) and alike and (argument == "batch" or who == "Sampler"):
                said[argument] = alike[0]
        if not said:
            return f"Name yours: {who}(batch=...{', lr=...' if who == 'Sampler' else ''})."
        return f"Did you mean {who}({', '.join(f'{argument}={name!r}' for argument, name in said.items())})?"

    def batch_of(self, params: Mapping[str, Any]) -> int | None:
        """Return the global batch size of a trial; None where it has none."""
        return self.batch if isinstance(self.batch, int) else self._size(params.get(self.batch))

    def _size(self, value: Any) -> int | None:
        """Return the global batch size of a value of the parameter; None where it is none."""
        if value is None:
            return None
        size = value if self.to_batch is None else self.to_batch(value)
        whole = isinstance(size, Real) and not isinstance(size, bool) and float(size).is_integer()
        return int(size) if whole and size >= 1 else None

    def lr_of(self, params: Mapping[str, Any]) -> float | None:
        """Return the learning rate of a trial; None where it has none that can be."""
        rate = params.get(self.lr)
        if not isinstance(rate, Real) or isinstance(rate, bool):
            return None
        return float(rate) if 0 < float(rate) < math.inf else None

    def sizes(self, distribution: BaseDistribution | None) -> dict[int, Any]:
        """Return the batch sizes that a distribution allows, each with its value; empty where there are none."""
        if isinstance(self.batch, int):
            return {self.batch: self.batch}
        found = {self._size(value): value for value in _whole_numbers(distribution)}
        return {} if None in found else {size: found[size] for size in sorted(size for size in found if size)}

    def rates(self, distribution: BaseDistribution | None) -> Dimension | None:
        """Return the learning rates that a distribution allows; None where it holds something else."""
        if distribution is None:
            return None
        given = Dimension.of(distribution)
        if given.kind == "list":
            rates = [self.lr_of({self.lr: value}) for value in given.values]
            return None if None in rates else Dimension.of(rates)
        if given.integer or given.high <= 0 or given.low < 0:
            return None
        if given.step:
            steps = round((given.high - given.low) / given.step)
            rates = [given.low + k * given.step for k in range(steps + 1) if given.low + k * given.step > 0]
            return Dimension.of(_spread(rates)) if rates else None
        low = max(float(given.low), given.high / RATE_RANGE)
        return Dimension.of((low, float(given.high))) if low < given.high else Dimension.of(low)

    def curve(self, trial: FrozenTrial, batch: int, first: int) -> list[tuple[int, float]]:
        """Return what a trial has reported, as (samples, value), ascending.

        Args:
            trial: The trial.
            batch: Its global batch size.
            first: The first step of the study's trials: who counts epochs from 0 has trained one when that is reported.
        """
        unit, before = {"optimizer": (batch, 0), "samples": (1, 0), "epochs": (EPOCH, 1 - first)}[self.steps]
        reported = sorted(trial.intermediate_values.items())
        return [(unit * (step + before), value) for step, value in reported if step + before > 0]


def _whole_numbers(distribution: BaseDistribution | None) -> list[Any]:
    """Return the values of a parameter that may hold a batch size: choices, or of a long range about equal octaves."""
    if distribution is None:
        return []
    given = Dimension.of(distribution)
    if given.kind == "list":
        return list(given.values)
    if not given.integer:
        return []
    low, high, step = int(given.low), int(given.high), int(given.step or 1)
    if (high - low) // step < MOST_SIZES:
        return list(range(low, high + 1, step))
    powers = [2**k for k in range(high.bit_length()) if low <= 2**k <= high and (2**k - low) % step == 0]
    return powers if len(powers) > 2 else _spread(list(range(low, high + 1, step)))


def _spread(values: list[Any]) -> list[Any]:
    """Return some of many ascending values, about equal octaves apart."""
    if len(values) <= MOST_SIZES:
        return values
    positive = [value for value in values if value > 0]
    octaves = math.log2(positive[-1] / positive[0])
    wanted = [positive[0] * 2 ** (octaves * k / (MOST_SIZES - 1)) for k in range(MOST_SIZES)]
    return sorted({min(positive, key=lambda value: abs(value - each)) for each in wanted})
