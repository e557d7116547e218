"""What is searched: global batch sizes, learning rates, the user's extra dimensions, and the prior over them.

The batch sizes and learning rates form a finite grid (the user's lists, or powers of two by half octaves around the
centre), so a cell that was tried is recognised as such. Surrogates see a setting as a row of coordinates: octaves of
batch and of learning rate from the centre, then the extra dimensions scaled to 0..1.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.dimension import Dimension, params_of
from ..core.errors import ArgumentError
from ..core.probe_results import ProbeResult
from ..core.results import Setting
from ..core.specs import STEPS_AT_LEAST, Learned, Plan, SizesEnd
from ..core.trials import Facts
from ..theory.scaling import ANCHOR_BATCH, DEFAULT_LEARNING_RATE, LEARNING_RATE_RANGE, SLOPE_PRIOR
from .ledger import Key, key_of_params

SMALLEST_BATCH = 4
PLATEAU = 0.95
"""Share of the peak throughput at which it counts as reached."""
LR_STEP_OCTAVES = 0.5
"""Spacing of the default grid; a quarter octave off costs about 0.02 % of the loss (StepLaw: 0.3 % at an octave)."""
AROUND = 16
"""The default learning rates reach so far on both sides of the user's present one."""
ROUNDED = 1.005
"""The rates of the grid have three digits: one may be this factor off the rate that it stands for."""
CENTRE_SD, LEARNED_SD = 3.0, 1.0
"""Octaves that the best rate is off the centre: of what is assumed, and of what was learned on other data."""
MOST_LISTED = 6
"""Of more batch sizes than this an error names the first and the last."""
EXTRA_SAMPLES = 24
"""Combinations of the extra dimensions that are weighed at a time."""


@dataclass(frozen=True)
class Extra:
    """An extra dimension, beside batch size and learning rate."""

    name: str
    dimension: Dimension

    @cached_property
    def ordered(self) -> bool:
        """Whether distances mean something: a range, or a list of numbers."""
        return all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in self.dimension.values)

    def coordinates(self, value: Any) -> list[float]:
        """Return the value scaled to 0..1, or one-hot where the order means nothing."""
        choices = self.dimension.values
        if not self.ordered:
            return [0.7 * float(value == choice) for choice in choices]
        if choices:
            low, high = min(choices), max(choices)
            log = low > 0 and high / low >= 10
        else:
            low, high, log = self.dimension.low, self.dimension.high, self.dimension.log
        if high <= low:
            return [0.0]
        value = min(max(value, low), high)  # A trial that the user adds may lie outside.
        return [math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)]

    @cached_property
    def centre(self) -> list[float]:
        """The coordinates of a setting that has no such parameter: the middle, from which nothing is far."""
        values = self.dimension.values or (self.dimension.at(0.5),)
        return [sum(column) / len(values) for column in zip(*map(self.coordinates, values), strict=True)]


@dataclass(frozen=True)
class Point:
    """A setting with what surrogates need of it, computed once."""

    batch: int
    learning_rate: float
    params: Mapping[str, Any]
    key: Key
    coordinates: tuple[float, ...]
    number: float
    """Negative, and the same for the same setting: it tells cells apart."""

    @cached_property
    def setting(self) -> Setting:
        """The setting; made when it is asked for, since few of thousands of points ever are."""
        return Setting(self.batch, self.learning_rate, dict(self.params))


