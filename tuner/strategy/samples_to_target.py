"""What the trials of a search say: the target, the samples to reach it, and with both the batch size that is fastest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from ..core.probe_results import ProbeResult
from ..core.results import BatchAnswer
from ..core.specs import Plan
from ..core.trials import Facts
from ..theory.critical_batch import LEAST_BATCHES, BatchLine, Reach, answer_batch, enough, fit_batch_line
from ..theory.gradient_noise import NoiseScale, noise_scale
from .cost import Cost
from .ledger import Key, Ledger, Run
from .posterior import Context
from .space import STEPS_AT_LEAST

TARGET_SHARE = 0.7
"""The default target is what the anchor run reaches after this share of it."""


@dataclass(frozen=True)
class Evidence:
    """All that a recommendation rests on."""

    plan: Plan
    facts: Facts
    probe: ProbeResult | None
    context: Context
    ledger: Ledger
    confirm_share: float
    probes: Mapping[str, ProbeResult]
    """Of all kinds of device, where a cluster has several; the first is also `probe`."""

    @property
    def cost(self) -> Cost:
        """What training costs on the kind of device that is decided for."""
        return Cost.of(self.facts, self.probe)

    @property
    def target(self) -> float | None:
        """Validation loss that counts as reached: the user's, or what the first full run reaches after most of its way.

        Where no search run went so far, the first confirmation run sets it.
        """
        if self.plan.target is not None:
            return self.plan.target
        full = self.context.rungs.full_samples
        whole = [run for run in self.ledger if run.complete and run.end_samples > full / 2 and run.finite]
        if not whole:
            return None
        first = min(whole, key=lambda run: (run.seed != self.plan.seed, run.number))
        curve = smoothed(first)
        return next((loss for samples, loss in curve if samples >= TARGET_SHARE * first.end_samples), curve[-1][1])


def smoothed(run: Run) -> list[tuple[int, float]]:
    """Return a learning curve by the median of three neighbours, so that one lucky evaluation reaches no target."""
    points = sorted(run.values.items())
    losses = [loss for _, loss in points]
    return [(samples, float(median(losses[max(0, i - 1) : i + 2]))) for i, (samples, _) in enumerate(points)]


def samples_to(target: float, run: Run) -> float | None:
    """Return the samples at which the smoothed curve of a run first reaches a target, interpolated; None if it never does."""
    before: tuple[int, float] | None = None
    for samples, loss in smoothed(run):
        if loss <= target:
            if before is None or before[1] <= loss:
                return float(samples)
            return before[0] + (samples - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (samples, loss)
    return None


def batch_line(evidence: Evidence, scale: NoiseScale | None = None) -> tuple[BatchLine | None, float | None]:
    """Return the line of samples to target over the batch sizes that trials have run, and the loss that was counted to.

    That loss is the target, or the lowest that enough batch sizes have reached where that is not the target yet. Each batch size counts
    with its best learning rate, so one whose learning rates were all poor lies above the line.
    """
    by_batch = _curves(evidence)
    target = -math.inf if evidence.target is None else evidence.target
    floors = sorted(
        min(loss for runs in settings.values() for run in runs for _, loss in smoothed(run))
        for settings in by_batch.values()
    )
    for level in dict.fromkeys(max(floor, target) for floor in floors[LEAST_BATCHES - 1 :]):
        reaches = [
            reach
            for batch, settings in by_batch.items()
            if (reach := _reach(evidence, batch, settings, level)) is not None
        ]
        if enough(reaches):
            line = fit_batch_line(reaches, scale)
            return line, None if line is None else level
    return None, None


def _curves(evidence: Evidence) -> dict[int, dict[Key, list[Run]]]:
    """Return the learning curves that can be compared, by batch size and setting: under a schedule, those of full runs only."""
    found: dict[int, dict[Key, list[Run]]] = defaultdict(lambda: defaultdict(list))
    full = evidence.context.rungs.full_samples
    for seed in sorted({run.seed for run in evidence.ledger}):
        for run in evidence.ledger.curves(seed):
            if run.finite and (run.end_samples > full / 2 or not evidence.context.planned):
                found[run.setting.global_batch_size][run.key].append(run)
    return found


def _reach(evidence: Evidence, batch: int, settings: dict[Key, list[Run]], level: float) -> Reach | None:
    """Return what a batch size needed to a loss, by its best setting; None where that says nothing."""
    whole = evidence.context.rungs.end_of(batch)
    needed = []
    for runs in settings.values():
        each = []
        for run in runs:
            samples = samples_to(level, run)
            if samples is not None and samples <= min(run.values):
                return None  # It was there at the first report already, nobody knows for how long.
            if samples is not None or run.samples >= whole:  # A run that was stopped earlier might yet have got there.
                each.append(math.inf if samples is None else samples)
        if each:
            needed.append(median(each))
    if not needed:
        return None
    return Reach(batch, min(needed)) if math.isfinite(min(needed)) else Reach(batch, float(whole), reached=False)


def batch_answer(evidence: Evidence) -> BatchAnswer:
    """Return which batch size reaches the target first, as far as trials, gradients and step times tell."""
    scale = noise_scale([point for run in evidence.ledger for point in run.noise])
    line, level = batch_line(evidence, scale)
    facts = evidence.facts
    return answer_batch(
        line,
        scale,
        evidence.probe,
        evidence.context.space.batches,
        step_s=evidence.cost.step_s,
        target=level,
        data_set_largest=max(1, min(facts.n_samples, int(facts.full_run_samples) // STEPS_AT_LEAST)),
    )
