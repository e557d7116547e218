"""Peak memory of a training step at sizes that were not run, predicted from a few traced sizes.

A `Trace` is the list of allocation events of a measurement at one size, as `dispatch_recorder.Recorder` saw it. While
the sequence of operations stays the same, each storage's size is a polynomial in the batch size: constant for weights,
a + b * batch for activations, with a square for similarities within a batch. `TraceModel.fit` pairs the events of two
or more traces, fits each storage, and replays the events at any size. Live bytes after event t are then a_t + b_t *
batch, so the peak is the maximum of many lines: convex, piecewise straight, and no single line. That is why a line
through small peaks misleads.

Where the sequence changes between two sizes (another kernel, a branch on the batch size) the events do not pair, and
`DoesNotPairError` says where. A prediction is never an answer: it chooses what to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BstuneError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ALLOCATE, FREE = 1, -1


class DoesNotPairError(BstuneError):
    """The traces do not show the same sequence of allocations, so other sizes cannot be predicted."""


@dataclass(frozen=True)
class Trace:
    """The allocation events of one measurement: plain arrays, so that it can travel between processes."""

    batch: int
    """Micro-batch size, in samples."""
    signs: NDArray[np.int8]
    """Per event: 1 for an allocation, -1 for a release."""
    storages: NDArray[np.int32]
    """Per event: which storage, numbered in the order of their birth."""
    nbytes: Ints
    """Per storage: its size."""
    born_in: NDArray[np.int16]
    """Per storage: index into `op_names` of the operation that made it."""
    op_names: tuple[str, ...] = ()
    marks: tuple[tuple[str, int], ...] = ()
    """(name, number of events before it): where phases begin and optimizer steps end."""
    eval_batch: int | None = None
    """Validation batch size, where the validation phase was recorded separately."""
    compiled: bool = False
    """A compiled module was seen: under a recorder it runs eagerly, so these events are not those of training."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes live at once."""
        return int(np.cumsum(self.signs * self.nbytes[self.storages]).max(initial=0))

    def first_storage_of(self, phase: str) -> int | None:
        """Return the first storage born in a phase, or None if the phase was not seen."""
        start = next((index for name, index in self.marks if name == phase), None)
        return None if start is None else int((self.signs[:start] == ALLOCATE).sum())


class TraceModel:
    """Bytes of every storage as a polynomial of the batch size, and the order in which they live and die.

    Attributes:
        batches: The sizes that it was fitted to.
        degree: The highest power of the batch size that any storage needed.
        residual_bytes: Largest difference, over the traces, between the recorded and the replayed peak. With two traces
            it is 0 by construction and says nothing; see `checked`.
    """

    def __init__(
        self, like: Trace, coefficients: Floats, in_validation: NDArray[np.bool_], traces: Sequence[Trace]
    ) -> None:
        """Keep the polynomials, one row of (constant, slope, square) per storage; made by `fit`."""
        self.signs, self.storages = like.signs, like.storages
        self.op_names, self.born_in, self.marks = like.op_names, like.born_in, like.marks
        self.coefficients = coefficients
        self.in_validation = in_validation
        self.batches = tuple(trace.batch for trace in traces)
        self.degree = max(power for power in (0, 1, 2) if power == 0 or bool(np.any(coefficients[:, power])))
        self.residual_bytes = max(
            abs(self.peak_at(trace.batch, trace.eval_batch) - trace.peak_bytes) for trace in traces
        )

    @property
    def checked(self) -> bool:
        """Whether a trace beyond those that fix the polynomials has confirmed them to within 0.1 % of the peak."""
        return len(self.batches) > self.degree + 1 and self.residual_bytes <= 1e-3 * self.peak_at(max(self.batches))

    @classmethod
    def fit(cls, traces: Sequence[Trace]) -> TraceModel:
        """Return the model of the traces that pair with the one at the largest size.

        Two traces give straight lines. A storage whose line would have begun below zero grows faster than the batch: it
        gets a square instead. A third trace decides between line and square for each storage.

        Raises:
            DoesNotPairError: Fewer than two traces pair; record at other sizes, or go by measured peaks.
        """
        by_size = sorted({trace.batch: trace for trace in traces}.values(), key=lambda trace: trace.batch)
        if len(by_size) < 2:
            raise DoesNotPairError(
                f"{len(by_size)} traced size(s): expected at least two, to see how each storage grows."
            )
        largest = by_size[-1]
        paired = [trace for trace in by_size if difference(trace, largest) is None]
        if len(paired) < 2:
            other = by_size[-2]
            raise DoesNotPairError(
                f"A step at micro-batch {other.batch} takes and frees memory in another order than one at "
                f"{largest.batch}: {difference(other, largest)}. A kernel, or a branch or loop of the code, depends "
                "on the size."
            )
        start = largest.first_storage_of("validation")
        numbers = np.arange(len(largest.nbytes))
        if largest.eval_batch is None or start is None:
            start = len(numbers)  # Nothing is known to depend on a validation batch size of its own.
        in_validation = numbers >= start
        coefficients = np.zeros((len(numbers), 3))
        for where, sizes in (
            (~in_validation, [t.batch for t in paired]),
            (in_validation, [t.eval_batch or t.batch for t in paired]),
        ):
            coefficients[where] = _polynomials(
                sizes, np.stack([trace.nbytes[where] for trace in paired]).astype(np.float64)
            )
        return cls(largest, coefficients, in_validation, paired)

    def nbytes_at(self, size: int, eval_size: int | None = None) -> Ints:
        """Return the size of each storage at a micro-batch size (and a validation batch size; default: the same)."""
        x = np.where(self.in_validation, float(size if eval_size is None else eval_size), float(size))
        constant, slope, square = self.coefficients.T
        nbytes: Ints = np.maximum(np.rint(constant + slope * x + square * x * x), 0).astype(np.int64)
        return nbytes

    def peak_at(self, size: int, eval_size: int | None = None) -> int:
        """Return the most bytes live at once at a size that need not have been run."""
        nbytes = self.nbytes_at(size, eval_size)
        return int(np.cumsum(self.signs * nbytes[self.storages]).max(initial=0))

    def events_at(self, size: int, eval_size: int | None = None) -> tuple[NDArray[np.int8], NDArray[np.int32], Ints]:
        """Return (signs, storages, bytes per storage) at a size, as an allocator wants to see them."""
        return self.signs, self.storages, self.nbytes_at(size, eval_size)


