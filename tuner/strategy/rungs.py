"""Rungs in samples, the same for all batch sizes, and what stops a trial besides a better use of the budget.

Trials are compared at equal samples, never at equal optimizer steps: at equal steps a large batch has seen more data
and looks better than it is (Spearman with the final rank 0.86 at equal samples, 0.60 at equal steps; LCBench).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..core.trials import Facts

RUNGS = (1 / 27, 1 / 9, 1 / 3, 1.0)
"""Shares of a full run at which trials are compared and some stopped."""
MIN_STEPS = 6
"""A rung counts from so many optimizer steps on: before, the loss says more of the start than of the setting."""
SCHEDULED = frozenset({"linear", "cosine", "wsd", "callable"})
"""Schedules under which the prefix of a longer run is no shorter run."""
REDUCTION = 3
"""Factor between rungs, and one over the share that a plain race lets pass."""


@dataclass(frozen=True)
class Rungs:
    """Where trials of one objective report and are judged, in samples."""

    full_samples: float
    evals: int
    samples: tuple[int, ...]

    @classmethod
    def of(cls, facts: Facts) -> Rungs:
        """Return the rungs of an objective."""
        full = facts.full_run_samples
        return cls(full, facts.evals, tuple(max(1, round(full * share)) for share in RUNGS))

    def end_of(self, batch: int, share: float = 1.0) -> int:
        """Return the planned end of a run over this share of a full run: whole steps, at least one."""
        return max(1, math.floor(self.full_samples * share / batch + 1e-9)) * batch

    def reach(self, point: int, batch: int, end: int) -> int:
        """Return the samples at which a run of this batch size has passed `point`."""
        return min(math.ceil(point / batch) * batch, end)

    def points(self, end: int, start: int = 0) -> tuple[int, ...]:
        """Return the samples at which reports are wanted up to a planned end: rungs, and equal points of a full run.

        A shorter run has fewer of them: validations cost seconds as training does, and only its end is compared.
        """
        equal = [round(self.full_samples * k / self.evals) for k in range(1, self.evals + 1)]
        last = next((rung for rung in self.samples if rung >= end), end)
        inner = {point for point in (*self.samples, *equal) if start < point < end}
        return (*sorted(inner), max(last if last - end < end else end, end))

    def counted(self, batch: int) -> tuple[int, ...]:
        """Return the rungs at which a batch size has made enough steps to be judged; always the last."""
        return _counted(self.samples, batch)

    def after(self, point: int, batch: int) -> int | None:
        """Return the rung that counts next after `point`; None where that is the last."""
        return next((rung for rung in self.counted(batch) if rung > point), None)


@cache
def _counted(rungs: tuple[int, ...], batch: int) -> tuple[int, ...]:
    return tuple(rung for rung in rungs if rung / batch >= MIN_STEPS) or rungs[-1:]


def diverged(loss: float) -> bool:
    """Return whether a loss ends a trial at once."""
    return not math.isfinite(loss)


def survives(value: float, others: Sequence[float]) -> bool:
    """Return whether a plain race lets a trial pass a rung: the best third of all that came so far, from four on.

    Others are all values at that rung, those of stopped trials included.
    """
    if not math.isfinite(value):
        return False
    values = sorted([value, *(x if math.isfinite(x) else math.inf for x in others)])
    return len(values) <= REDUCTION or value <= values[max(1, math.ceil(len(values) / REDUCTION)) - 1]
