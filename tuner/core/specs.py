"""What a search was asked to do, and what the strategy asks for next: plain data between the modules of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .dimension import Dimension, params_of
from .probe_results import StepTimeLine
from .record import Record
from .results import Goal, Setting
from .trial_record import TrialRecord
from .trials import TrialSpec

STEPS_AT_LEAST = 100
"""A default batch size leaves this many optimizer steps in a full run."""
SizesEnd = Literal["memory", "data", "steps", "speed", "probe"]
"""No more fit, there are no more samples, a full run would have too few steps, or larger ones are no faster."""

MOST_TRIED = 16
"""Values of extra dimensions that are tried before a search."""


@dataclass(frozen=True)
class Plan:
    """The arguments of `bstune.search` that the strategy decides by, checked and with defaults filled in."""

    goal: Goal = "time"
    target: float | None = None
    tolerance: float = 0.02
    budget: float = 12.0
    """Most that the study may train, in reference runs, confirmation included."""
    budget_s: float | None = None
    """The same as a duration, in seconds, where the user gave one; it then counts instead."""
    n_trials: int | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    """By name, each a `Dimension`; what is none yet becomes one, so a plan can be made of what a user would write."""
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

    def __post_init__(self) -> None:
        """Read the dimensions that are still as the user gave them."""
        space = {
            name: given if isinstance(given, Dimension) else Dimension.of(given) for name, given in self.space.items()
        }
        object.__setattr__(self, "space", space)

    @property
    def named_batches(self) -> tuple[int, ...]:
        """The batch sizes that the user names one by one, ascending.

        A range without a step is left out: of it, powers of two are tried.

        Example:
            >>> Plan(space={"batch_size": [48, 32]}, baseline=(100, 0.1)).named_batches
            (32, 48, 100)
        """
        asked: Dimension | None = self.space.get("batch_size")
        values: list[Any] = [] if asked is None else list(asked.values)
        if asked is not None and asked.kind == "range" and asked.step is not None:
            values = list(range(int(asked.low), int(asked.high) + 1, int(asked.step)))
        named = [*values, *([] if self.baseline is None else self.baseline[:1])]
        # What is no batch size is left for the space to refuse.
        return tuple(sorted({int(value) for value in named if isinstance(value, (int, float)) and value >= 1}))

    @property
    def middle_params(self) -> dict[str, Any]:
        """The middle of each extra dimension, with which a search begins and which is probed."""
        return next(iter(self.tried_params), {})

    @property
    def tried_params(self) -> tuple[dict[str, Any], ...]:
        """Values of the extra dimensions to try a model and an optimizer with.

        First the middle of each, with which the search begins and which is probed; then each that is listed, and the
        ends of ranges, with all others in the middle. What cannot be built would only fail later, in a trial.

        Example:
            >>> Plan(space={"momentum": [0.8, 0.9], "width": (8, 32), "batch_size": 32}).tried_params[:3]
            ({'momentum': 0.9, 'width': 16}, {'momentum': 0.8, 'width': 16}, {'momentum': 0.9, 'width': 8})
        """
        extra = {name: given for name, given in self.space.items() if name not in ("batch_size", "learning_rate")}
        tried = [params_of(extra, lambda _, one: one.at(0.5))] if extra else []
        for name, dimension in extra.items():
            wanted = {other: allowed[0] for other, allowed in dimension.when}
            for value in dimension.values or (dimension.low, dimension.high):
                wanted[name] = value
                params = params_of(extra, lambda other, one, wanted=wanted: wanted.get(other, one.at(0.5)))  # type: ignore[misc]
                if params not in tried:
                    tried.append(params)
        return tuple(tried[:MOST_TRIED])


@dataclass(frozen=True)
class Learned:
    """What an earlier study of the same model has found: a new one begins there, of other data, size or name."""

    study: str
    batch_size: int
    """The global batch size that was recommended."""
    learning_rate: float
    slope: float | None = None
    """Of the learning rate: double the batch, multiply it by 2**slope."""
    slope_sd: float | None = None
    step_time_line: StepTimeLine | None = None
    """Of the same kind of device: counts where nothing was measured yet."""
    differs: str = "data"
    """What that study had another of: `data`, `epochs`, `code`, or its `name` only."""


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
class Forecast(Record):
    """What a search is expected to cost, said before it trains anything."""

    n_trials: int | None
    """About this many trials, most of them stopped early; None where the budget is a duration and no step was timed."""
    reference_runs: float | None
    """About this much training is left, in full runs at the reference batch. None where nobody knows yet how many of
    them a duration is.
    """
    reference_batch: int
    seconds: float | None
    """The same in seconds; None where no step time is known, and the budget is no duration."""
    n_batches: int
    """Global batch sizes that are considered."""
    batch_range: tuple[int, int]
    learning_rate_range: tuple[float, float]
    usual_reference_runs: tuple[float, float] | None = None
    """Between these it ends, if anything is learned; None where step times are not known, where few settings are
    searched, where nothing is confirmed, and where it ends by `n_trials`.
    """
    usual_seconds: tuple[float, float] | None = None
    """The same in seconds, where the budget is a duration, which is kept in seconds; else None."""
    most_reference_runs: float | None = None
    """What the budget leaves: of a large one a search plans to use less. None where `reference_runs` is."""
    most_seconds: float | None = None
    """The same in seconds; None where `seconds` is."""
    sizes_end_by: SizesEnd | None = None
    """Why no larger batch size is considered; None where the user has named the sizes."""
    probe_seconds: float = 0.0
    """What it took to have a probe, which no budget counts; next to nothing where one was stored."""
    over: str | None = None
    """By what the search has ended (`budget`, `n_trials`, `converged`), where nothing is left to run; `no_signal` where
    no trial has a finite loss, so that there is nothing to recommend.
    """
