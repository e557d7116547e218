"""What a search was asked to do, and what the strategy asks for next: plain data between the modules of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .results import Goal, Setting, TrialRecord
from .trials import TrialSpec


@dataclass(frozen=True)
class Plan:
    """The arguments of `bstune.search` that the strategy decides by, checked and with defaults filled in."""

    goal: Goal = "time"
    target: float | None = None
    tolerance: float = 0.02
    budget: float = 12.0
    """Total training of the study, in reference runs, confirmation included."""
    budget_s: float | None = None
    """The same as a duration, in seconds, where the user gave one; it then counts instead."""
    n_trials: int | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    """As the user gave it: a scalar fixes, a list means exactly these, (lo, hi) a log range, or an Optuna distribution."""
    jobs: int = 1
    pruner: str = "auto"
    """`auto` or `none`."""
    sampler: str = "auto"
    """`auto` (prior and surrogate), or `random` and `tpe` for comparison."""
    confirm: int = 3
    """Most fresh seeds per finalist."""
    baseline: tuple[int, float] | None = None
    """(global batch size, learning rate) that the user trains with today."""
    seed: int = 0

    @property
    def named_batches(self) -> tuple[int, ...]:
        """The batch sizes that the user names one by one, ascending: those of a range are powers of two, and left out.

        Example:
            >>> Plan(space={"batch_size": [48, 32]}, baseline=(100, 0.1)).named_batches
            (32, 48, 100)
        """
        asked: Any = self.space.get("batch_size")
        values: Any = asked if isinstance(asked, list) else [asked]
        if type(asked).__name__ == "CategoricalDistribution":
            values = asked.choices
        elif type(asked).__name__ == "IntDistribution":
            values = () if asked.log else range(asked.low, asked.high + 1, asked.step)
        named = [*values, *([] if self.baseline is None else self.baseline[:1])]
        # What is no batch size is left for the space to refuse.
        return tuple(sorted({int(value) for value in named if isinstance(value, (int, float)) and value >= 1}))


@dataclass(frozen=True)
class Proposal:
    """A run that the strategy wants."""

    stage: str
    """`anchor`, `search`, `confirm` or `baseline`."""
    setting: Setting
    seed: int
    end_samples: int
    """Planned end, a multiple of the global batch size."""
    points: tuple[int, ...]
    """Samples at which reports are wanted: rungs and validation points, ascending."""
    continues: int | None = None
    """Number of the trial that this one goes on from."""
    start_samples: int = 0
    noise_samples: int = 0
    """Samples that it may draw, beside those it trains on, to measure gradient noise."""

    @classmethod
    def of(cls, record: TrialRecord) -> Proposal:
        """Return what was asked of a trial, as far as its record says: not the points, nor the noise."""
        setting = Setting(record.global_batch_size, record.learning_rate, dict(record.params))
        end = record.end_samples or record.samples
        return cls(record.stage, setting, record.seed, end, (), record.continues, record.start_samples)

    def spec(self, number: int, micro_batch_size: int, accumulation_steps: int, **more: Any) -> TrialSpec:
        """Return the run as a worker is to do it, with its batch split; `more` is what a proposal does not say."""
        return TrialSpec(
            number=number,
            stage=self.stage,
            global_batch_size=self.setting.global_batch_size,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            learning_rate=self.setting.learning_rate,
            seed=self.seed,
            end_samples=self.end_samples,
            points=self.points,
            params=self.setting.params,
            start_samples=self.start_samples,
            noise_samples=self.noise_samples,
            **more,
        )


@dataclass(frozen=True)
class Forecast:
    """What a search is expected to cost, said before it trains anything."""

    n_trials: int
    """About this many trials, most of them stopped early."""
    full_runs: float
    """At most this much training, in full runs."""
    samples: int
    seconds: float | None
    """From the step-time line, all batch sizes alike; None where no step time is known."""
    seconds_range: tuple[float, float] | None
    """With the fastest batch size alone, and with the slowest alone: which ones the search will turn to is not known yet."""
    n_batches: int
    """Global batch sizes that are considered."""
    batch_range: tuple[int, int]
    learning_rate_range: tuple[float, float]
