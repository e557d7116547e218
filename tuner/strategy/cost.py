"""What training costs: the one place that turns samples of a setting into seconds, and says where that is not known.

Samples are the clock of comparisons; seconds are what people pay. They come from the step-time line of the probe of a
kind of device, with the steps as they are run there: a global batch that does not fit is accumulated, which brings no
speed. Batches of one kind of device are compared by one `Cost`; each kind has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.probe_results import ProbeResult, StepTimeLine
from ..core.trials import Facts
from ..theory.scaling import split_batch


@dataclass(frozen=True)
class Cost:
    """What training costs on one kind of device; every time and rate is None where no step time is known."""

    facts: Facts
    micro_max: int | None
    """The largest micro-batch that fits; None where nobody knows, and batches are then run whole."""
    line: StepTimeLine | None

    @classmethod
    def of(cls, facts: Facts, probe: ProbeResult | None) -> Cost:
        """Return the cost by the probe of a kind of device, or without one."""
        return cls(facts, None, None) if probe is None else cls(facts, probe.micro_batch_size, probe.step_time_line)

    @property
    def known(self) -> bool:
        """Whether seconds are known."""
        return self.line is not None

    def split(self, batch: int) -> tuple[int, int]:
        """Return the micro-batch size and the accumulation steps with which a global batch is run."""
        return split_batch(batch, batch if self.micro_max is None else self.micro_max)

    def step_s(self, batch: int, split: tuple[int, int] | None = None) -> float | None:
        """Return the seconds of an optimizer step; `split` is how a run was split, where that may differ from now."""
        return None if self.line is None else self.line.step_s(*(split or self.split(batch)))

    def samples_per_s(self, batch: int, split: tuple[int, int] | None = None) -> float | None:
        """Return the samples that are trained in a second."""
        step_s = self.step_s(batch, split)
        return None if step_s is None else batch / step_s

    def seconds(self, batch: int, samples: float, split: tuple[int, int] | None = None) -> float | None:
        """Return the seconds of so many samples.

        Example:
            >>> facts = Facts("digits", "supervised", n_samples=1024, epochs=2)
            >>> cost = Cost(facts, 32, StepTimeLine(0.01, 0.0001, 100.0))
            >>> round(cost.seconds(128, 1024), 4)  # 8 steps of 4 times 13.2 ms.
            0.4224
        """
        samples_per_s = self.samples_per_s(batch, split)
        return None if samples_per_s is None else samples / samples_per_s

    def full_run_s(self, batch: int) -> float | None:
        """Return the seconds of a full run, which is of whole steps."""
        step_s = self.step_s(batch)
        return None if step_s is None else self.facts.full_run_steps(batch) * step_s
