"""What is searched: global batch sizes, learning rates, the user's extra dimensions, and the prior over them.

The batch sizes and learning rates form a finite grid (the user's lists, or powers of two by half octaves around the
centre), so a cell that was tried is recognised as such. Surrogates see a setting as a row of coordinates: octaves of
batch and of learning rate from the centre, then the extra dimensions scaled to 0..1.
"""

from __future__ import annotations

import difflib
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.errors import ArgumentError
from ..core.probe_results import ProbeResult
from ..core.results import Setting
from ..core.specs import Plan
from ..core.trials import Facts
from ..theory.scaling import ANCHOR_BATCH, DEFAULT_LEARNING_RATE, LEARNING_RATE_RANGE, SLOPE_PRIOR
from .ledger import Key, key_of

SMALLEST_BATCH = 4
RANGE_RULE = "a tuple means a range (low, high) with {} {} low <= high; a list means exactly these values"
STEPS_AT_LEAST = 100
"""A default batch size leaves this many optimizer steps in a full run."""
PLATEAU = 0.95
"""Share of the peak throughput at which it counts as reached."""
LR_STEP_OCTAVES = 0.5
"""Spacing of the default grid; a quarter octave off the optimum costs about 0.02 % of the loss (StepLaw, 0.3 % per octave squared)."""
ROUNDED = 1.005
"""The rates of the grid have three digits: one may be this factor off the rate that it stands for."""
EXTRA_SAMPLES = 24
"""Combinations of the extra dimensions that are weighed at a time."""


@dataclass(frozen=True)
class Dimension:
    """An extra dimension, beside batch size and learning rate."""

    name: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    integer: bool = False

    @property
    def ordered(self) -> bool:
        """Whether distances mean something: a range, or a list of numbers."""
        return self.choices is None or all(
            isinstance(c, (int, float)) and not isinstance(c, bool) for c in self.choices
        )

    def draw(self, u: float) -> Any:
        """Return the value at the quantile `u` in [0, 1)."""
        if self.choices is not None:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        value = (
            math.exp(math.log(self.low) + u * math.log(self.high / self.low))
            if self.log
            else self.low + u * (self.high - self.low)
        )
        if self.step:
            value = self.low + round((value - self.low) / self.step) * self.step
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(f"{value:.4g}")

    def coordinates(self, value: Any) -> list[float]:
        """Return the value scaled to 0..1, or one-hot where the order means nothing."""
        if self.choices is not None and not self.ordered:
            return [0.7 * float(value == choice) for choice in self.choices]
        if self.choices is not None:
            low, high = min(self.choices), max(self.choices)
            log = low > 0 and high / low >= 10
        else:
            low, high, log = self.low, self.high, self.log
        if high <= low:
            return [0.0]
        return [math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)]


@dataclass(frozen=True)
class Point:
    """A setting with what surrogates need of it, computed once."""

    setting: Setting
    key: Key
    coordinates: tuple[float, ...]
    number: float
    """Negative, and the same for the same setting: it tells cells apart."""


@dataclass(frozen=True)
class Space:
    """The grid of batch sizes and learning rates, the extra dimensions, and where the best is expected."""

    batches: tuple[int, ...]
    learning_rates: tuple[float, ...]
    extras: tuple[Dimension, ...]
    fixed: Mapping[str, Any]
    centre_batch: int
    centre_learning_rate: float
    slope: float
    slope_sd: float

    @property
    def anchor_batch(self) -> int:
        """The batch size at which the search starts: the one nearest to the centre."""
        return min(self.batches, key=lambda b: (abs(math.log2(b / self.centre_batch)), b))

    def centre(self, batch: int) -> float:
        """Return the learning rate expected to be best at a batch size."""
        return float(self.centre_learning_rate * (batch / self.centre_batch) ** self.slope)

    def nearest_learning_rate(self, lr: float) -> float:
        """Return the learning rate of the grid that is nearest in octaves."""
        return min(self.learning_rates, key=lambda x: (abs(math.log2(x / lr)), x))

    @cached_property
    def grid(self) -> tuple[Point, ...]:
        """All pairs of batch size and learning rate, the extras in the middle."""
        return tuple(
            self.point(self.setting(batch, lr)) for batch, lr in itertools.product(self.batches, self.learning_rates)
        )

    def default_params(self) -> dict[str, Any]:
        """Return the fixed parameters and the middle of each extra dimension."""
        return {**self.fixed, **{dimension.name: dimension.draw(0.5) for dimension in self.extras}}

    def points(self, rng: np.random.Generator, known: Sequence[Mapping[str, Any]] = ()) -> list[Point]:
        """Return the points to weigh: the grid, with extras in the middle, those that did well, and fresh draws."""
        if not self.extras:
            return list(self.grid)
        drawn = [
            {**self.fixed, **{d.name: d.draw(float(rng.random())) for d in self.extras}} for _ in range(EXTRA_SAMPLES)
        ]
        pairs = itertools.product(self.batches, self.learning_rates)
        return [
            *self.grid,
            *(self.point(self.setting(b, lr, params)) for b, lr in pairs for params in (*known, *drawn)),
        ]

    def setting(self, batch: int, lr: float, params: Mapping[str, Any] | None = None) -> Setting:
        """Return the setting with the default extras unless others are given."""
        return Setting(int(batch), float(lr), dict(self.default_params() if params is None else params))

    def point(self, setting: Setting) -> Point:
        """Return a setting with its coordinates: octaves of batch and of learning rate from the foot of the centre line, then extras."""
        row = [
            math.log2(setting.global_batch_size / self.centre_batch),
            math.log2(setting.learning_rate / self.centre_learning_rate),
        ]
        for dimension in self.extras:
            row += dimension.coordinates(setting.params[dimension.name])
        key = key_of(setting)
        return Point(setting, key, tuple(row), -2.0 - zlib.crc32(repr(key).encode()))


