"""What training costs: the one place that turns samples of a setting into seconds, and seconds into reference runs.

Trials are compared at equal samples; people pay in seconds. A step takes what the objective states (`step_time_s`),
what the line of the probe says, or what the trials themselves have taken, in this order. A global batch that does not
fit is accumulated, which brings no speed. Each kind of device has a `Cost`; a `Clock` counts a search in reference
runs.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

from ..core.probe_results import ProbeResult, StepTimeLine
from ..core.trials import Facts
from ..theory.scaling import split
from ..theory.step_time import relative_line
from .ledger import Run
from .rungs import Rungs

AGES_S = 1e9
"""Nothing takes longer: sums of such seconds are numbers still."""
TELLING_S = 0.5
"""Runs that took less say nothing of what training costs: starting and reporting took most of it."""
EXPLAINED = 0.1
"""A line beside the start of a program explains the seconds of runs to within this share, or counts for nothing."""
DISAGREES = 1.05
"""Measured seconds correct the clock of a duration beyond this factor."""


@dataclass(frozen=True)
class Cost:
    """What training costs on one kind of device; every time and rate is None where no step time is known."""

    facts: Facts
    micro_max: int | None
    """The largest micro-batch that fits; None where nobody knows, and batches are then run whole."""
    line: StepTimeLine | None
    validation_s: float = 0.0
    """Seconds of one validation, where they are not part of the steps."""
    start_s: float = 0.0
    """Seconds that each run takes once, before it trains: a program starts, data is loaded, a model is built. 0 where
    nothing tells them; they are then part of the steps."""

    @classmethod
    def of(
        cls, facts: Facts, probe: ProbeResult | None, line: StepTimeLine | None = None, start_s: float = 0.0
    ) -> Cost:
        """Return the cost by the probe of a kind of device; where it timed nothing, by what trials were fitted to."""
        if probe is None:
            return cls(facts, None, line, 0.0, start_s)
        probed, probed_s = probed_line(probe), getattr(probe, "start_s", None)
        if facts.step_times or (line and not probed and facts.kind != "command"):
            # What is stated may be of another machine, and what was fitted to whole runs has all in it.
            return cls(facts, probe.micro_batch_size, probed or line)
        start_s = min(start_s if probed_s is None else probed_s, AGES_S)
        return cls(facts, probe.micro_batch_size, probed or line, _validation_s(facts, probe), start_s)

    @property
    def known(self) -> bool:
        """Whether seconds are known."""
        return self.line is not None or bool(self.facts.step_times)

    def split(self, batch: int) -> tuple[int, int]:
        """Return the micro-batch size and the accumulation steps with which each process runs its part of a batch."""
        ranks = self.facts.world_size
        if not self.facts.accumulates:
            return batch // ranks, 1
        micro, accumulation = split(batch, batch if self.micro_max is None else self.micro_max, ranks)
        if micro >= self.facts.longest:
            return micro, accumulation
        # A sample that is longer than its micro-batch would be more than is counted. What does not fit is seen.
        part = batch // ranks
        accumulation = next(n for n in range(max(1, part // self.facts.longest), 0, -1) if part % n == 0)
        return part // accumulation, accumulation

    def step_s(self, batch: int, split: tuple[int, int] | None = None) -> float | None:
        """Return the seconds of an optimizer step; `split` is how a run was split, where that may differ from now."""
        if self.facts.step_times:
            return _between(self.facts.step_times, batch)
        if self.line is None:
            return None
        micro, accumulation = split or self.split(batch)
        # Of several processes a line is of what they train on together, be it probed or fitted to trials.
        return self.line.step_s(micro * self.facts.world_size, accumulation)

    def samples_per_s(self, batch: int, split: tuple[int, int] | None = None) -> float | None:
        """Return the samples that are trained in a second."""
        step_s = self.step_s(batch, split)
        return None if step_s is None else batch / step_s

    def seconds(
        self, batch: int, samples: float, split: tuple[int, int] | None = None, validations: int = 0
    ) -> float | None:
        """Return the seconds of so many samples and validations.

        Example:
            >>> facts = Facts("digits", "supervised", n_samples=1024, epochs=2)
            >>> cost = Cost(facts, 32, StepTimeLine(0.01, 0.0001, 100.0))
            >>> round(cost.seconds(128, 1024), 4)  # 8 steps of 4 times 13.2 ms.
            0.4224
        """
        samples_per_s = self.samples_per_s(batch, split)
        return None if samples_per_s is None else samples / samples_per_s + validations * self.validation_s

    def trained_s(self, batch: int) -> float | None:
        """Return the seconds of a full run once it trains, which is of whole steps, with its validations."""
        rungs = Rungs.of(self.facts)
        end = rungs.end_of(batch)
        return self.seconds(batch, end, validations=len(rungs.points(end)))

    def full_run_s(self, batch: int) -> float | None:
        """Return the seconds of a full run, its start included."""
        trained_s = self.trained_s(batch)
        return None if trained_s is None else self.start_s + trained_s

    def seconds_to(self, batch: int, samples: float) -> float | None:
        """Return the seconds after which a run has trained so many samples: its start, and that share of the rest."""
        trained_s = self.trained_s(batch)
        return None if trained_s is None else self.start_s + samples * trained_s / Rungs.of(self.facts).end_of(batch)


def probed_line(probe: ProbeResult) -> StepTimeLine | None:
    """Return the step-time line of a probe; where one or two samples are all that fits, their time is enough."""
    rows = probe.throughput
    if probe.step_time_line is None and len(rows) == 1 and probe.micro_batch_size <= 2:
        return StepTimeLine(0.0, rows[0].s_per_step / rows[0].batch_size, 0.0)
    return probe.step_time_line


def _validation_s(facts: Facts, probe: ProbeResult) -> float:
    each, whole = getattr(probe, "validation_s_per_sample", None), getattr(probe, "validation_s", None)
    if whole is None:
        whole = 0.0 if each is None else each * (facts.n_val_samples or 0)
    return float(min(whole, AGES_S))


def _between(rows: Sequence[tuple[int, float]], batch: int) -> float:
    """Return the seconds of a step by stated rows: on the line between neighbours; beyond the ends, by the last two."""
    if len(rows) == 1:
        return rows[0][1] * batch / rows[0][0]
    i = min(max(bisect_left([size for size, _ in rows], batch), 1), len(rows) - 1)
    (low, low_s), (high, high_s) = rows[i - 1], rows[i]
    between = low_s + (batch - low) / (high - low) * (high_s - low_s)
    return max(between, 1e-3 * min(low_s, high_s))


class FittedTimes(NamedTuple):
    """What the trials' own seconds tell."""

    line: StepTimeLine | None
    start_s: float = 0.0


