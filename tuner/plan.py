"""What would fit a device that is not here.

Steps are traced on the device that is here, and replayed in an allocator of the other's size.

Nothing of this was run at the size that it names, so it is an outlook and never an answer; `probe` on the device itself
is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .core.arguments import listed
from .core.checks import Checks
from .core.errors import ArgumentError, BstuneError, ObjectiveError
from .core.probe_results import DeviceInfo, MemoryByCategory, Outlook, PlanResult
from .core.trials import MeasureSpec
from .device.cards import CONTEXT_BYTES, card_bytes
from .device.meter import Reading
from .memory.caching_allocator import ReservedPeak, reserved_at
from .memory.predictor import Foresight
from .memory.trace import TraceModel
from .workers import messages
from .workers.fork_server import Host, error_of

TRACED_SIZES = (3, 5, 9)
"""Two to fit lines, one to check them; not 1, where squeezed dimensions and other kernels give another step."""


def plan(
    objective: Any,
    *,
    gpu: Sequence[str] = (),
    memory: Sequence[str | int] = (),
    headroom: float = 0.05,
    multiple_of: int = 1,
    device: str = "auto",
    seed: int = 0,
) -> PlanResult:
    """Predict the largest micro-batch on devices that are not here, from a few traced steps on the one that is.

    Args:
        objective: A `Supervised`, a function under `@bstune.objective`, or what `bstune.load` returns.
        gpu: Names of cards, such as `"H100 80GB"`.
        memory: Sizes of other cards, such as `"24GiB"`.
        headroom: Share of the card's memory that is left free.
        multiple_of: The size is a multiple of this.
        device: Where to trace: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: Seed of model and data.

    Raises:
        ArgumentError: A card is unknown, or another argument is wrong on its face.
        ObjectiveError: The user's code or file is at fault.
        BstuneError: The traced steps differ too much between sizes to say anything of others.
    """
    cards = check_plan(gpu=gpu, memory=memory, headroom=headroom, multiple_of=multiple_of, device=device, seed=seed)
    with Host(objective, device=device) as host:
        foresight, reading, sizes = _trace(host, seed)
        model = foresight.model
        if model is None:
            raise BstuneError(
                f"Nothing can be said of other sizes: {foresight.why_not} Probe on the device itself, or use bstune "
                "probe --memory."
            )
        outlooks = tuple(
            _outlook(name, total, model, host, reading, headroom=headroom, multiple_of=multiple_of)
            for name, total in cards
        )
        checked = len(model.batches) > model.degree + 1
        return PlanResult(
            outlooks=outlooks,
            traced_on=host.device_info,
            traced_sizes=sizes,
            eval_batch_size="as the micro-batch, at most the validation set",
            residual=model.residual_bytes / max(1, model.peak_at(max(model.batches))) if checked else None,
            n_train_samples=host.facts.n_samples,
            rests_on=_rests_on(host.device_info, sizes, host.facts.size_unit),
        )


def _trace(host: Host, seed: int) -> tuple[Foresight, Reading, tuple[int, ...]]:
    n_samples, n_val = host.facts.n_samples, host.facts.n_val_samples
    foresight = Foresight(lambda size: min(size, n_val or size))
    reading = None
    sizes = tuple(n * host.facts.longest for n in TRACED_SIZES if n * host.facts.longest <= n_samples)
    if len(sizes) < 2:
        raise ObjectiveError(
            f"The data set has {n_samples} {host.facts.size_unit}: at least {TRACED_SIZES[1] * host.facts.longest} are "
            "needed to see how memory grows."
        )
    for size in sizes:
        both = host.facts.kind == "supervised" or 2 * size <= n_samples
        worker = host.start(
            messages.Measure(MeasureSpec(size, min(size, n_val or size), 2 if both else 1, 2, seed), traced=True)
        )
        try:
            answer = host.answer(worker)
            if isinstance(answer, messages.Failure):
                raise error_of(
                    answer, f"training at micro-batch {size}", output=worker.tail(), budget_bytes=host.usable_bytes()
                )
            if not isinstance(answer, messages.Measured) or answer.trace is None:
                raise ObjectiveError(
                    f"A training step at micro-batch {size} could not be traced: {getattr(answer, 'text', 'no trace')}."
                )
        finally:
            worker.end()
        foresight.add(answer.trace)
        reading = answer.reading
    assert reading is not None
    return foresight, reading, sizes


def _outlook(
    name: str,
    total_bytes: int,
    model: TraceModel,
    host: Host,
    reading: Reading,
    *,
    headroom: float,
    multiple_of: int,
) -> Outlook:
    budget = int(total_bytes * (1 - headroom)) - CONTEXT_BYTES
    n_samples, n_val = host.facts.n_samples, host.facts.n_val_samples

    def eval_size_of(size: int) -> int:
        return min(size, n_val or size)

    peak = ReservedPeak(model, max(0, budget), eval_size_of=eval_size_of)
    step = multiple_of if multiple_of > 1 else host.facts.longest
    size = largest_fitting(lambda n: peak(n) <= budget, n_samples, step)
    if size is None or size < host.facts.longest:
        return Outlook(name, total_bytes, budget, None, "memory", None, None, None, None)
    replay = reserved_at(model, size, budget, eval_size=eval_size_of(size))
    held = (reading.parameters_bytes, reading.gradients_bytes, reading.optimizer_state_bytes)
    live = model.peak_at(size, eval_size_of(size))
    # The peak may come before the gradients or the optimizer's scratch space are there, so this part cannot be
    # negative.
    activations = max(0, live - sum(part or 0 for part in held))
    return Outlook(
        device=name,
        total_bytes=total_bytes,
        budget_bytes=budget,
        micro_batch_size=size,
        limited_by="dataset" if size + step > n_samples else "memory",
        reserved_bytes=replay.reserved_bytes,
        live_bytes=live,
        free_bytes=total_bytes - CONTEXT_BYTES - replay.reserved_bytes,
        memory_by_category=MemoryByCategory(
            held[0], held[1], held[2], activations, max(0, replay.reserved_bytes - live)
        ),
    )


LOOK_FURTHER = 1.7
"""Look up to this factor past the first size that does not fit for another that does.

