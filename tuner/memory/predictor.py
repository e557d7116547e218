"""Predictions from traced attempts for sizes that were not run.

Collects traces while a probe runs, and turns them into a predictor.
"""

from __future__ import annotations

from collections.abc import Callable

from .caching_allocator import ReservedPeak
from .trace import Trace, TraceModel, fitted

MAX_TRACED = 3
"""Where three sizes show three sequences of allocations, a fourth is not expected to help."""


class Foresight:
    """Decides which attempts to trace, and predicts the peak from their traces.

    Args:
        eval_size_of: The validation batch size that belongs to a micro-batch size.
        reserved_bytes: On CUDA: what context and caching allocator may take together; the predictor then replays the
            allocator. None: live bytes count.

    Attributes:
        model: What the traces say, once two of them pair.
        why_not: Why there is no model (yet), in words.
        predictor: Peak bytes at a size, for `Growth`; a constant may be missing. None while there is no model.
    """

    def __init__(self, eval_size_of: Callable[[int], int], *, reserved_bytes: int | None = None) -> None:
        """Begin without a trace."""
        self.model: TraceModel | None = None
        self.why_not: str | None = None
        self.predictor: Callable[[int], float] | None = None
        self._eval_size_of = eval_size_of
        self._reserved_bytes = reserved_bytes
        self._traces: list[Trace] = []
        self._given_up = False

    @property
    def wants_trace(self) -> bool:
        """Whether the next attempt is to be traced."""
        return self.model is None and not self._given_up and len(self._traces) < MAX_TRACED

    def add(self, trace: Trace, *, context_bytes: int = 0) -> None:
        """Add the trace of a completed attempt, and what its process used beside the allocator."""
        self._traces.append(trace)
        self.model, self.why_not = fitted(self._traces)
        self._given_up = self._given_up or trace.compiled
        if self.model is None:
            self.predictor = None
        elif self._reserved_bytes is not None:
            capacity_bytes = self._reserved_bytes - context_bytes
            self.predictor = ReservedPeak(
                self.model, capacity_bytes, fixed_bytes=context_bytes, eval_size_of=self._eval_size_of
            )
        else:
            self.predictor = self._live_bytes

    def _live_bytes(self, size: int) -> float:
        assert self.model is not None
        return float(self.model.peak_at(size, self._eval_size_of(size)))
