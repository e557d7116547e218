"""Recorded learning curves as a table, so that the truth of a search is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...objectives.base import Trial
from ..core.errors import ArgumentError
from ..core.trials import Facts

Cell = tuple[int, float]
Curve = Sequence[tuple[int, float]]

SAME_END = 1.25
"""Planned ends that differ by no more than this factor are one, rounded to the whole steps of another batch size."""


@dataclass(frozen=True)
class Table:
    """Recorded curves over batch size, learning rate and seed.

    Attributes:
        name: What was trained.
        n_samples: Training samples of an epoch.
        epochs: Epochs of a full run.
        curves: By (batch size, learning rate): for each recorded seed the pairs (samples, validation loss), ascending.
        noise_scale: What every measurement of gradient noise finds, in samples; None: it is not measured.
        schedule: Of the learning rate. Where it falls to the planned end, a short run is no beginning of a long one.
        short: Such short runs, each recorded to its own planned end: by cell, for each seed their curves.
    """

    name: str
    n_samples: int
    epochs: float
    curves: Mapping[Cell, Sequence[Curve]] = field(repr=False)
    noise_scale: float | None = None
    schedule: str = "unknown"
    short: Mapping[Cell, Sequence[Sequence[Curve]]] = field(default_factory=dict, repr=False)

    @property
    def batches(self) -> list[int]:
        """The recorded batch sizes."""
        return sorted({batch for batch, _ in self.curves})

    @property
    def learning_rates(self) -> list[float]:
        """The recorded learning rates."""
        return sorted({lr for _, lr in self.curves})

    @property
    def n_seeds(self) -> int:
        """Recorded seeds of a cell, at least."""
        return min(len(seeds) for seeds in self.curves.values())

    def curve(self, batch: int, lr: float, seed: int) -> Curve:
        """Return the curve of a cell; seeds beyond the recorded ones start again from the first.

        Raises:
            ArgumentError: The cell is not in the table.
        """
        if (batch, lr) not in self.curves:
            raise ArgumentError(
                f"The table {self.name!r} has no cell of batch {batch} and learning rate {lr:g}; search its own lists."
            )
        seeds = self.curves[batch, lr]
        return seeds[seed % len(seeds)]

    def planned_curve(self, batch: int, lr: float, seed: int, end: int) -> Curve:
        """Return the curve of a run that is planned to end there; where no short runs are recorded, that of the cell.

        Raises:
            ArgumentError: The cell is not in the table, or no run of it was planned to end there.
        """
        whole = self.curve(batch, lr, seed)
        if not self.short:
            return whole
        seeds = self.short[batch, lr]
        found = min((whole, *seeds[seed % len(seeds)]), key=lambda curve: abs(math.log(curve[-1][0] / end)))
        if found[-1][0] * SAME_END < end < whole[-1][0] or end * SAME_END < found[-1][0]:
            ends = ", ".join(str(curve[-1][0]) for curve in sorted((whole, *seeds[0]), key=lambda curve: curve[-1][0]))
            raise ArgumentError(
                f"The table {self.name!r} has no run of batch {batch} that was planned to end at {end} samples; "
                f"it has those that end at {ends}."
            )
        return found

    def truth(self) -> dict[Cell, float]:
        """Return each cell's last loss in the mean over seeds; infinite where a seed diverged."""
        means = {}
        for cell, seeds in self.curves.items():
            lasts = [curve[-1][1] for curve in seeds]
            means[cell] = float(np.mean(lasts)) if all(math.isfinite(last) for last in lasts) else math.inf
        return means

    def regret(self, batch: int, lr: float) -> float:
        """Return how much worse a cell is than the best cell, relative to it, by the mean over seeds."""
        truth = self.truth()
        best = min(truth.values())
        return (truth[batch, lr] - best) / abs(best)

    @property
    def space(self) -> dict[str, list[int] | list[float]]:
        """The `space` argument that searches exactly this table."""
        return {"batch_size": self.batches, "learning_rate": self.learning_rates}

    def facts(self, **changes: object) -> Facts:
        """Return what an objective that looks this table up would say of itself, unless changed.

        It is a user's loop; where short runs are recorded bstune owns the steps, so that it can plan such runs.
        """
        base: dict[str, object] = {
            "name": self.name,
            "kind": "supervised" if self.short else "loop",
            "schedule": self.schedule,
            "n_samples": self.n_samples,
            "epochs": self.epochs,
        }
        return Facts(**{**base, **changes})  # type: ignore[arg-type]

    def loss(self, batch: int, lr: float, seed: int, samples: int, end: int | None = None) -> float:
        """Return the loss of a run after so many samples, interpolated; before the first record it is the first.

        It is planned to end at `end`; without one it is a full run.
        """
        curve = self.curve(batch, lr, seed) if end is None else self.planned_curve(batch, lr, seed, end)
        if not math.isfinite(curve[-1][1]) and samples > curve[-2 if len(curve) > 1 else -1][0]:
            return math.nan
        return float(np.interp(samples, [s for s, _ in curve], [v for _, v in curve]))

    def train_exactly(self, trial: Trial) -> None:
        """Report just where reports are wanted, as `bstune.Supervised` does."""
        batch = trial.global_batch_size
        while True:
            samples = min(math.ceil(trial.next_report / batch) * batch, trial.max_samples)
            loss = self.loss(batch, trial.learning_rate, trial.seed, samples, trial.max_samples)
            trial.report(loss, samples=samples)
            if samples >= trial.max_samples:
                return

    def train(self, trial: Trial, start_samples: int = 0) -> None:
        """Report the recorded curve, as a loop would; a continued run reports what follows its start."""
        batch, lr = trial.global_batch_size, trial.learning_rate
        for samples, loss in self.planned_curve(batch, lr, trial.seed, trial.max_samples):
            last = samples > trial.max_samples - batch
            if samples > start_samples:
                trial.report(loss, samples=max(samples, trial.max_samples) if last else samples)
            if last or not math.isfinite(loss):
                return


