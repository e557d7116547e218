"""The run of a probe: sizes that grow, the answer run once more, and what a step costs.

`SizeSearch` chooses the sizes, `attempts` runs each in a fresh process; this module puts the result together. A
prediction is never an answer: the size that is returned was run.
"""

from __future__ import annotations

import time
from dataclasses import replace

from ..core.errors import ArgumentError, BstuneError, NothingFitsError, ObjectiveError
from ..core.probe_results import Attempt, MemoryByCategory, MemoryLine, ProbeResult
from ..core.trials import Facts
from ..device.meter import Reading
from ..device.out_of_memory import asked_bytes
from ..report.reasons import loader_advice
from ..theory.step_time import PLATEAU_GAIN, fit_step_time, knee
from ..workers import messages
from ..workers.fork_server import Host
from ..workers.template import Died
from .attempts import GIB, Attempts, OnAttempt, OnNote, TimeUp, objective_error
from .memory_fit import SizeTried
from .size_search import Answer, Bounds, Growth
from .timing import time_command, time_size, time_sizes

CPU_NOISE_BYTES = 1 << 18
"""Resident memory comes in pages and arenas: on CPU, peaks closer than this are the same. Measured with a fixed mmap
threshold: repeats of a step of 300 to 660 MiB differ by 0.1 MiB. With malloc's own, moving threshold they scatter by
several MiB more, which the search sees.
"""
CPU_SETTLING_BYTES = 4 << 20
"""Measured on six kinds of model with a fixed mmap threshold: from the second size on, resident memory lies above the
live bytes of the traces by the same amount to within 0.3 MiB; from the smallest size to the second that amount grows by
up to 2.3 MiB.
"""
SMALLEST_PLATEAU = 64
"""Smaller steps are so short that their throughput still rises, or is mostly noise."""
SAME_MEMORY = 0.05
"""A stored answer that memory bounded holds while the usable memory is the same to within this share."""


def run_probe(
    host: Host,
    *,
    headroom: float = 0.05,
    min_batch: int = 1,
    max_batch: int | None = None,
    multiple_of: int = 1,
    timeout: float | None = None,
    seed: int = 0,
    on_attempt: OnAttempt | None = None,
    on_note: OnNote | None = None,
    for_search: bool = False,
) -> ProbeResult:
    """Find the largest micro-batch of the host's objective that fits; arguments as in `probe`, already checked.

    `for_search`: a command that tells no loss ends it at its first run. And `max_batch` says only how large a
    micro-batch is of use, so that validation may take a larger one.

    Raises:
        ArgumentError: No size lies within the bounds.
        ObjectiveError: The user's code is at fault.
        NothingFitsError: Even the smallest size needs more than there is.
    """
    bounds = _bounds(host.facts, min_batch, max_batch, multiple_of)
    attempts = Attempts(
        host,
        headroom=headroom,
        seed=seed,
        timeout_s=timeout,
        on_attempt=on_attempt,
        on_note=on_note,
        for_search=for_search,
    )
    if for_search and bounds.cap_reason == "max_batch" and not attempts.is_command:
        attempts.cut_at = bounds.highest
    if host.facts.size_unit != "samples":
        attempts.warn(f"Sizes count {host.facts.size_unit}, padding included: where samples are said, read these.")
    on_cpu = host.device_info.kind == "cpu"
    growth = Growth(
        bounds,
        budget_bytes=attempts.budget_bytes,
        noise_bytes=CPU_NOISE_BYTES if on_cpu else 0,
        settling_bytes=CPU_SETTLING_BYTES if on_cpu else 0,
        first_sizes=(bounds.lowest,) if attempts.hopeless else _first_sizes(host.facts, bounds),
    )
    _grow(growth, attempts)
    final = _verify(growth, attempts)
    answer = growth.answer
    assert answer.size is not None
    (time_command if attempts.is_command else time_sizes)(answer.size, bounds, attempts)
    if (moved := host.memory_moved(attempts.memory)) is not None:
        attempts.warn(moved)
    return _result(host, attempts, answer, final)