def fitted(runs: Iterable[Run], *, starts: bool = False) -> FittedTimes:
    """Return the step-time line of the trials' own seconds, where no probe has one; None while they say nothing.

    `starts`: each run has started a program, which took seconds of its own.
    """
    runs = list(runs)
    if starts and (found := _line_beside_start(runs)) is not None:
        return found
    return FittedTimes(_line_of_all(runs))


def _line_of_all(runs: Sequence[Run]) -> StepTimeLine | None:
    """Return the line of all that runs took, a start included."""
    by_batch: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        steps = (run.samples - run.start_samples) / run.setting.global_batch_size
        if run.state != "running" and run.seconds is not None and run.seconds >= TELLING_S and steps >= 1:
            by_batch[run.setting.global_batch_size].append(run.seconds / steps)
    points = [(batch, statistics.median(found)) for batch, found in sorted(by_batch.items())]
    if not points:
        return None
    if len(points) == 1:  # As if samples took the same in batches of any size, until another one was run.
        return StepTimeLine(0.0, points[0][1] / points[0][0], 0.0)
    fixed, slope = relative_line(points)
    return StepTimeLine(fixed, slope, fixed / slope if slope > 0 else None)


def _line_beside_start(runs: Sequence[Run]) -> FittedTimes | None:
    """Return what fits seconds = start + a * steps + c * samples, no part below 0; None while runs do not tell."""
    ended = [run for run in runs if run.state in ("complete", "pruned") and run.seconds]
    rows = [
        (run.samples / run.setting.global_batch_size, run.samples, run.seconds or 0.0) for run in ended if run.samples
    ]
    if len({samples for _, samples, _ in rows}) < 2 or len(rows) < 4:
        return None
    import numpy as np

    seconds = np.array([row[2] for row in rows])
    # Relative errors count: a short run tells as much of its seconds as a long one.
    parts = np.array([(1.0, steps, samples) for steps, samples, _ in rows]) / seconds[:, None]
    usable = (0, 1, 2) if len({run.setting.global_batch_size for run in ended}) > 1 else (0, 2)
    best: tuple[float, float, float, float] | None = None
    for n in range(len(usable), 0, -1):
        for columns in combinations(usable, n):
            found, *_ = np.linalg.lstsq(parts[:, columns], np.ones(len(rows)), rcond=None)
            error = float(((parts[:, columns] @ found - 1) ** 2).sum())
            part = dict(zip(columns, found.tolist(), strict=True))
            if found.min() > 0 and set(columns) != {0} and (best is None or error < best[0]):
                best = error, part.get(0, 0.0), part.get(1, 0.0), part.get(2, 0.0)
    if best is None or math.sqrt(best[0] / len(rows)) > EXPLAINED:
        return None
    _, start_s, fixed, slope = best
    steps, samples, whole_s = max(rows, key=lambda row: row[2])
    if fixed * steps + slope * samples < whole_s / 2:
        return None  # All runs are mostly start, and what is left of them says little.
    return FittedTimes(StepTimeLine(fixed, slope, fixed / slope if slope > 0 else None), start_s)