def synthetic(
    best_batch: int = 64,
    best_lr: float = 0.03,
    *,
    slope: float = 0.7,
    noise: float = 0.02,
    n_samples: int = 1024,
    epochs: int = 16,
    seeds: int = 4,
    seed: int = 0,
) -> Table:
    """Return a table whose optimum is known: a bowl in octaves that moves with the batch, a cliff, and seed noise.

    Args:
        best_batch: Batch size of the lowest loss.
        best_lr: Learning rate of the lowest loss, at that batch size.
        slope: By how many octaves the best learning rate moves per octave of batch.
        noise: Relative standard deviation of the last loss between seeds.
        n_samples: Training samples of an epoch; one report each.
        epochs: Epochs of a full run.
        seeds: Recorded seeds of a cell.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    curves: dict[Cell, list[list[tuple[int, float]]]] = {}
    for batch in (8, 16, 32, 64, 128, 256, 512):
        for k in range(-6, 7):
            lr = best_lr * 2.0**k
            b = math.log2(batch / best_batch)
            u = k - slope * b
            for _ in range(seeds):
                luck = 1 + noise * rng.standard_normal()
                curve = []
                for epoch in range(1, epochs + 1):
                    progress = epoch / epochs
                    late = u + 0.5 * math.log2(progress)  # Early on, larger rates look better than they end.
                    gap = 0.03 * late**2 + 0.01 * b**2
                    loss = (1 + gap) * (0.1 + 0.2 * (1 - progress) ** 2) * luck
                    curve.append((epoch * n_samples, math.nan if u > 3 and epoch > 1 else loss))
                    if u > 3 and epoch > 1:
                        break
                curves.setdefault((batch, lr), []).append(curve)
    return Table("synthetic", n_samples, epochs, curves)