Fragmentation comes and goes with the size.
"""


def largest_fitting(fits: Callable[[int], bool], n_samples: int, multiple_of: int = 1) -> int | None:
    """Return the largest multiple up to `n_samples` found to fit: doubling, halving, a look past the boundary.

    Example:
        >>> largest_fitting(lambda n: n <= 77, 1000), largest_fitting(lambda n: n <= 77, 1000, 8)
        (77, 72)
        >>> print(largest_fitting(lambda n: False, 9))
        None
    """
    top = n_samples // multiple_of

    def boundary(low: int, high: int) -> int:  # low fits (or is 0), high does not; both count multiples.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle * multiple_of) else (low, middle)
        return low

    low, high = 0, 1
    while high <= top and fits(high * multiple_of):
        low, high = high, high * 2
    best = boundary(low, min(high, top + 1))
    further = sorted({round(best * 1.02**step) for step in range(1, 28)} | {min(top, round(best * LOOK_FURTHER))})
    for size in reversed([size for size in further if best < size <= top]):
        if fits(size * multiple_of):
            return boundary(size, min(top + 1, next((n for n in further if n > size), top + 1))) * multiple_of
    return best * multiple_of or None


def _rests_on(device: DeviceInfo, sizes: Sequence[int], unit: str) -> tuple[str, ...]:
    traced = (
        f"batch and its parts: allocations of real steps at {', '.join(map(str, sizes))} {unit} "
        f"on {device.kind}, replayed"
    )
    if device.kind == "cpu":
        traced += (
            "; CUDA chooses other kernels, whose workspaces are not in it (recurrent layers were seen to differ by "
            "up to 2x, convolutions and attention are unmeasured)"
        )
    return (
        traced + ".",
        "needs: the same through a model of CUDA's caching allocator (one stream, no expandable segments), "
        "which was not yet compared with a card.",
        "the card's memory: the driver's figure for such a card; its context is assumed to take "
        f"{CONTEXT_BYTES / 2**30:.2f} GiB (0.3 to 0.6).",
        "Nothing was run at these sizes: probe on the device before you rely on them.",
    )


def check_plan(
    *, gpu: Sequence[str], memory: Sequence[str | int], headroom: float, multiple_of: int, device: str, seed: int
) -> list[tuple[str, int]]:
    """Return (name, total bytes) of each device that a plan is for.

    Raises:
        ArgumentError: One or more arguments are wrong; all are listed.
    """
    checks = Checks()
    checks.text("device", device)
    checks.real("headroom", headroom, lambda x: 0 <= x < 1, "a share of memory from 0 up to, but below, 1")
    checks.integer("multiple_of", multiple_of, 1)
    checks.seed(seed)
    if not listed(gpu) and not listed(memory):
        checks.wrong(
            "neither gpu (--gpu) nor memory (--memory) is given: expected a card such as 'H100 80GB', or 24GiB."
        )
    cards = []
    for name in listed(gpu):
        try:
            cards.append(card_bytes(str(name)))
        except ArgumentError as error:
            checks.wrong(str(error))
    for size in listed(memory):
        n_bytes = checks.size("memory", size)
        cards.append((f"{size} card", n_bytes or 0))
    checks.done()
    return cards
