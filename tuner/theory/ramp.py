"""A batch size that grows where a schedule would let the learning rate fall. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..core.probe_results import StepTimeLine
from ..core.take_home import RampForecast
from .scaling import split


@dataclass(frozen=True)
class Ramp:
    """What a ramp is made of; `start` begins one."""

    batch_size: int
    """Global batch size at the beginning."""
    max_batch_size: int
    total_samples: int
    factor_at: Callable[[float], float]
    """The schedule: progress in [0, 1], after warm-up, to a factor on the learning rate."""
    power: float
    """The rate is that of the schedule times (batch / first batch) ** power.

    0.5: where the rate would halve, it falls by sqrt 2 and the batch doubles (Seesaw, arXiv:2510.14717). 1: it stays
    (Smith et al. 2018, arXiv:1711.00489).
    """
    growth: int = 2
    """By this the batch grows whenever the rate would fall by as much."""
    warmup_samples: int = 0
    """The rate rises in a line over so many."""

    def factor(self, samples: int, batch: int) -> float:
        """Return the factor of the schedule for the step that begins here, warm-up included."""
        if samples < self.warmup_samples:
            return min(1.0, (samples + batch) / self.warmup_samples)
        progress = (samples - self.warmup_samples) / max(1, self.total_samples - self.warmup_samples)
        return float(self.factor_at(min(1.0, progress)))


@dataclass
class Place:
    """Where a ramp is: what the next step is done with."""

    ramp: Ramp
    samples: int = 0
    updates: int = 0
    batch_size: int = 0
    highest: float = 0.0
    """Of the schedule's factors so far: a fall is counted from there."""

    def __post_init__(self) -> None:
        """Begin at the start of the ramp, or at the given position."""
        self.batch_size = self.batch_size or self.ramp.batch_size
        self._look()

    @property
    def rate_factor(self) -> float:
        """What the first learning rate is multiplied with, for the next step."""
        grown: float = (self.batch_size / self.ramp.batch_size) ** self.ramp.power
        return self.ramp.factor(self.samples, self.batch_size) * grown

    def step(self) -> None:
        """Count one update, and grow the batch if it is time."""
        self.samples += self.batch_size
        self.updates += 1
        self._look()

    def _look(self) -> None:
        ramp, factor = self.ramp, self.ramp.factor(self.samples, self.batch_size)
        self.highest = max(self.highest, factor)
        while (
            self.samples < ramp.total_samples
            and self.batch_size * ramp.growth <= ramp.max_batch_size
            # A hair early rather than a step late: cosine has no exact halves.
            and factor * self.batch_size * ramp.growth <= self.highest * ramp.batch_size * (1 + 1e-9)
        ):
            self.batch_size *= ramp.growth


def stages(ramp: Ramp) -> Iterator[tuple[int, int, int]]:
    """Yield each batch size of a ramp: where it begins, in samples, its size, and its updates.

    Example:
        >>> list(stages(Ramp(10, 40, 100, lambda p: 1 - p, 0.5)))
        [(0, 10, 5), (50, 20, 2), (90, 40, 1)]
    """
    place = Place(ramp)
    begin = (place.samples, place.batch_size, place.updates)
    while place.samples < ramp.total_samples:
        place.step()
        if place.batch_size != begin[1] or place.samples >= ramp.total_samples:
            yield begin[0], begin[1], place.updates - begin[2]
            begin = (place.samples, place.batch_size, place.updates)


def forecast(
    ramp: Ramp,
    micro_max: int,
    world_size: int = 1,
    line: StepTimeLine | None = None,
    peak_bytes_at: Callable[[int], int | None] = lambda micro: None,
    *,
    longest: int = 1,
) -> RampForecast:
    """Return what a ramp saves, beside the same schedule at its first batch size.

    Args:
        ramp: The ramp.
        micro_max: Most samples that fit in one forward and backward pass.
        world_size: Processes that train together.
        line: Seconds of a step by micro-batch size, if they are known.
        peak_bytes_at: Peak memory by micro-batch size, where it is known.
        longest: What the longest sample has of what sizes count; a micro-batch holds it.
    """
    parts = list(stages(ramp))
    plain = math.ceil(ramp.total_samples / ramp.batch_size)
    updates = sum(n for _, _, n in parts)

    def step_s(batch: int) -> float:
        assert line is not None
        return line.step_s(*split(batch, micro_max, world_size, longest=longest))

    seconds = None if line is None else sum(n * step_s(batch) for _, batch, n in parts)
    plain_s = None if line is None else plain * step_s(ramp.batch_size)
    saved_s = None if seconds is None or plain_s is None else 1 - seconds / plain_s
    top = max(batch for _, batch, _ in parts)
    micro, accumulation = split(top, micro_max, world_size, longest=longest)
    return RampForecast(
        updates=updates,
        updates_of_schedule=plain,
        updates_saved=1 - updates / plain,
        seconds=seconds,
        seconds_of_schedule=plain_s,
        seconds_saved=saved_s,
        stages=tuple((begin, batch) for begin, batch, _ in parts),
        top_batch_size=top,
        top_micro_batch_size=micro,
        top_accumulation_steps=accumulation,
        peak_bytes=peak_bytes_at(max(split(batch, micro_max, world_size, longest=longest)[0] for _, batch, _ in parts)),
        warnings=tuple(_warnings(ramp, top, micro, accumulation, micro_max, saved_s)),
    )


LITTLE = 0.03
"""Of the seconds: less is not worth a word of praise."""


def _warnings(
    ramp: Ramp, top: int, micro: int, accumulation: int, micro_max: int, saved_s: float | None
) -> Iterator[str]:
    if top == ramp.batch_size:
        yield "The batch never grows: the schedule does not fall by enough, or max_batch_size leaves no room."
    if saved_s is not None and saved_s < LITTLE:
        yield f"It saves updates, but only {saved_s:.0%} of the seconds: this device trains larger batches no faster."
    if accumulation > 1 and top > ramp.batch_size:
        yield (
            f"The largest batch takes {accumulation} micro-batches of {micro}, since one holds {micro_max} at most: "
            "such updates are no faster per sample."
        )