@dataclass(frozen=True)
class Clock:
    """The currency of a search: prices in reference runs, which are full runs at the reference batch.

    Where no step time is known a reference run is a full run of samples, and all batch sizes cost the same.
    """

    rungs: Rungs
    batches: tuple[int, ...]
    cost: Cost
    """On the kind of device that is decided for."""
    others: Mapping[str, Cost] = field(default_factory=dict)
    """By kind of device, where a cluster has several: a run is priced by its own kind."""

    @property
    def known(self) -> bool:
        """Whether seconds are known."""
        return self.cost.known

    @cached_property
    def reference_batch(self) -> int:
        """The smallest batch size of the space that reaches half of the peak throughput (a/c), else the largest."""
        rows = self.cost.facts.step_times
        fixed, slope = relative_line(rows) if len(rows) > 1 else (0.0, 1.0)
        if not rows and self.cost.line is not None:
            fixed, slope = self.cost.line.a_s, self.cost.line.c_s_per_sample
        if not self.known or fixed >= slope * self.batches[-1]:
            return self.batches[-1]
        # What is accumulated is no faster than the largest micro-batch.
        least = min(fixed / slope, (self.cost.micro_max or math.inf) * self.cost.facts.world_size)
        return next((batch for batch in self.batches if batch >= 0.999 * least), self.batches[-1])

    @cached_property
    def reference_s(self) -> float | None:
        """Seconds of a reference run, its start included."""
        return self.cost.full_run_s(self.reference_batch)

    def _cost_on(self, device: str | None) -> tuple[Cost, float | None]:
        """Return the cost on a kind of device, and the seconds of a reference run there."""
        cost = self.cost if device is None else self.others.get(device, self.cost)
        return cost, self.reference_s if cost is self.cost else cost.full_run_s(self.reference_batch)

    def price(self, batch: int, samples: float, validations: int = 0, device: str | None = None) -> float:
        """Return what so many samples of a batch size cost, in reference runs of the kind of device they run on."""
        cost, whole = self._cost_on(device)
        seconds = cost.seconds(batch, samples, validations=validations)
        return samples / self.rungs.full_samples if seconds is None or not whole else seconds / whole

    def price_of_start(self, device: str | None = None) -> float:
        """Return what a run costs before it trains, in reference runs."""
        cost, whole = self._cost_on(device)
        return cost.start_s / whole if whole else 0.0

    def price_to(self, batch: int, start: int, stop: int, *, begins: bool = True) -> float:
        """Return what a run costs from one point of it to another, with its validations on the way.

        `begins`: it begins there, if from a checkpoint, and does not just go on.
        """
        return self._price_of_training(batch, start, stop) + (self.price_of_start() if begins else 0.0)

    def full_price(self, batch: int, *, starts: bool = True) -> float:
        """Return what a full run at this batch size costs, with its start or without."""
        return self.price_to(batch, 0, self.rungs.end_of(batch), begins=starts)

    def _price_of_training(self, batch: int, start: int, stop: int) -> float:
        asked = (batch, start, stop)
        if asked not in self._prices:
            validations = sum(start < point for point in self.rungs.points(stop, start))
            self._prices[asked] = self.price(batch, stop - start, validations)
        return self._prices[asked]

    @cached_property
    def _prices(self) -> dict[tuple[int, int, int], float]:
        """What was worked out already."""
        return {}

    def price_of(self, run: Run, upto: int | None = None) -> float:
        """Return what a run costs: what it has trained and drawn itself, or will have when it stands at `upto`."""
        samples = run.samples if upto is None else max(run.samples, upto)
        new = max(0, samples - run.start_samples)
        drawn = run.noise_samples if upto is None else max(run.noise_samples, run.noise_granted)
        batch = run.setting.global_batch_size
        if not self.known:
            return (new + drawn) / self.rungs.full_samples
        seen = sum(point > run.start_samples for point in run.values)
        coming = sum(run.samples < point <= samples for point in run.asked.points)
        device = None if run.record is None else run.record.device
        return self.price_of_start(device) + self.price(batch, new + drawn, seen + coming, device)

    def correction(self, runs: Iterable[Run]) -> float:
        """Return by what factor runs have taken longer than this clock says, their start included; 1 where they agree.

        It turns a duration into reference runs, and changes no comparison: with the same records the answer is the
        same.
        """
        if not self.known or self.cost.facts.step_times or not self.reference_s:
            return 1.0
        ended = [run for run in runs if run.state != "running" and run.seconds and run.samples]
        measured = sum(run.seconds or 0.0 for run in ended)
        predicted = sum(self.price_of(run) for run in ended) * self.reference_s
        if measured < TELLING_S or predicted <= 0 or 1 / DISAGREES < measured / predicted < DISAGREES:
            return 1.0
        return measured / predicted
