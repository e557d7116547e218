"""The search for the largest size that fits: arithmetic only, so it needs neither torch nor a process.

`Growth` asks for sizes and is told what each attempt said. It keeps a bracket, the largest size that was seen to fit
and the smallest above it that was seen to fail, and steers by a line through what was measured: peak memory against the
size, or against what a predictor (a replay of traced steps) says of the size. The line only chooses what to try. What
is returned was run, and so was what the line is trusted by: the proof `model` needs a prediction of this run that came
true.

    growth = Growth(Bounds(min_batch=1, max_batch=60_000), budget_bytes=8 * 2**30)
    while (size := growth.next_size()) is not None:
        growth.add(attempt(size))
    growth.answer.size, growth.answer.proof
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..core.errors import ArgumentError
from ..core.probe_results import LimitedBy, Proof
from .memory_fit import MemoryFit, PeakLine, SizeTried

SECANT_GROWTH_LIMIT = 8
"""Largest jump without a predictor. A line through small sizes under-predicts (peak memory is convex in the batch)."""
FIRST_TARGET = 0.97
"""Share of the budget to aim at while no prediction of this run has come true."""
FIRST_SHARE = 0.4
"""Share of what is left of the budget that the second size may take, if memory grows with the samples."""
FAR = 8.0
"""A measured slope leads straight to the answer if that lies at most this many times its own rise further up."""
WRONG_BY = 3.0
"""A first far jump leaves room for a predictor whose increments are too small by this factor."""


@dataclass(frozen=True)
class Bounds:
    """Which sizes may be tried: the multiples of `multiple_of` from `min_batch` to `max_batch`."""

    min_batch: int = 1
    max_batch: int = 2**62
    """Already the least of what the user and the data set allow."""
    multiple_of: int = 1
    cap_reason: LimitedBy = "dataset"
    """What `max_batch` came from: `dataset` or `max_batch`."""

    def __post_init__(self) -> None:
        """Refuse bounds between which there is no size."""
        if self.multiple_of < 1 or self.min_batch < 1 or self.highest < self.lowest:
            raise ArgumentError(
                f"No size to try: expected a multiple of {self.multiple_of} between {self.min_batch} and "
                f"{self.max_batch}. Lower multiple_of or min_batch, or use a larger data set or max_batch."
            )

    @property
    def lowest(self) -> int:
        """The smallest size that may be tried."""
        return -(-self.min_batch // self.multiple_of) * self.multiple_of

    @property
    def highest(self) -> int:
        """The largest size that may be tried."""
        return self.max_batch // self.multiple_of * self.multiple_of


@dataclass(frozen=True)
class Answer:
    """The largest size that was seen to fit, and how it is known that no larger one does."""

    size: int | None
    """None: nothing fits, or nothing has been seen to fit yet."""
    proof: Proof
    limited_by: LimitedBy
    predicted_bytes: int | None = None
    """Peak that was predicted for this size before it was run; None where nothing was predicted."""
    fixed_bytes: float | None = None
    bytes_per_sample: float | None = None
    """Peak memory near the answer as a line: fixed_bytes + bytes_per_sample * size. None with one measurement."""
    noise_bytes: float = 0.0
    """Two peaks that differ by less than this count as equal."""
    needed_bytes: int | None = None
    """Where nothing fits: what the smallest size was measured or predicted to need."""
    complete: bool = True
    """False: time or attempts ran out first, so a larger size may fit."""


class _Choice(NamedTuple):
    size: int | None
    by_line: bool = False
    proof: Proof = "bracket"
    limited_by: LimitedBy = "memory"
    complete: bool = True


class Growth:
    """Finds the largest size that fits in a bounded number of attempts.

    Args:
        bounds: The sizes that may be tried.
        budget_bytes: What a peak may be at most. It may be lowered or raised later by setting the attribute.
        noise_bytes: Peaks that differ by less count as equal. More is learned from repeats and from peaks that fall
            as the size grows.
        settling_bytes: Peaks may rise by so much once, as the size grows, beside what the predictor sees of them: what
            libraries take when they are first given work enough, and keep.
        predict: Peak bytes expected at a size: its shape matters, a wrong constant or scale is corrected by
            measurements. `inf` forbids a size. It may be set later, as the attribute `predictor`.
            The attribute `fixed_bytes` may be set after the first attempt: bytes of its peak that surely do not depend
            on the size, such as the interpreter, weights and optimizer state. The second size is then larger, and
            teaches more.
        growth_limit: No jump to more than this many times the largest size seen to fit, unless a predictor sees three
            quarters of the budget left there.
        max_attempts: The search ends after so many attempts with the best size so far.
        first_sizes: The sizes to begin with; default two small ones of which neither is 1, where kernels and branches
            differ.

    Raises:
        ArgumentError: A first size is outside the bounds.
    """

    def __init__(
        self,
        bounds: Bounds,
        *,
        budget_bytes: int,
        noise_bytes: float = 0.0,
        settling_bytes: float = 0.0,
        predict: Callable[[int], float] | None = None,
        growth_limit: int = 64,
        max_attempts: int = 25,
        first_sizes: tuple[int, ...] = (),
    ) -> None:
        """Begin with nothing known."""
        self.bounds = bounds
        self.budget_bytes = budget_bytes
        self.predictor = predict
        self.growth_limit = growth_limit
        self.max_attempts = max_attempts
        for size in first_sizes:
            if not bounds.lowest <= size <= bounds.highest or size % bounds.multiple_of:
                raise ArgumentError(
                    f"The first size {size} is not a multiple of {bounds.multiple_of} in the bounds {bounds}."
                )
        self.first_sizes = first_sizes or _small_sizes(bounds)
        self.history: list[SizeTried] = []
        self.fixed_bytes: float | None = None
        self._given_noise_bytes = noise_bytes
        self._settling_bytes = settling_bytes
        self._lowest = bounds.lowest
        self._stopped: Literal["timeout", "plateau"] | None = None
        self._predicted: dict[int, int] = {}
        self._pending: _Choice | None = None
        self._bisect_next = False

    # --- what is asked and told ---------------------------------------------------------------------------------------

    def next_size(self) -> int | None:
        """Return the size to try next, or None when the answer is known. Asking twice changes nothing."""
        choice = self._pending = self._choose()
        if choice.size is not None and choice.size not in self._predicted:
            line = self.fit.line()
            if line is not None and math.isfinite(expected := line.at(choice.size)):
                self._predicted[choice.size] = max(0, round(expected))
        return choice.size

    def add(self, measured: SizeTried) -> None:
        """Take in what an attempt said, also at a size that was tried before: a size fits if every attempt at it did.

        Raises:
            ValueError: The outcome is `error`: that is the user's bug, and no statement about memory.
        """
        if measured.outcome == "error":
            raise ValueError(
                "An attempt that ended in the user's error says nothing about memory; show the error instead."
            )
        old_low, old_high = self.largest_fit, self.smallest_failure
        self.history.append(measured)
        if (
            measured.outcome == "limit" and measured.size == 1
        ):  # As BatchNorm does: one sample is too few, not too many.
            step = self.bounds.multiple_of
            self._lowest = max(self._lowest, -(-2 // step) * step)
        self._learn_pace(old_low, old_high)
        self._pending = None

    def stop(self, reason: Literal["timeout", "plateau"]) -> None:
        """End the search here: time is up, or a larger size would bring nothing."""
        self._stopped = reason

    @property
    def expects_answer(self) -> bool:
        """Whether the size that was last asked for is expected to be the answer, and deserves a thorough attempt."""
        if self._pending is None or self._pending.size is None:
            return False
        successor, line = self._pending.size + self.bounds.multiple_of, self.fit.line()
        return successor > self.bounds.highest or (line is not None and line.at(successor) > self.budget_bytes)

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def answer(self) -> Answer:
        """The best that is known so far; final once `next_size` has returned None."""
        low = self.largest_fit
        choice = self._choose()
        limited_by, proof = choice.limited_by, choice.proof
        if low is None:
            smallest = min((m for m in self.history if m.size >= self._lowest), key=lambda m: m.size, default=None)
            return Answer(None, proof, limited_by, needed_bytes=self.fit.needed(smallest), complete=choice.complete)
        line = self.fit.line()
        fixed = per_sample = None
        peak = self.fit.peak(low)
        if line is not None and peak is not None:
            below = max(self._lowest, low - max(self.bounds.multiple_of, low // 50))
            above = low if below < low else low + self.bounds.multiple_of
            per_sample = line.slope * (line.shape(above) - line.shape(below)) / (above - below)
            fixed = peak - per_sample * low
        return Answer(
            size=low,
            proof=proof,
            limited_by=limited_by,
            predicted_bytes=self._predicted.get(low),
            fixed_bytes=fixed,
            bytes_per_sample=per_sample,
            noise_bytes=self.fit.noise_bytes,
            complete=choice.size is None and choice.complete,
        )

    @property
    def fit(self) -> MemoryFit:
        """What the measurements say so far."""
        return MemoryFit(
            tuple(self.history),
            self.budget_bytes,
            self.predictor,
            self._given_noise_bytes,
            self._settling_bytes,
            self._lowest,
        )

    @property
    def largest_fit(self) -> int | None:
        """The largest size at which every attempt fitted."""
        return self.fit.largest_fit

    @property
    def smallest_failure(self) -> int | None:
        """The smallest size above `largest_fit` that failed."""
        return self.fit.smallest_failure

    # --- the choice of the next size ----------------------------------------------------------------------------------

    def _choose(self) -> _Choice:
        low, high = self.largest_fit, self.smallest_failure
        settled = self._settled(low, high)
        if settled is not None:
            return settled
        if self._stopped is not None:
            return _Choice(None, proof="cap", limited_by=self._stopped, complete=self._stopped == "plateau")
        if len(self.history) >= self.max_attempts:
            return _Choice(None, proof="cap", limited_by="timeout", complete=False)
        tried = {m.size for m in self.history}
        for size in self.first_sizes:
            if size not in tried and (low or 0) < size and (high is None or size < high):
                return _Choice(max(size, self._second_size(low)))
        if low is None:
            start = high if high is not None else self.first_sizes[0]
            return _Choice(max(self._lowest, self._grid(start // 2)) if high is not None else start)
        return self._grow(low, high)

    def _settled(self, low: int | None, high: int | None) -> _Choice | None:
        """Return the final choice if the answer follows from what was run alone."""
        step = self.bounds.multiple_of
        if self._lowest > self.bounds.highest or (low is None and high is not None and high <= self._lowest):
            memory = any(m.outcome in ("oom", "ok") and not self.fit.fits(m.size) for m in self.history)
            return _Choice(
                None, proof="bracket" if memory else "cap", limited_by="memory" if memory else self.bounds.cap_reason
            )
        if low is not None and low + step > self.bounds.highest:
            return _Choice(None, proof="cap", limited_by=self.bounds.cap_reason)
        if low is not None and high is not None and high - low <= step:
            line = self.fit.line()
            if all(m.outcome == "limit" for m in self.history if m.size == high and not m.fits):
                return _Choice(None, proof="cap", limited_by="max_batch")
            seen = self.fit.peak(high) is not None  # One that died failed beyond doubt.
            if line is not None and seen and line.at_least(high) - line.peak < self.fit.noise_bytes:
                return _Choice(None, proof="noise")
            return _Choice(None, proof="bracket")
        return None

    def _second_size(self, low: int | None) -> int:
        """Return a size that is large enough to show the slope and small enough to fit, from one measured peak."""
        peak = self.fit.peak(low) if low is not None else None
        if low is None or peak is None or self.fixed_bytes is None or len(self.history) > 1:
            return 0
        steepest = max(peak - self.fixed_bytes, peak / 1000, 1) / low  # What was over before it was seen has no peak.
        further = FIRST_SHARE * (self.budget_bytes - peak) / steepest
        return min(self._grid(int(low + further)), self._grid(low * self.growth_limit), self.bounds.highest)

    def _grow(self, low: int, high: int | None) -> _Choice:
        """Choose a size above `low`: by the line while it leads, by halving the bracket where it does not."""
        step = self.bounds.multiple_of
        middle = _Choice(self._grid((low + high) // 2)) if high is not None else None
        line = self.fit.line()
        if line is None:
            return middle or _Choice(min(self.bounds.highest, 2 * low))
        proof = self._excluded(line, low, high)
        if proof == "noise" and self._given_noise_bytes < self.fit.noise_bytes and not self.fit.repeats:
            return _Choice(low)  # The noise is only suspected, from a peak that fell: a repeat tells.
        if proof is not None:
            return _Choice(None, proof=proof)
        if middle is not None and high is not None:
            needed = math.ceil(math.log2(max(2, (high - low) // step)))
            if self._bisect_next or self.max_attempts - len(self.history) <= needed:
                return middle
        traced = line.from_predictor and line.slope > 0
        reach = self._grid(
            max(low * (self.growth_limit if traced else min(self.growth_limit, SECANT_GROWTH_LIMIT)), low + step)
        )
        top = min(self.bounds.highest if high is None else high - step, reach)
        if traced and high is None:
            safe = self._largest(
                lambda n: WRONG_BY * (line.at(n) - line.peak) <= self.budget_bytes - line.peak, low, self.bounds.highest
            )
            top = max(top, safe)
        left = self.budget_bytes - line.peak
        margin = line.error * left if line.proven or (line.from_predictor and left <= FAR * line.rise) else math.inf
        if margin < line.at(low + step) - line.peak:
            margin = 0.0  # Less than one more size: aim at the answer itself.
        careful = self.budget_bytes - min(margin, (1 - FIRST_TARGET) * self.budget_bytes)
        for target in (careful, self.budget_bytes):
            size = self._largest(lambda n, target=target: line.at(n) <= target, low, top)  # type: ignore[misc]
            if size > low:
                return _Choice(size, by_line=True)
        return _Choice(low + step, by_line=True)  # The line, not proven, says that not even the next size fits: see.

    def _excluded(self, line: PeakLine, low: int, high: int | None) -> Proof | None:
        """Return the proof that the successor of `low` does not fit or cannot be told from it, if there is one."""
        successor, noise = low + self.bounds.multiple_of, self.fit.noise_bytes
        indistinct = 0 < line.at(successor) - line.peak <= noise
        if indistinct and (
            self.budget_bytes - line.peak <= noise or (high is not None and line.at(high) - line.peak <= noise)
        ):
            return "noise"
        excess = line.at_least(successor) - self.budget_bytes
        if not line.proven or excess <= (0 if line.from_predictor else noise):
            return None
        return "noise" if indistinct else "model"

    def _largest(self, fits: Callable[[int], bool], low: int, top: int) -> int:
        """Return the largest multiple in (low, top] that `fits`, or `low`; look a little past a first boundary."""
        step = self.bounds.multiple_of

        def boundary(a: int, b: int) -> int:  # fits(a), not fits(b); both count steps from low.
            while b - a > 1:
                middle = (a + b) // 2
                a, b = (middle, b) if fits(low + middle * step) else (a, middle)
            return a

        count = (top - low) // step
        if count < 1:
            return low
        if fits(top):
            return top
        best = boundary(0, count)
        if (
            self.predictor is not None
        ):  # An allocator's replay is not monotone: fragmentation comes and goes with the size.
            further = [
                n for j in range(1, 13) if best < (n := round((low // step + best) * 1.06**j) - low // step) < count
            ]
            again = [n for n in further if fits(low + n * step)]
            if again:
                best = boundary(again[-1], next((n for n in further if n > again[-1]), count))
        return low + best * step

    def _learn_pace(self, old_low: int | None, old_high: int | None) -> None:
        """After a step by the line that did not halve the bracket, halve it; so the number of attempts is bounded."""
        low, high = self.largest_fit, self.smallest_failure
        by_line = self._pending is not None and self._pending.by_line
        bracketed = low is not None and high is not None and old_low is not None and old_high is not None
        self._bisect_next = by_line and bracketed and 2 * ((high or 0) - (low or 0)) > (old_high or 0) - (old_low or 0)

    # --- small things -------------------------------------------------------------------------------------------------

    def _grid(self, size: int) -> int:
        return size // self.bounds.multiple_of * self.bounds.multiple_of


def _small_sizes(bounds: Bounds) -> tuple[int, ...]:
    """Return two small sizes, 3 and 5 where all are allowed: at 1, squeezed dimensions give another step."""
    step = bounds.multiple_of
    first = min(max(bounds.lowest, -(-3 // step) * step), bounds.highest)
    second = min(-(-math.ceil(1.5 * first) // step) * step, bounds.highest)
    return (first, second) if second > first else (first,)