@dataclass(frozen=True)
class Space:
    """The grid of batch sizes and learning rates, the extra dimensions, and where the best is expected."""

    batches: tuple[int, ...]
    learning_rates: tuple[float, ...]
    extras: tuple[Extra, ...]
    fixed: Mapping[str, Any]
    centre_batch: int
    centre_learning_rate: float
    slope: float
    slope_sd: float
    centre_sd: float = CENTRE_SD
    """Octaves of learning rate by which the best may lie off the centre line: one standard deviation."""

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
        return self.params(lambda: 0.5)

    def params(self, quantile: Callable[[], float]) -> dict[str, Any]:
        """Return the fixed parameters and a value of each extra dimension that is there, at a quantile of its own."""
        extras = {extra.name: extra.dimension for extra in self.extras}
        return params_of(extras, lambda _, dimension: dimension.at(quantile()), self.fixed)

    def points(
        self,
        rng: np.random.Generator,
        known: Sequence[Mapping[str, Any]] = (),
        near: Callable[[int], bool] = lambda batch: True,
    ) -> list[Point]:
        """Return the points to weigh: the grid, with extras in the middle, those that did well, and fresh draws.

        `near`: which batch sizes are wanted.
        """
        grid = [point for point in self.grid if near(point.batch)]
        if not self.extras:
            return grid
        drawn = [self.params(lambda: float(rng.random())) for _ in range(EXTRA_SAMPLES)]
        extras = [(params, key_of_params(params), self._coordinates(params)) for params in (*known, *drawn)]
        pairs = [(batch, lr) for batch in self.batches if near(batch) for lr in self.learning_rates]
        return [*grid, *(self._point(batch, lr, *extra) for batch, lr in pairs for extra in extras)]

    def setting(self, batch: int, lr: float, params: Mapping[str, Any] | None = None) -> Setting:
        """Return the setting with the default extras unless others are given."""
        return Setting(int(batch), float(lr), dict(self.default_params() if params is None else params))

    def point(self, setting: Setting) -> Point:
        """Return a setting with its coordinates: octaves of batch and rate from the foot of the centre line, extras."""
        params = setting.params
        extras = (params, key_of_params(params), self._coordinates(params))
        return self._point(setting.global_batch_size, setting.learning_rate, *extras)

    def _point(
        self, batch: int, lr: float, params: Mapping[str, Any], its_key: Key, its_coordinates: tuple[float, ...]
    ) -> Point:
        """Return a point; key and coordinates of its parameters are those of many points."""
        key = (batch, f"{lr:.12g}", *its_key)
        octaves = (math.log2(batch / self.centre_batch), math.log2(lr / self.centre_learning_rate))
        number = -2.0 - zlib.crc32(repr(key).encode())
        return Point(batch, lr, params, key, (*octaves, *its_coordinates), number)

    def _coordinates(self, params: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the coordinates of the extra dimensions."""
        each = (e.coordinates(params[e.name]) if e.name in params else e.centre for e in self.extras)
        return tuple(itertools.chain.from_iterable(each))


def make_space(
    plan: Plan,
    facts: Facts,
    probe: ProbeResult | None,
    noise_scale: float | None = None,
    rates_seen: Sequence[float] = (),
    learned: Learned | None = None,
    *,
    begun: bool = False,
) -> Space:
    """Return the space that a plan and an objective ask for.

    Args:
        plan: What the user asked for.
        facts: What is known of the objective.
        probe: What is known of the device.
        noise_scale: Gradient noise scale, in samples: once measured, it lets in larger default batches.
        rates_seen: Learning rates that the default range is to cover besides.
        learned: What an earlier study of the same model has found: the best is expected there.
        begun: Trials have run, and may have shown that less fits: what can no longer be run is left out, not refused.

    Raises:
        ArgumentError: The space does not go with the objective; the message lists all that does not.
    """
    problems: list[str] = []
    asked: dict[str, Dimension] = dict(plan.space)
    sizes, rate = asked.pop("batch_size", None), asked.pop("learning_rate", None)
    batches = _default_batches(facts, probe, noise_scale) if sizes is None else _batches(sizes, facts, problems)
    fits = math.inf if probe is None or facts.accumulates else probe.micro_batch_size * facts.world_size
    # Where nothing of the space fits, its smallest batch shows it.
    batches = tuple(batch for batch in batches if batch <= fits) or batches[:1]
    if probe is not None and facts.longest > 1 and not problems:
        batches = _holding_longest(batches, sizes, facts, probe.micro_batch_size, [] if begun else problems)
    low, high = _reach_of_rates(rate, plan, facts, rates_seen)
    if facts.ignores_rate and low < high:
        problems.append(
            "optimizer(parameters, lr) has the same learning rates whatever lr is, so there are none to search: "
            "expected lr in the optimizer that it returns, as in torch.optim.SGD(parameters, lr), or one learning_rate "
            "in the space"
        )
    if plan.baseline is not None:
        known = None if probe is None or begun else probe.micro_batch_size
        problems += [
            f"baseline={plan.baseline!r}: its batch {wrong}" for wrong in _wrong(plan.baseline[0], facts, known)
        ]
    if problems:
        raise ArgumentError("; ".join(problems) + ".")

    centre_batch, centre = _centre(plan, facts, learned, low, high)
    slope, slope_sd = SLOPE_PRIOR[facts.optimizer_family]
    if learned is not None and learned.slope is not None:
        slope, slope_sd = learned.slope, min(slope_sd, learned.slope_sd or slope_sd)
    if rate is None or rate.kind == "range":
        rates = _rate_grid(low, high, centre)
    else:
        rates = tuple(sorted({float(value) for value in rate.values}))
    single = {name: one.values[0] for name, one in asked.items() if len(one.values) == 1 and not one.when}
    extras = tuple(Extra(name, one) for name, one in asked.items() if name not in single)
    if plan.baseline is not None:
        if plan.baseline[0] <= fits:
            batches = tuple(sorted({*batches, plan.baseline[0]}))
        rates = tuple(sorted({*rates, centre}))
    centre_sd = CENTRE_SD if learned is None or plan.baseline is not None else LEARNED_SD
    return Space(batches, rates, extras, single, centre_batch, centre, slope, slope_sd, centre_sd)


def _wrong(batch: int, facts: Facts, micro_max: int | None) -> list[str]:
    """Return what is wrong with the user's present batch size."""
    most, whose = _most_samples(facts)
    least = _least(facts)
    wrong = []
    if batch % facts.world_size:
        wrong.append(f"does not divide by the {facts.world_size} processes")
    if batch > most:
        wrong.append(f"is more than the {most:g} {facts.size_unit} of {whose}")
    if batch < least:
        wrong.append(f"is less than the {least} {facts.size_unit} with which each process can have the longest sample")
    elif facts.longest > 1 and micro_max is not None and not _holds_longest(batch, facts, micro_max):
        wrong.append(f"cannot be split: expected {_that_split(facts, micro_max)}")
    return wrong


def _reach_of_rates(
    rate: Dimension | None, plan: Plan, facts: Facts, rates_seen: Sequence[float]
) -> tuple[float, float]:
    """Return the ends of the learning rates: those that the user names, else the usual ones and what was seen."""
    if rate is not None and rate.kind == "range":
        return float(rate.low), float(rate.high)
    if rate is not None:
        return float(min(rate.values)), float(max(rate.values))
    low, high = LEARNING_RATE_RANGE[facts.optimizer_family]
    if plan.baseline is not None:  # Whoever trains so has a reason: the best is not far.
        low, high = min(low, plan.baseline[1] / AROUND), max(high, plan.baseline[1] * AROUND)
    return min([low, *(seen / ROUNDED for seen in rates_seen)]), max([high, *(seen * ROUNDED for seen in rates_seen)])


def _centre(plan: Plan, facts: Facts, learned: Learned | None, low: float, high: float) -> tuple[int, float]:
    """Return the batch size and the learning rate where the best is expected, between the ends of the rates."""
    if plan.baseline is not None:
        return plan.baseline[0], float(plan.baseline[1])
    if learned is not None:
        return learned.batch_size, min(max(learned.learning_rate, low), high)
    family = facts.optimizer_family
    if family in DEFAULT_LEARNING_RATE:
        return _anchor(facts), min(max(DEFAULT_LEARNING_RATE[family], low), high)
    if "learning_rate" not in plan.space:  # Rates that were seen widen the range, and do not move its middle.
        low, high = LEARNING_RATE_RANGE[family]
    return _anchor(facts), math.sqrt(low * high)


def _anchor(facts: Facts) -> int:
    """Return the batch size at which the usual learning rates are meant, in the unit of sizes."""
    return int(2 ** round(math.log2(ANCHOR_BATCH * facts.mean_size)))


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
        highest = min(highest, max(4 * max(float(plateau), noise_scale or 0.0), float(_anchor(facts))))
    ranks = facts.world_size  # Each has an equal part, so batches are this times a power of two.
    smallest = _power_above(facts.longest)
    lowest = ranks * max(smallest, 2 ** max(0, math.ceil(math.log2(SMALLEST_BATCH / ranks))))
    if highest >= lowest:
        return tuple(ranks * part for part in _powers(lowest // ranks, highest / ranks))
    most = max(ranks * smallest, min(lowest, facts.n_samples, int(facts.full_run_samples)))
    return tuple(ranks * part for part in _powers(smallest, most / ranks))  # So little data: 100 steps cannot be had.


def why_sizes_end(plan: Plan, facts: Facts, probe: ProbeResult | None, largest: int) -> SizesEnd | None:
    """Return why no default batch size is larger than the largest; None where the user has named the sizes.

    Example:
        >>> why_sizes_end(Plan(), Facts(None, "supervised", n_samples=400, epochs=3), None, 8)
        'steps'
    """
    if "batch_size" in plan.space:
        return None
    if 2 * largest > facts.n_samples:
        return "data"
    steps = 2 * largest > facts.full_run_samples / STEPS_AT_LEAST
    if probe is not None and not facts.accumulates and 2 * largest > probe.micro_batch_size * facts.world_size:
        # A probe of a command tries no size that trials would not use: then memory is not what ends them.
        return "memory" if probe.limited_by == "memory" else "steps" if steps else "probe"
    return "steps" if steps else "speed"


def _power_above(size: int) -> int:
    """Return the smallest power of two that is no less."""
    return 1 << (size - 1).bit_length()


def _powers(low: float, high: float) -> tuple[int, ...]:
    return tuple(2**k for k in range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1))


def _least(facts: Facts) -> int:
    """Return the smallest batch in which each process can have the longest sample."""
    return 1 if facts.longest == 1 else facts.longest * facts.world_size


def _holds_longest(batch: int, facts: Facts, micro_max: int) -> bool:
    """Whether a batch splits into equal micro-batches that fit and can hold the longest sample."""
    part = batch // facts.world_size
    return any(part % n == 0 for n in range(-(-part // micro_max), part // facts.longest + 1))


def _that_split(facts: Facts, micro_max: int) -> str:
    sizes = f"{facts.longest} to {micro_max}" if facts.longest < micro_max else f"{micro_max}"
    return (
        f"sizes that split into equal micro-batches of {sizes} {facts.size_unit}, which fit and hold the longest "
        f"sample, such as multiples of {micro_max * facts.world_size}"
    )


def _holding_longest(
    batches: tuple[int, ...], asked: Dimension | None, facts: Facts, micro_max: int, problems: list[str]
) -> tuple[int, ...]:
    """Return the batches whose micro-batches can hold the longest sample; where no default one can, others that do.

    A longer sample would be a micro-batch of its own, which counts as less than it is. Where no batch is left, the
    smallest one shows it.
    """
    kept = tuple(batch for batch in batches if _holds_longest(batch, facts, micro_max))
    if asked is None and not kept and micro_max >= facts.longest:
        fits = micro_max * facts.world_size
        kept = tuple(fits * times for times in _powers(1, max(1.0, batches[-1] / fits)))
    if asked is not None and (not kept or (asked.kind != "range" and len(kept) < len(batches))):
        problems.append(
            f"space['batch_size'] holds {_few(sorted({*batches} - {*kept}))}: expected {_that_split(facts, micro_max)}"
        )
    return kept or batches[:1]


def _few(sizes: Sequence[int]) -> str:
    """Return a list of sizes as text, without the middle of a long one."""
    if len(sizes) <= MOST_LISTED:
        return repr(list(sizes))
    return f"[{', '.join(map(str, sizes[: MOST_LISTED - 2]))}, ..., {sizes[-1]}]"


def _batches(asked: Dimension, facts: Facts, problems: list[str]) -> tuple[int, ...]:
    sizes: Sequence[int]
    if asked.kind != "range":
        sizes = sorted(set(asked.values))
    elif asked.log:
        sizes = _powers(asked.low, asked.high)
    else:
        sizes = range(int(asked.low), int(asked.high) + 1, int(asked.step or 1))
    least = _least(facts)
    enough = f"at least {least} {facts.size_unit}, so that each process can have the longest sample"
    even = f"multiples of the {facts.world_size} processes that train together"
    for expected, kept in (
        (enough, {size for size in sizes if size >= least}),
        (even, {size for size in sizes if size % facts.world_size == 0}),
    ):
        left = [size for size in sizes if size in kept]
        if left and asked.kind == "range":
            sizes = left
        elif len(left) < len(sizes):
            problems.append(f"space['batch_size'] holds {_few(sorted({*sizes} - kept))}: expected {expected}")
    most, whose = _most_samples(facts)
    if sizes[-1] > most:
        large = [size for size in sizes if size > most]
        problems.append(f"space['batch_size'] holds {_few(large)}, more than the {most:g} {facts.size_unit} of {whose}")
    return tuple(sizes)


def _most_samples(facts: Facts) -> tuple[float, str]:
    """Return how many samples a batch may have, and of what: a user's own loop says what is beyond its data set."""
    if facts.kind == "supervised" and facts.n_samples < facts.full_run_samples:
        return facts.n_samples, "the training data"
    return facts.full_run_samples, "a full run"
