"""A schedule that lets the batch grow where another would let the learning rate fall."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ..objectives.fingerprint import optimizer_family
from ..objectives.schedule import SCHEDULES, learning_rate_factor
from .core.checks import Checks
from .core.errors import ArgumentError
from .core.probe_results import ProbeResult
from .core.take_home import RampForecast
from .report.reasons import not_tried
from .theory.ramp import Place, Ramp, forecast
from .theory.scaling import split

if TYPE_CHECKING:
    import torch

POWERS = {"seesaw": 0.5, "constant_rate": 1.0}
DEFAULT_TOP = 8
"""Times the first batch size, where nothing else is said."""


class BatchRamp:
    """Grows the batch where a schedule would let the learning rate fall, for as many samples and fewer updates.

    It is used like a scheduler of PyTorch's, and also says the batch size of the next step:

        ramp = bstune.BatchRamp(optimizer, batch_size=32, total_samples=epochs * len(train_data))
        while ramp.samples < ramp.total_samples:
            for _ in range(ramp.accumulation_steps):
                x, y = next_micro_batch(ramp.micro_batch_size)
                (loss(model(x), y) / ramp.accumulation_steps).backward()
            optimizer.step()
            optimizer.zero_grad()
            ramp.step()

    With `rule="seesaw"`, for optimizers like Adam, the batch doubles where the rate would halve, and the rate falls by
    the square root of 2 (Meterez et al. 2025, arXiv:2510.14717). With `rule="constant_rate"`, for SGD, the rate stays
    (Smith et al. 2018, arXiv:1711.00489). In between, and once the batch is as large as it may be, the rate falls as
    the schedule has it. Both rest on gradients that are mostly noise: let the batch grow no further than the critical
    batch (`SearchResult.batch_answer.b_crit`).

    Attributes:
        samples: Training samples so far.
        total_samples: Where the schedule ends; the last step may end a little after it.
        batch_size: Global batch size of the next step.
        micro_batch_size: Samples in one forward and backward pass of the next step.
        accumulation_steps: Micro-batches of the next step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        total_samples: int,
        max_batch_size: int | None = None,
        schedule: str | Callable[[float], float] = "cosine",
        rule: Literal["auto", "seesaw", "constant_rate"] = "auto",
        growth: int = 2,
        warmup_samples: int = 0,
        micro_max: int | None = None,
        world_size: int = 1,
        probe: ProbeResult | None = None,
    ) -> None:
        """Set the learning rates of the first step.

        Args:
            optimizer: Its learning rates are those of the schedule's height.
            batch_size: Global batch size at the beginning.
            total_samples: Training samples of the whole run.
            max_batch_size: The largest global batch; by default 8 times the first.
            schedule: `cosine`, `linear`, `wsd`, or a function of progress in [0, 1] that returns a factor.
            rule: `seesaw`, `constant_rate`, or `auto`: the latter for SGD, the former for all others.
            growth: The batch grows by this whenever the rate would fall by as much.
            warmup_samples: Samples over which the rate rises in a line; the schedule begins after them.
            micro_max: Most samples that fit in one forward and backward pass; by default what the probe has tried, else
                the first batch, so that the larger ones are accumulated. The probe of a search tries no more than the
                search uses: where more may fit, a warning says so.
            world_size: Processes that train together.
            probe: What `bstune.probe` returned, or a search has (`SearchResult.probe`): for the micro-batch, and for
                seconds and memory in `forecast`. Where sizes count tokens, each micro-batch then holds the longest
                sample.

        Raises:
            ArgumentError: An argument is wrong on its face, or the first batch does not split as it should.
        """
        checks = Checks()
        first = checks.integer("batch_size", batch_size, 1)
        largest = DEFAULT_TOP * first if max_batch_size is None else checks.integer("max_batch_size", max_batch_size, 1)
        total = checks.integer("total_samples", total_samples, 1)
        warmup = checks.integer("warmup_samples", warmup_samples, 0)
        growth = checks.integer("growth", growth, 2)
        checks.choice("rule", rule, ("auto", *POWERS))
        if not callable(schedule):
            checks.choice("schedule", schedule, SCHEDULES)
        checks.done()
        if largest < first:
            raise ArgumentError(f"max_batch_size={largest} is less than batch_size={first}: expected as much or more.")
        if warmup >= total:
            raise ArgumentError(f"warmup_samples={warmup}: expected fewer than total_samples={total}.")
        if rule == "auto":
            rule = "constant_rate" if optimizer_family(type(optimizer).__name__) == "sgd" else "seesaw"
        self.optimizer = optimizer
        self.rule = rule
        self.base_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._probe = probe
        self._micro_max = micro_max or (first if probe is None else probe.micro_batch_size)
        if not micro_max and probe is not None and (said := not_tried(probe, largest // world_size)):
            warnings.warn(said, stacklevel=2)
        self._world_size = world_size
        self._longest = 1 if probe is None else probe.longest
        factor_at = functools.partial(learning_rate_factor, schedule)
        self._place = Place(Ramp(first, largest, total, factor_at, POWERS[rule], growth, warmup))
        self._apply()

    @property
    def samples(self) -> int:
        """Training samples so far."""
        return self._place.samples

    @property
    def total_samples(self) -> int:
        """Training samples of the whole run."""
        return self._place.ramp.total_samples

    @property
    def updates(self) -> int:
        """Optimizer steps so far."""
        return self._place.updates

    def step(self) -> None:
        """Call it after `optimizer.step()`: it counts the samples, and sets rate and batch of the next step."""
        self._place.step()
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the learning rates of the next step, one for each parameter group."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return where the ramp is, as plain numbers; what it is made of is given to the constructor again."""
        place = self._place
        return {
            "samples": place.samples,
            "updates": place.updates,
            "batch_size": place.batch_size,
            "highest": place.highest,
            "base_lrs": list(self.base_lrs),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        state = dict(state_dict)
        self.base_lrs = list(state.pop("base_lrs"))
        self._place = Place(self._place.ramp, **state)
        self._apply()

    def forecast(self, probe: ProbeResult | None = None) -> RampForecast:
        """Return what the whole ramp saves, beside the same schedule at the first batch size.

        Args:
            probe: For seconds and memory; by default the one that the ramp was made with.
        """
        probe = probe or self._probe
        line = None if probe is None else probe.step_time_line

        def peak_bytes(micro: int) -> int | None:
            if probe is None or micro > probe.micro_batch_size:
                return None
            if micro == probe.micro_batch_size or probe.memory_line is None:
                return probe.peak_bytes
            return int(probe.memory_line.fixed_bytes + micro * probe.memory_line.bytes_per_sample)

        return forecast(self._place.ramp, self._micro_max, self._world_size, line, peak_bytes, longest=self._longest)

    def _apply(self) -> None:
        place = self._place
        self.batch_size = place.batch_size
        self.micro_batch_size, self.accumulation_steps = split(
            place.batch_size, self._micro_max, self._world_size, longest=self._longest
        )
        factor = place.rate_factor
        self._last_lr = [base * factor for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