def make_space(
    plan: Plan,
    facts: Facts,
    probe: ProbeResult | None,
    noise_scale: float | None = None,
    rates_seen: Sequence[float] = (),
) -> Space:
    """Return the space that a plan and an objective ask for.

    Args:
        plan: What the user asked for.
        facts: What is known of the objective.
        probe: What is known of the device.
        noise_scale: Gradient noise scale, in samples: once measured, it lets in larger default batches.
        rates_seen: Learning rates that the default range is to cover besides.

    Raises:
        ArgumentError: The space asked for is wrong on its face; the message lists all that is.
    """
    problems: list[str] = []
    asked = dict(plan.space)
    batches = _batches(asked.pop("batch_size", None), facts, probe, noise_scale, problems)
    family = facts.optimizer_family
    lr = asked.pop("learning_rate", None)
    usual = LEARNING_RATE_RANGE[family]
    covered = (
        min([usual[0], *(rate / ROUNDED for rate in rates_seen)]),
        max([usual[1], *(rate * ROUNDED for rate in rates_seen)]),
    )
    low, high, listed = _learning_rate_range(lr, covered, problems)
    if facts.ignores_rate and low < high:
        problems.append(
            "optimizer(parameters, lr) has the same learning rates whatever lr is, so there are none to search: expected lr in the "
            "optimizer that it returns, as in torch.optim.SGD(parameters, lr), or one learning_rate in the space"
        )
    extras, fixed = _extras(asked, problems)
    if plan.baseline is not None:
        batch, rate = plan.baseline
        if not (isinstance(batch, int) and batch >= 1 and rate > 0):
            problems.append(f"baseline={plan.baseline!r}: expected (global batch size >= 1, learning rate > 0)")
        elif batch > (most := _most_samples(facts))[0]:
            problems.append(f"baseline={plan.baseline!r}: its batch is more than the {most[0]:g} samples of {most[1]}")
    if problems:
        raise ArgumentError("; ".join(problems) + ".")

    if plan.baseline is not None:
        centre_batch, centre = plan.baseline[0], float(plan.baseline[1])
    elif family in DEFAULT_LEARNING_RATE:
        centre_batch, centre = ANCHOR_BATCH, min(max(DEFAULT_LEARNING_RATE[family], low), high)
    else:
        centre_batch, centre = ANCHOR_BATCH, math.sqrt(math.prod(usual if lr is None else (low, high)))
    slope, slope_sd = SLOPE_PRIOR[family]
    rates = listed or _rate_grid(low, high, centre)
    if plan.baseline is not None:
        batches = tuple(sorted({*batches, plan.baseline[0]}))
        rates = tuple(sorted({*rates, centre}))
    return Space(batches, rates, extras, fixed, centre_batch, centre, slope, slope_sd)


def _rate_grid(low: float, high: float, centre: float) -> tuple[float, ...]:
    down = math.floor(math.log2(centre / low) / LR_STEP_OCTAVES + 1e-9)
    up = math.floor(math.log2(high / centre) / LR_STEP_OCTAVES + 1e-9)
    rates = [centre * 2.0 ** (k * LR_STEP_OCTAVES) for k in range(-down, up + 1)]
    return tuple(float(f"{rate:.3g}") for rate in rates)


def _default_batches(facts: Facts, probe: ProbeResult | None, noise_scale: float | None) -> tuple[int, ...]:
    highest = min(1.0 * facts.n_samples, int(facts.full_run_samples) // STEPS_AT_LEAST)
    if probe is not None and probe.throughput:
        peak = max(row.samples_per_s for row in probe.throughput)
        plateau = min(row.batch_size for row in probe.throughput if row.samples_per_s >= PLATEAU * peak)
        highest = min(highest, max(4 * max(float(plateau), noise_scale or 0.0), float(ANCHOR_BATCH)))
    if highest >= SMALLEST_BATCH:
        return _powers(SMALLEST_BATCH, int(highest))
    return _powers(
        1, max(1, min(SMALLEST_BATCH, facts.n_samples, int(facts.full_run_samples)))
    )  # So little data that 100 steps cannot be had.


def _powers(low: float, high: float) -> tuple[int, ...]:
    return tuple(2**k for k in range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1))