def _bounds(facts: Facts, min_batch: int, max_batch: int | None, multiple_of: int) -> Bounds:
    """Return the sizes that may be tried.

    Raises:
        ArgumentError: There is none.
    """
    n_samples = max(1, facts.n_samples // facts.world_size)
    capped = max_batch is not None and max_batch < n_samples
    highest = min(n_samples, max_batch if max_batch is not None else n_samples)
    if min_batch > n_samples:
        whose = "the data set has" if facts.world_size == 1 else "each process has of the data set"
        raise ArgumentError(f"min_batch={min_batch} is more than {whose}: expected at most {n_samples}.")
    if highest < facts.longest:
        raise ArgumentError(
            f"Micro-batches of at most {highest} {facts.size_unit} do not hold the longest sample: expected at least "
            f"its {facts.longest}."
        )
    # Between multiples of the longest sample most batches hold the same samples.
    step = multiple_of if multiple_of > 1 else facts.longest
    return Bounds(max(min_batch, facts.longest), highest, step, "max_batch" if capped else "dataset")


def _first_sizes(facts: Facts, bounds: Bounds) -> tuple[int, ...]:
    """Return sizes to begin with that hold 3 and 5 of the longest samples, where these are many and may be tried."""
    if facts.longest == 1:
        return ()
    sizes = (-(-n * facts.longest // bounds.multiple_of) * bounds.multiple_of for n in (3, 5))
    return tuple(size for size in sizes if bounds.lowest <= size <= bounds.highest)


def verified_again(
    host: Host, stored: ProbeResult, *, headroom: float, seed: int, on_attempt: OnAttempt | None = None
) -> ProbeResult | None:
    """Run the size of a stored result once more and return the result as seen now; None where it no longer holds."""
    attempts = Attempts(host, headroom=headroom, seed=seed, on_attempt=on_attempt)
    moved = abs(attempts.usable_bytes / stored.usable_bytes - 1) > SAME_MEMORY
    if stored.limited_by == "timeout" or (moved and stored.limited_by == "memory"):
        return None
    before, threads = host.threads, stored.device.threads
    host.use_threads(threads or before)
    attempt, reading = attempts.run(stored.micro_batch_size, final=True)
    if attempt.outcome != "ok" or reading is None or reading.peak_bytes is None:
        host.use_threads(before)
        return None
    return replace(
        stored,
        usable_bytes=attempts.usable_bytes,
        budget_bytes=attempts.budget_bytes,
        eval_batch_size=stored.eval_batch_size and attempts.eval_sizes[stored.micro_batch_size],
        peak_bytes=reading.peak_bytes,
        memory_line=stored.memory_line and replace(stored.memory_line, measured_bytes=reading.peak_bytes),
        attempts=(*stored.attempts, *attempts.tried),
        samples=attempts.samples,
        seconds=time.monotonic() - attempts.started_s,
        validation_s_per_sample=stored.validation_s_per_sample,  # A run that is recorded times none.
        cached=True,
    )


def _size(attempt: Attempt, attempts: Attempts) -> SizeTried:
    died = attempts.last_failure is not None  # What it held when it failed is no peak, only a part of one.
    return SizeTried(attempt.size, attempt.outcome == "ok", None if died else attempt.peak_bytes, attempt.outcome)


def _grow(growth: Growth, attempts: Attempts) -> None:
    """Run the sizes that `growth` asks for until it knows the answer.

    Raises:
        NothingFitsError: No size fits.
    """
    rates: list[float] = []
    try:
        while (size := growth.next_size()) is not None:
            attempt, _ = attempts.run(size, final=growth.expects_answer)
            if attempt.outcome == "error":  # Only at size 1: a bug, unless 2 samples work where one does not.
                attempt = _one_is_too_few(attempt, attempts.last_failure, attempts)
            growth.add(_size(attempt, attempts))
            growth.predictor = attempts.foresight.predictor
            growth.fixed_bytes = attempts.fixed_bytes
            if (
                attempt.outcome == "ok"
                and not attempts.is_command
                and growth.fit.flat
                and growth.smallest_failure is None
                and SMALLEST_PLATEAU * attempts.host.facts.longest <= size < growth.bounds.highest
            ):
                rates.append(_rate(size, attempts))
                if len(rates) > 2 and max(rates[-2:]) <= PLATEAU_GAIN * rates[-3]:
                    growth.stop("plateau")
    except TimeUp:
        growth.stop("timeout")
    if growth.answer.size is None:
        raise _nothing_fits(growth, attempts)


def _one_is_too_few(attempt: Attempt, failure: messages.Failure | Died | None, attempts: Attempts) -> Attempt:
    """Return the failed attempt at size 1 as a `limit` where 2 samples train.

    Raises:
        ObjectiveError: They do not: it is a bug.
    """
    if attempts.run(2)[0].outcome != "ok":
        raise objective_error(failure, 1, attempts.last_output)
    fixed = replace(attempt, outcome="limit")
    attempts.tried[attempts.tried.index(attempt)] = fixed
    return fixed


def _rate(size: int, attempts: Attempts) -> float:
    time_size(size, attempts)
    return next((row.samples_per_s for row in attempts.rows if row.batch_size == size), 0.0)


def _verify(growth: Growth, attempts: Attempts) -> Reading:
    """Check that the answer has run for three steps with a peak that repeats; else search on below it.

    A peak that was foreseen to within a third of the headroom is none. Any other is measured once more.
    """
    while True:
        size = growth.answer.size
        if size is None:
            raise _nothing_fits(growth, attempts)
        reading, expected = attempts.readings[size], growth.answer.predicted_bytes
        allowed_bytes = attempts.headroom * attempts.usable_bytes / 3
        foreseen = (
            expected is not None
            and reading.peak_bytes is not None
            and abs(expected - reading.peak_bytes) <= allowed_bytes
        )
        if foreseen and size in attempts.eval_sizes and not attempts.validation_is_untimed:
            return reading
        # Each attempt is a start of the command, and a peak so far below the budget needs no second look.
        if attempts.is_command and reading.peak_bytes is not None and 2 * reading.peak_bytes < attempts.budget_bytes:
            return reading
        try:
            attempt, again = attempts.run(size, final=True)
        except TimeUp:
            growth.stop("timeout")
            return attempts.readings[size]
        growth.add(_size(attempt, attempts))
        attempts.budget_bytes = growth.budget_bytes = attempts.usable_bytes - max(
            int(attempts.headroom * attempts.usable_bytes), int(3 * growth.fit.repeat_noise_bytes)
        )
        if attempt.outcome == "ok" and again is not None and growth.answer.size == size:
            return again
        _grow(growth, attempts)


def _nothing_fits(growth: Growth, attempts: Attempts) -> BstuneError:
    """Return the error for a probe in which no size trained."""
    smallest = min(attempts.tried, key=lambda attempt: attempt.size, default=None)
    if smallest is None:
        return BstuneError(
            "The time limit was over before the first size had run, so nothing is known. Give the probe more time."
        )
    if all(attempt.outcome == "limit" for attempt in attempts.tried if attempt.size <= growth.bounds.highest):
        return ObjectiveError(
            f"No micro-batch up to {growth.bounds.highest} trains, and memory is not why: {smallest.reason}. Allow a "
            "larger one, or use layers that do not need several samples."
        )
    asked = asked_bytes(smallest.reason or "")
    parts = [smallest.peak_bytes or 0, growth.answer.needed_bytes or 0, 2 * (attempts.host.facts.parameter_bytes or 0)]
    needed = max(*parts, (smallest.peak_bytes or 0) + (asked or 0))
    phase = f" in {smallest.phase}" if smallest.phase else ""
    at_least = "" if smallest.peak_bytes == needed else "at least "
    device = attempts.host.device
    return NothingFitsError(
        f"Nothing fits: a micro-batch of {smallest.size} needs {at_least}{needed / GIB:.2f} GiB{phase}; the "
        f"budget on {device} is {attempts.budget_bytes / GIB:.2f} GiB (usable {attempts.usable_bytes / GIB:.2f} GiB, "
        f"headroom {attempts.headroom:.2f}). Try activation checkpointing, lower precision, shorter inputs, a smaller "
        "model, or more memory.",
        needed_bytes=needed,
        budget_bytes=attempts.budget_bytes,
    )


def _result(host: Host, attempts: Attempts, answer: Answer, final: Reading) -> ProbeResult:
    size = answer.size
    assert size is not None
    assert final.peak_bytes is not None
    line = None
    # A command that was over before its memory could be seen has a peak of 0.
    if answer.fixed_bytes is not None and answer.bytes_per_sample is not None and final.peak_bytes:
        predicted, peak = answer.predicted_bytes, final.peak_bytes
        error = None if predicted is None else (predicted - peak) / peak
        line = MemoryLine(answer.fixed_bytes, answer.bytes_per_sample, predicted, final.peak_bytes, error)
    if any(attempt.outcome == "limit" and attempt.size == 1 for attempt in attempts.tried):
        attempts.warn("A micro-batch of 1 does not train (BatchNorm needs at least 2), so it was skipped.")
    if answer.limited_by not in ("dataset", "max_batch") and not attempts.accumulates:  # Larger ones are accumulated.
        attempts.warn(
            "The loop looks at neither trial.accumulation_steps nor trial.global_batch_size, so it makes a step of "
            f"each micro-batch: larger batches than {size} would be trained in steps of no more than that. Accumulate "
            "gradients over trial.accumulation_steps micro-batches, or search no larger ones."
        )
    if attempts.loader is not None and attempts.loader.bound:
        attempts.warn(
            f"The data loader holds training back: {attempts.loader.wait_share:.0%} of a step waits for its "
            f"batch. {loader_advice(attempts.loader, host.facts.mean_size)}"
        )
    return ProbeResult(
        micro_batch_size=size,
        eval_batch_size=None if attempts.eval_unseen else attempts.eval_sizes.get(size, attempts.eval_size(size)),
        limited_by=answer.limited_by,
        proof=answer.proof,
        capacity_bytes=attempts.capacity_bytes,
        usable_bytes=attempts.usable_bytes,
        budget_bytes=attempts.budget_bytes,
        peak_bytes=final.peak_bytes,
        memory_line=line,
        memory_by_category=_categories(final, size, answer.bytes_per_sample),
        throughput=tuple(attempts.rows),
        step_time_line=fit_step_time(attempts.rows),
        knee_batch_size=knee(attempts.rows),
        loader=attempts.loader,
        environment=host.environment,
        attempts=tuple(attempts.tried),
        device=host.device_info,
        n_train_samples=host.facts.n_samples,
        warnings=tuple(attempts.warnings),
        samples=attempts.samples,
        seconds=time.monotonic() - attempts.started_s,
        optimizer=attempts.optimizer,
        validation_s_per_sample=attempts.validation_s_per_sample(size),
        validation_s=attempts.whole_validation_s,
        start_s=attempts.start_s,
        longest=host.facts.longest,
    )


def _categories(final: Reading, size: int, bytes_per_sample: float | None) -> MemoryByCategory:
    """Split the peak: tensors are counted, activations are what grows with the batch, the rest is workspace."""
    peak = final.peak_bytes or 0
    held = [final.parameters_bytes, final.gradients_bytes, final.optimizer_state_bytes]
    known = sum(part or 0 for part in held)
    activations = None if bytes_per_sample is None else max(0, min(peak - known, round(bytes_per_sample * size)))
    workspace = None if activations is None else max(0, peak - known - activations)
    return MemoryByCategory(held[0], held[1], held[2], activations, workspace)