def difference(a: Trace, b: Trace) -> str | None:
    """Say where two traces differ, or return None if their events pair one to one."""
    if np.array_equal(a.signs, b.signs) and np.array_equal(a.storages, b.storages):
        if a.first_storage_of("validation") == b.first_storage_of("validation"):
            return None
        return "validation begins at another event"
    n = min(len(a.signs), len(b.signs))
    unlike = np.flatnonzero((a.signs[:n] != b.signs[:n]) | (a.storages[:n] != b.storages[:n]))
    at = int(unlike[0]) if len(unlike) else n
    counts = f"they have {len(a.signs)} and {len(b.signs)} events"
    return f"{counts} and first differ at number {at}, {_event(a, at)} against {_event(b, at)}"


def _event(trace: Trace, at: int) -> str:
    if at >= len(trace.signs):
        return "the end"
    storage = trace.storages[at]
    verb = "allocated by" if trace.signs[at] == ALLOCATE else "freed, made by"
    name = trace.op_names[trace.born_in[storage]] if trace.op_names else "?"
    return f"{trace.nbytes[storage]} bytes {verb} {name}"


def _polynomials(sizes: Sequence[int], nbytes: Floats) -> Floats:
    """Return (constant, slope, square) per storage through its bytes at each of `sizes`, ascending."""
    result = np.zeros((nbytes.shape[1], 3))
    if len(set(sizes)) < 2:  # The same validation size everywhere: constant, as far as anyone saw.
        result[:, 0] = nbytes[-1]
        return result
    x0, x1 = float(sizes[0]), float(sizes[-1])
    y0, y1 = nbytes[0], nbytes[-1]
    slope = (y1 - y0) / (x1 - x0)
    line = np.stack([y0 - slope * x0, slope, np.zeros_like(slope)], axis=1)
    # Through zero, and through both points: what a batch's similarities with itself look like.
    square = (y1 / x1 - y0 / x0) / (x1 - x0)
    curve = np.stack([np.zeros_like(square), y0 / x0 - square * x0, square], axis=1)
    steeper = line[:, 0] < -0.5  # Half a byte: nothing is allocated in smaller pieces.
    middle = [(float(x), y) for x, y in zip(sizes[1:-1], nbytes[1:-1], strict=True) if x not in (sizes[0], sizes[-1])]
    if middle:
        x2, y2 = middle[len(middle) // 2]
        bend = (((y1 - y2) / (x1 - x2)) - ((y2 - y0) / (x2 - x0))) / (x1 - x0)
        tilt = (y2 - y0) / (x2 - x0) - bend * (x0 + x2)
        curve = np.stack([y0 - tilt * x0 - bend * x0 * x0, tilt, bend], axis=1)
        # A whole sample more or less is rounding in a workspace; only more than that is a bend.
        steeper = np.abs(line[:, 0] + line[:, 1] * x2 - y2) > np.maximum(1.0, 1e-4 * y2)
    return np.where(steeper[:, None], curve, line)


def fitted(traces: Sequence[Trace | None]) -> tuple[TraceModel | None, str | None]:
    """Return (model, None), or (None, why there is none), for a caller that can do without."""
    usable: list[Any] = [trace for trace in traces if trace is not None]
    if any(trace.compiled for trace in usable):
        return (
            None,
            "The model is compiled, and a compiled module runs eagerly while it is traced; going by measured peaks.",
        )
    try:
        return TraceModel.fit(usable), None
    except DoesNotPairError as error:
        return None, str(error)
