"""What a finding may rest on: the probe, the trials of a search, and what was measured on the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.diagnosis import Judgement
from ..core.examination import Look
from ..core.probe_results import ProbeResult
from ..core.results import USUAL_BATCH, Recommendation, SearchResult, Setting
from ..core.trial_record import TrialRecord
from ..core.trials import Facts
from ..theory.scaling import ANCHOR_BATCH, DEFAULT_LEARNING_RATE, SLOPE_PRIOR

UNKNOWN_RATE = 1e-3


@dataclass(frozen=True)
class Known:
    """All that is known when findings are judged; each part may be missing."""

    facts: Facts | None = None
    probe: ProbeResult | None = None
    result: SearchResult | None = None
    records: tuple[TrialRecord, ...] = ()
    looks: tuple[Look, ...] = ()
    """What was measured on the model, in the order of the measurements."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """By measurement: why it was not made."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """By measurement: the reference runs that it would have taken, where the budget did not allow them."""
    left_out_runs: float = 0.0
    """The reference runs that all of these would have taken."""
    cost_s: Mapping[str, float] = field(default_factory=dict)
    """By measurement: seconds that it took."""

    def __post_init__(self) -> None:
        """Take several processes for one: it trains as they do, with more accumulation, and is looked at alone."""
        if self.facts is not None and self.facts.world_size > 1:
            object.__setattr__(self, "facts", replace(self.facts, world_size=1))

    @property
    def best(self) -> Recommendation | None:
        """What the search recommends."""
        return None if self.result is None else self.result.recommendation

    @property
    def batch(self) -> int:
        """The global batch size that the model is looked at with: the recommended one, else 32 or what there is."""
        if self.best is not None:
            return self.best.global_batch_size
        most = [USUAL_BATCH]
        most += [] if self.facts is None else [max(1, self.facts.n_samples)]
        most += [] if self.probe is None else [self.probe.micro_batch_size]
        return min(most)

    @property
    def setting(self) -> Setting:
        """The setting that the model is looked at with: the recommended one, else a usual one."""
        if self.best is not None:
            return Setting(self.best.global_batch_size, self.best.learning_rate, dict(self.best.params))
        return Setting(
            self.batch, usual_rate("other" if self.facts is None else self.facts.optimizer_family, self.batch)
        )

    def looked(self, measurement: str) -> list[Look]:
        """Return what a measurement has found, at each moment at which it came to an end."""
        return [look for look in self.looks if look.measurement == measurement and look.failed is None]

    @property
    def measured(self) -> set[str]:
        """What was tried to measure, in vain or not."""
        return {look.measurement for look in self.looks} | set(self.unmeasured)

    def why_not(self, measurement: str) -> str:
        """Return why a measurement has found nothing."""
        failed = [look.failed for look in self.looks if look.measurement == measurement and look.failed]
        return failed[0] if failed else self.unmeasured.get(measurement, "it was not measured")


@dataclass(frozen=True)
class Ruling:
    """What a finding's function returns: the parts of a `Finding` that are not the same for every model."""

    verdict: Judgement
    found: str
    advice: str = ""
    figure: float | None = None
    unit: str = ""
    low: float | None = None
    """With `high` a 90 % interval; both None where the figure is counted."""
    high: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def usual_rate(family: str, batch: int) -> float:
    """Return a learning rate to begin with.

    Example:
        >>> usual_rate("adam", 256)
        0.002
    """
    rate = DEFAULT_LEARNING_RATE.get(family, UNKNOWN_RATE)
    return float(rate * (batch / ANCHOR_BATCH) ** SLOPE_PRIOR[family][0])


def ratio_ruling(
    verdict: Judgement,
    found: str,
    advice: str,
    logs: tuple[float, float, float],
    unit: str,
    data: Mapping[str, Any] | None = None,
    *,
    shown: Callable[[float], float] = math.exp,
) -> Ruling:
    """Return a ruling on a ratio: `logs` are the logarithms of the figure and the ends of its 90 % interval.

    `shown` makes of each what people read.
    """
    figure, low, high = map(shown, logs)
    return Ruling(verdict, found, advice, figure, unit, low, high, data or {})


def percent_above(log_ratio: float) -> float:
    """Return by how many percent a ratio is above 1, given its logarithm."""
    return 100 * math.expm1(log_ratio)


def unknown(why: str, advice: str = "") -> Ruling:
    """Return that a claim could not be judged, with the reason and what would help."""
    return Ruling("cannot tell", why, advice)


def unmeasured(known: Known, measurement: str) -> Ruling:
    """Return that a claim could not be judged because a measurement found nothing, with the reason and what to do."""
    why = known.why_not(measurement)
    if measurement in known.prices:
        least = math.ceil(known.prices[measurement] + 0.05)
        return unknown(why, f"Ask for it alone: bstune diagnose MODEL --only NAME --budget {least}")
    return unknown(why, "Measure it: bstune diagnose MODEL" if measurement not in known.measured else "")


def beyond(low: float, high: float, bound: float) -> Judgement:
    """Return `holds` where an interval lies above a bound, `does not hold` where it lies below, else `cannot tell`."""
    return "holds" if low > bound else "does not hold" if high < bound else "cannot tell"


def below(low: float, high: float, bound: float) -> Judgement:
    """Return `holds` where an interval lies below a bound, `does not hold` where it lies above, else `cannot tell`."""
    return beyond(-high, -low, -bound)


def sizes_of(values: Sequence[int]) -> str:
    """Return batch sizes as text."""
    return ", ".join(f"{value:,}" for value in values)
