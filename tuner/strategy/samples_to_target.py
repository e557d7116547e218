"""What the trials of a search say: the target, the samples to reach it, and so which batch size is fastest."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median

from ..core.results import BatchAnswer
from ..core.specs import STEPS_AT_LEAST
from ..theory.critical_batch import LEAST_BATCHES, BatchLine, Reach, answer_batch, enough, fit_batch_line
from ..theory.gradient_noise import NoiseScale, noise_scale
from .curves import samples_to, smoothed
from .evidence import Evidence
from .ledger import Key, Run


def batch_line(evidence: Evidence, scale: NoiseScale | None = None) -> tuple[BatchLine | None, float | None]:
    """Return the line of samples to target over the batch sizes that trials have run, and the loss that was counted to.

    That loss is the target, or the lowest that enough batch sizes have reached where that is not the target yet. Each
    batch size counts with its best learning rate, so one whose learning rates were all poor lies above the line.
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
    """Return the curves that can be compared, by batch size and setting: under a schedule, those of full runs only."""
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
