"""All that a recommendation rests on: what was asked, what was run, what it costs, and what the surrogate says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.probe_results import ProbeResult
from ..core.remarks import TargetSource
from ..core.results import Setting
from ..core.specs import Plan
from ..core.trials import Facts
from .cost import Clock, Cost
from .curves import samples_to, smoothed
from .ledger import Key, Ledger, Run, key_of
from .posterior import Context, Model
from .worth import RELAPSE, Worth, curve_slope

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

SAME_TIME = 0.05
"""In ln T: of settings that are this close in time, the one with the lower loss is taken, then the smaller batch."""
AFFORDABLE = 0.5
"""Of the length of a search: a batch size whose full run costs more is not chosen, as it could not be verified."""


@dataclass(frozen=True)
class Evidence:
    """All that a recommendation rests on, at one state of the ledger."""

    plan: Plan
    facts: Facts
    probe: ProbeResult | None
    context: Context
    ledger: Ledger
    clock: Clock
    whole: float
    """The budget, in reference runs."""
    length: float
    """What of it the search plans to use, beside the user's present setting and what was lost."""
    confirms: bool
    """A full run on a fresh seed is held back for the answer."""
    probes: Mapping[str, ProbeResult]
    """Of all kinds of device, where a cluster has several; the first is also `probe`."""

    @property
    def cost(self) -> Cost:
        """What training costs on the kind of device that is decided for."""
        return self.clock.cost

    @cached_property
    def model(self) -> Model | None:
        """The surrogate; None while no finite loss is known."""
        return Model.of(self.context, self.ledger)

    @cached_property
    def worth(self) -> Worth:
        """What losses are worth in seconds."""
        return Worth(self.clock, self.plan.goal, curve_slope(self.ledger, planned=self.context.planned))

    @cached_property
    def baseline(self) -> Key | None:
        """The setting that the user trains with today; None where it was not told."""
        if self.plan.baseline is None:
            return None
        space = self.context.space
        return key_of(space.setting(*self.plan.baseline, space.default_params()))

    def baseline_run(self) -> Run | None:
        """Return the run of the user's present setting on the seed of the search that went furthest."""
        runs = [] if self.baseline is None else self.ledger.of(self.baseline, self.plan.seed)
        return max((run for run in runs if run.finite), key=lambda run: run.samples, default=None)

    @property
    def target(self) -> float | None:
        """Validation loss that counts as reached; None while no loss is known.

        The user's; else what the user's present setting reaches; else the lowest that is expected of a full run, within
        tolerance.
        """
        return self._target[0]

    @property
    def target_source(self) -> TargetSource:
        """Where the target is from."""
        return self._target[1]

    @cached_property
    def _target(self) -> tuple[float | None, TargetSource]:
        if self.plan.target is not None:
            return self.plan.target, "yours"
        own = self.baseline_run()
        if own is not None and own.complete:
            return own.at(own.end_samples), "present"
        best = self.lowest_expected
        if best is None:
            return None, "lowest"
        # Where no loss was below zero, none is to be expected there: with a perfect score it is zero.
        least = min(loss for run in self.ledger if run.finite for loss in run.values.values())
        target = best + self.plan.tolerance * abs(best)
        return (least if target < 0 <= least else target), "lowest"

    @cached_property
    def lowest_expected(self) -> float | None:
        """The lowest loss that is expected at the end of a full run, of the settings that were run."""
        if self.model is None:
            return None
        runs = [run for run in self.model.leaders if run.number not in self.model.lost] or self.model.leaders
        losses = self.model.losses([run.setting for run in runs])
        return float(losses.min()) if len(losses) else None

    @property
    def target_gap(self) -> float:
        """The target as a gap to the best loss that was seen."""
        assert self.model is not None
        assert self.target is not None
        return self.model.gap(self.target)

    @cached_property
    def best_run(self) -> Run | None:
        """The run of the setting that would be chosen now, of those whose full run the search can pay for."""
        if self.model is None:
            return None
        runs: list[Run] = [run for run in self.model.leaders if self.affordable(run.setting.global_batch_size)]
        return runs[self.best_of([run.setting for run in runs])] if runs else None

    def best_of(self, settings: Sequence[Setting]) -> int:
        """Return which of these would be chosen; for the goal `time`, of those as soon the one with the lowest loss."""
        assert self.model is not None
        times = self.ln_times(settings)
        if self.plan.goal != "time" or not self.clock.known:
            return int(np.argmin(times))
        losses = self.model.losses(settings)
        near = np.flatnonzero(times <= times.min() + SAME_TIME).tolist()
        return int(min(near, key=lambda i: (float(losses[i]), settings[i].global_batch_size, i)))

    def ln_times(self, settings: Iterable[Setting]) -> np.ndarray:
        """Return the expected ln T of settings, for the goal `time` with what is unsure of them: lower is better.

        What was run to the end counts by its own curves as much as by what the surrogate makes of them.
        """
        assert self.model is not None
        chosen = list(settings)
        points = [self.context.space.point(setting) for setting in chosen]
        curves = self.model.curves(points)
        ln_full = self.worth.ln_full([setting.global_batch_size for setting in chosen])
        if self.plan.goal != "time" or not self.clock.known:
            return self.worth.ln_time(ln_full, curves, self.target_gap)
        _, sd = self.model.final(points)
        outcomes = curves[:, None, :] + sd[:, None, None] * _NODES[None, :, None]
        expected = self.worth.ln_time(ln_full[:, None], outcomes, self.target_gap) @ _WEIGHTS
        return np.array(
            [self._with_own(setting, x, full) for setting, x, full in zip(chosen, expected, ln_full, strict=True)]
        )

    def _with_own(self, setting: Setting, expected: float, ln_full: float) -> float:
        own = [x for run in self.ledger.of(key_of(setting)) if (x := self.ln_share_of(run)) is not None]
        return (expected + sum(ln_full + x for x in own)) / (1 + len(own))

    def ln_share_of(self, run: Run) -> float | None:
        """Return ln of the full runs in which a run to the end reached the target, or would; None for other runs."""
        full = self.context.rungs.full_samples
        if self.target is None or not run.complete or not run.finite or run.end_samples <= full / 2:
            return None
        last = smoothed(run)[-1][1]
        reached = samples_to(self.target, run)
        if reached is None or last > self.target + RELAPSE * abs(self.target):
            return math.log(self.worth.full_runs_to(last, self.target))
        return math.log(max(reached, run.setting.global_batch_size) / full)

    def affordable(self, batch: int) -> bool:
        """Return whether the search can pay for a full run at a batch size, and for what it rests on."""
        return self.clock.full_price(batch) <= max(1.0, AFFORDABLE * self.length)