def _batches(
    asked: Any, facts: Facts, probe: ProbeResult | None, noise_scale: float | None, problems: list[str]
) -> tuple[int, ...]:
    kind = type(asked).__name__
    values: Sequence[Any]
    if asked is None:
        values = _default_batches(facts, probe, noise_scale)
    elif isinstance(asked, (list, tuple)) and not asked:
        problems.append("space['batch_size'] is empty: expected batch sizes")
        return ()
    elif isinstance(asked, tuple):
        if len(asked) != 2 or not all(_is_number(x) for x in asked) or not 1 <= asked[0] <= asked[1]:
            problems.append(f"space['batch_size'] = {asked!r}: {RANGE_RULE.format(1, '<=')}")
            return ()
        values = _powers(asked[0], asked[1])
        if not values:
            problems.append(f"space['batch_size'] = {asked!r}: no power of two lies in it; give the sizes as a list")
    elif isinstance(asked, list):
        values = asked
    elif kind == "CategoricalDistribution":
        values = asked.choices
    elif kind == "IntDistribution":
        values = _powers(asked.low, asked.high) if asked.log else range(asked.low, asked.high + 1, asked.step)
    else:
        values = [asked]
    wrong = [value for value in values if not _is_number(value) or value != int(value) or value < 1]
    if wrong:
        problems.append(f"space['batch_size'] holds {wrong!r}: expected whole numbers of samples, 1 or more")
        return ()
    sizes = tuple(sorted({int(value) for value in values}))
    most, whose = _most_samples(facts)
    large = [size for size in sizes if size > most]
    if large:
        problems.append(f"space['batch_size'] holds {large!r}, more than the {most:g} samples of {whose}")
    return sizes


def _most_samples(facts: Facts) -> tuple[float, str]:
    """Return what a batch may hold at most, and of what: what one beyond the data set means is for a loop of the user's own to say."""
    if facts.kind == "supervised" and facts.n_samples < facts.full_run_samples:
        return facts.n_samples, "the training data"
    return facts.full_run_samples, "a full run"


def _learning_rate_range(
    asked: Any, default: tuple[float, float], problems: list[str]
) -> tuple[float, float, tuple[float, ...] | None]:
    kind = type(asked).__name__
    if asked is None:
        return (*default, None)
    if isinstance(asked, tuple):
        if len(asked) != 2 or not all(_is_number(x) for x in asked) or not 0 < asked[0] <= asked[1]:
            problems.append(f"space['learning_rate'] = {asked!r}: {RANGE_RULE.format(0, '<')}")
            return (*default, None)
        return float(asked[0]), float(asked[1]), None
    if kind == "FloatDistribution":
        if asked.low <= 0:
            problems.append(
                f"space['learning_rate'] = {asked!r}: the learning rate is searched in octaves, so it must be above 0"
            )
            return (*default, None)
        return float(asked.low), float(asked.high), None
    values = list(asked.choices) if kind == "CategoricalDistribution" else asked if isinstance(asked, list) else [asked]
    if not values or not all(_is_number(value) and value > 0 for value in values):
        problems.append(f"space['learning_rate'] = {asked!r}: expected numbers above 0")
        return (*default, None)
    rates = tuple(sorted({float(value) for value in values}))
    return rates[0], rates[-1], rates


def _extras(asked: Mapping[str, Any], problems: list[str]) -> tuple[tuple[Dimension, ...], dict[str, Any]]:
    extras: list[Dimension] = []
    fixed: dict[str, Any] = {}
    for name, value in asked.items():
        meant = difflib.get_close_matches(name, ("batch_size", "learning_rate"), n=1, cutoff=0.8)
        if meant:
            problems.append(f"space[{name!r}]: did you mean {meant[0]!r}")
        kind = type(value).__name__
        if isinstance(value, list) or kind == "CategoricalDistribution":
            choices = tuple(value if isinstance(value, list) else value.choices)
            if not choices:
                problems.append(f"space[{name!r}] is empty: expected values")
            elif len(choices) == 1:
                fixed[name] = choices[0]
            else:
                extras.append(Dimension(name, choices))
        elif isinstance(value, tuple):
            if len(value) != 2 or not all(_is_number(x) for x in value) or not 0 < value[0] < value[1]:
                problems.append(f"space[{name!r}] = {value!r}: {RANGE_RULE.format(0, '<')}")
            else:
                whole = all(isinstance(x, (int, np.integer)) for x in value)
                extras.append(Dimension(name, None, float(value[0]), float(value[1]), log=True, integer=whole))
        elif kind in ("FloatDistribution", "IntDistribution"):
            extras.append(
                Dimension(
                    name,
                    None,
                    float(value.low),
                    float(value.high),
                    value.log,
                    value.step if not value.log else None,
                    kind == "IntDistribution",
                )
            )
        else:
            fixed[name] = value
    return tuple(extras), fixed


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )
