"""The largest micro-batch that fits: measured at small sizes, predicted by the memory line, verified by running it.

`Growth` chooses the sizes; this module runs each of them in a fresh process, says what came of it, and puts the result
together. A prediction is never an answer: the size that is returned was run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ..objectives.base import MeasureSpec
from . import jobs
from .device import asked_bytes, first_line, may_be_memory, usable_cores
from .errors import ArgumentError, BstuneError, NothingFitsError, ObjectiveError
from .foresight import Foresight
from .growth import Answer, Bounds, Growth
from .growth import Measured as Size
from .host import Host, error_of
from .meter import Reading
from .results import Attempt, Loader, MemoryByCategory, MemoryLine, Outcome, ProbeResult, ThroughputRow
from .steptime import PLATEAU_GAIN, fit_step_time, knee, loader_of, sizes_to_time, throughput_row
from .template import Died

STEPS = 2
SMALL_EVAL = 8
"""Validation batch of the attempts on the way: the training size is found first, the validation size with the answer."""
FINAL_STEPS = 3
"""For the size that is returned: memory has been seen to grow in the second step (pytorch/pytorch#35901)."""
TIMED_S = 0.4
CPU_NOISE_BYTES = 1 << 18
"""Resident memory comes in pages and arenas: on CPU, peaks closer than this are the same. Measured with a fixed mmap threshold:
repeats of a step of 300 to 660 MiB differ by 0.1 MiB. With malloc's own, moving threshold they scatter by several MiB more, which
the search sees."""
CPU_SETTLING_BYTES = 4 << 20
"""Measured on six kinds of model with a fixed mmap threshold: from the second size on, resident memory lies above the live bytes of
the traces by the same amount to within 0.3 MiB; from the smallest size to the second that amount grows by up to 2.3 MiB."""
SMALLEST_TIMED = 4
SMALLEST_PLATEAU = 64
"""Smaller steps are so short that their throughput still rises, or is mostly noise."""
SAME_MEMORY = 0.05
"""A stored answer that memory bounded holds while the usable memory is the same to within this share."""
STABLE_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc returns every block of 64 KiB or more to the system when it is freed. By default it raises that threshold as blocks are
freed, tensors come to live in a heap full of holes, and resident memory is larger and differs from run to run."""
GIB = 1 << 30

OnAttempt = Callable[[Attempt], None]


def probe(
    objective: Any,
    *,
    device: str = "auto",
    memory: str | int | None = None,
    headroom: float = 0.05,
    min_batch: int = 1,
    max_batch: int | None = None,
    multiple_of: int = 1,
    timeout: float | None = None,
    seed: int = 0,
    malloc: str = "default",
    fresh: bool = False,
    study: str | None = None,
    storage: str | None = None,
    on_attempt: OnAttempt | None = None,
) -> ProbeResult:
    """Find the largest micro-batch that fits the device, and what a step costs.

    Args:
        objective: A `Supervised`, a function under `@bstune.objective`, or what `bstune.load` returns.
        device: `auto` (CUDA when it works), `cpu`, `cuda` or `cuda:N`.
        memory: Most memory to use, as bytes or text such as `12GiB`; default: all that the device and the container leave.
        headroom: Share of the usable memory that is left free.
        min_batch: Smallest micro-batch that is of use.
        max_batch: Largest micro-batch to try; default: the data set.
        multiple_of: The answer is a multiple of this.
        timeout: Seconds after which the best size so far is returned.
        seed: Seed of model and data in each attempt.
        malloc: On CPU: `default`, or `stable`, which makes resident memory smaller and the same from run to run, for slower steps.
            The answer then holds where the variables of `result.environment` are set.
        fresh: Probe anew, also where a result of the same objective, device and settings is stored.
        study: Study to store the result in; default: named after the objective or its file.
        storage: Optuna storage URL; default: `$BSTUNE_STORAGE`, else `sqlite:///bstune.db`.
        on_attempt: Called with each `Attempt` when it has ended, to show progress.

    Returns:
        The size, how it is known that no larger one fits, peak memory, throughput, and every attempt.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: The user's code or file is at fault.
        NothingFitsError: Even the smallest size needs more than there is.
        DeviceError: The device does not work.
        StudyError: The result cannot be stored.
    """
    from ..objectives.load import check_objective
    from .arguments import check_probe
    from .naming import study_name
    from .storage import open_storage
    from .study import find_study, make_study, probe_key, touch

    arguments = check_probe(
        device=device,
        memory=memory,
        headroom=headroom,
        min_batch=min_batch,
        max_batch=max_batch,
        multiple_of=multiple_of,
        timeout=timeout,
        seed=seed,
        malloc=malloc,
        fresh=fresh,
        study=study,
        storage=storage,
    )
    environment = STABLE_MALLOC if malloc == "stable" else {}
    objective = check_objective(objective)
    # The storage is opened first: what could not be kept is better known before the work than after it.
    with (
        open_storage(storage) as opened,
        Host(objective, device=device, memory_bytes=arguments.memory_bytes, environment=environment) as host,
    ):
        name = study_name(study, objective, host.facts)
        kept = find_study(opened, name) or make_study(opened, name)
        key = probe_key(host.facts, host.device_info, jobs=1, seed=seed, settings=asdict(arguments))
        stored = kept.probe if not fresh and kept.attributes.get("probe_key") == key else None
        result = verified_again(host, stored, headroom=headroom, seed=seed, on_attempt=on_attempt) if stored else None
        result = result or run_probe(
            host,
            headroom=headroom,
            min_batch=min_batch,
            max_batch=max_batch,
            multiple_of=multiple_of,
            timeout=timeout,
            seed=seed,
            on_attempt=on_attempt,
        )
        kept.set(probe=result.to_dict(), probe_key=key)
        touch(kept)
    return result


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
) -> ProbeResult:
    """Find the largest micro-batch of the host's objective that fits; arguments as in `probe`, already checked.

    Raises:
        ArgumentError: No size lies within the bounds.
        ObjectiveError: The user's code is at fault.
        NothingFitsError: Even the smallest size needs more than there is.
    """
    n_samples = host.facts.n_samples
    capped = max_batch is not None and max_batch < n_samples
    highest = min(n_samples, max_batch if max_batch is not None else n_samples)
    if min_batch > n_samples:
        raise ArgumentError(f"min_batch={min_batch} is more than the data set has: expected at most {n_samples}.")
    bounds = Bounds(min_batch, highest, multiple_of, "max_batch" if capped else "dataset")
    attempts = _Attempts(host, headroom=headroom, seed=seed, timeout_s=timeout, on_attempt=on_attempt)
    on_cpu = host.device_info.kind == "cpu"
    growth = Growth(
        bounds,
        budget_bytes=attempts.budget_bytes,
        noise_bytes=CPU_NOISE_BYTES if on_cpu else 0,
        settling_bytes=CPU_SETTLING_BYTES if on_cpu else 0,
        first_sizes=(bounds.lowest,) if attempts.hopeless else (),
    )
    _grow(growth, attempts)
    final = _verify(growth, attempts)
    answer = growth.answer
    assert answer.size is not None
    _time_sizes(answer.size, bounds, attempts)
    if (moved := host.memory_moved(attempts.memory)) is not None:
        attempts.warn(moved)
    return _result(host, attempts, answer, final)


def verified_again(
    host: Host, stored: ProbeResult, *, headroom: float, seed: int, on_attempt: OnAttempt | None = None
) -> ProbeResult | None:
    """Run the size of a stored result once more, and return the result with what was seen now; None where it holds no longer."""
    attempts = _Attempts(host, headroom=headroom, seed=seed, timeout_s=None, on_attempt=on_attempt)
    moved = abs(attempts.usable_bytes / stored.usable_bytes - 1) > SAME_MEMORY
    if stored.limited_by == "timeout" or (moved and stored.limited_by == "memory"):
        return None
    attempt, reading = attempts.run(stored.micro_batch_size, final=True)
    if attempt.outcome != "ok" or reading is None or reading.peak_bytes is None:
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
        cached=True,
    )


class _TimeUp(Exception):
    """The probe's own time limit has passed."""


class _Attempts:
    """Runs sizes, each in a fresh process, and keeps what came of them."""

    def __init__(self, host: Host, *, headroom: float, seed: int, timeout_s: float | None, on_attempt: OnAttempt | None) -> None:
        memory = host.memory()
        self.host = host
        self.headroom = headroom
        self.seed = seed
        self.memory = memory
        self.capacity_bytes = memory.total_bytes
        self.usable_bytes = host.usable_bytes()
        self.budget_bytes = int(self.usable_bytes * (1 - headroom))
        self.started_s = time.monotonic()
        self.deadline_s = self.started_s + timeout_s if timeout_s is not None else None
        self.tried: list[Attempt] = []
        self.readings: dict[int, Reading] = {}
        self.samples = 0
        self.warnings: dict[str, None] = dict.fromkeys(host.warnings)
        self.optimizer: str | None = None
        self.eval_unseen = False
        self.rows: list[ThroughputRow] = []
        self.loader: Loader | None = None
        self.last_output: str | None = None
        self.last_failure: jobs.Failure | Died | None = None
        self.eval_sizes: dict[int, int] = {}
        """Validation batch size that was seen to fit with a micro-batch size, as training would use it."""
        self._eval_limit: int | None = None
        on_cpu = host.device_info.kind == "cpu"
        self.foresight = Foresight(self.eval_size, reserved_bytes=None if on_cpu else self.usable_bytes)
        self._on_attempt = on_attempt
        # On CPU: twice the budget lets a size that is just too large be measured instead of killed, where RAM allows it.
        self.fence_bytes = min(2 * self.usable_bytes + GIB, memory.available_bytes) if on_cpu else self.usable_bytes

    @property
    def fixed_bytes(self) -> float | None:
        """What the smallest size held that surely does not grow with the size; None before an attempt came to its end."""
        if not self.readings:
            return None
        reading = self.readings[min(self.readings)]
        parts = (reading.parameters_bytes, reading.gradients_bytes, reading.optimizer_state_bytes)
        return reading.start_bytes + sum(part or 0 for part in parts)

    @property
    def hopeless(self) -> bool:
        """Whether parameters and gradients alone are over the budget, so that one attempt at the smallest size says it all."""
        return 2 * (self.host.facts.parameter_bytes or 0) > self.budget_bytes

    def eval_size(self, size: int, *, final: bool = False) -> int:
        """Return the validation batch size that is run with a micro-batch size: a small one, or in the end one as large."""
        most = size if final else SMALL_EVAL
        return min(size, most, self.host.facts.n_val_samples or size, self._eval_limit or size)

    def run(self, size: int, *, final: bool = False, timed_s: float = 0.0) -> tuple[Attempt, Reading | None]:
        """Try one size; where only validation runs out of memory, with ever smaller validation batches.

        Args:
            size: The micro-batch size.
            final: It may be the answer: three steps, and the validation batch that training would use.
            timed_s: Time steps of one micro-batch for about this many seconds.

        Raises:
            ObjectiveError: The user's code failed, or its process crashed twice.
            _TimeUp: The probe's time is over.
        """
        facts = self.host.facts
        eval_size = self.eval_size(size, final=final)
        n_steps = FINAL_STEPS if final else STEPS
        fluke: str | None = None
        while True:
            both = not timed_s and (facts.kind == "supervised" or 2 * size <= facts.n_samples)
            spec = MeasureSpec(size, eval_size, 2 if both else 1, n_steps, self.seed, timed_s)
            attempt, reading, failure = self._once(spec, traced=self.foresight.wants_trace and not timed_s)
            if attempt is None:
                continue
            if fluke is None and _may_be_fluke(attempt, failure):
                fluke = attempt.reason  # The same twice is none.
                continue
            if fluke is not None and attempt.outcome == "ok":
                self.warn(f"A first run at micro-batch {size} failed where a second one did not: {fluke}.")
            self.last_failure = failure
            self._note(attempt)
            if attempt.outcome == "oom" and attempt.phase == "validation" and eval_size > 1 and attempt.steps >= n_steps:
                eval_size = self._eval_limit = eval_size // 2
                continue
            if attempt.outcome == "error" and not (size == 1 and isinstance(failure, jobs.Failure)):
                raise _objective_error(failure, size, self.last_output)
            if reading is not None and attempt.outcome == "ok" and not timed_s:
                self.readings[size] = reading
                if final:
                    self.eval_sizes[size] = eval_size
            return attempt, reading

    def _once(self, spec: MeasureSpec, *, traced: bool) -> tuple[Attempt | None, Reading | None, jobs.Failure | Died | None]:
        left_s = None if self.deadline_s is None else self.deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise _TimeUp
        start_s = time.monotonic()
        worker = self.host.start(jobs.Measure(spec, traced), fence_bytes=self.fence_bytes)
        try:
            answer = self.host.answer(worker, left_s)
            self.last_output = worker.tail() if isinstance(answer, (jobs.Failure, Died)) else None
        finally:
            worker.end()
        if answer is None:
            raise _TimeUp
        if isinstance(answer, jobs.Measured) and answer.trace is not None:
            self.foresight.add(answer.trace, context_bytes=answer.reading.start_bytes)
            if answer.trace.compiled:
                return None, None, None  # It ran eagerly because it was traced, so its memory is not that of training either.
        attempt = self._judge(spec, answer, time.monotonic() - start_s)
        reading = answer.reading if isinstance(answer, (jobs.Measured, jobs.Failure)) else None
        return attempt, reading, None if isinstance(answer, jobs.Measured) else answer

    def _judge(self, spec: MeasureSpec, answer: jobs.Measured | jobs.Failure | Died, seconds: float) -> Attempt:
        size = spec.micro_batch_size

        def attempt(outcome: Outcome, peak: int | None, steps: int, phase: str | None, reason: str | None) -> Attempt:
            return Attempt(size, outcome, peak, seconds, steps, spec.eval_batch_size, phase, reason)

        if isinstance(answer, Died):
            # SIGKILL is the kernel's answer to a process that takes too much; nobody else here sends it.
            return attempt("oom" if answer.exit_code == -9 else "error", None, 0, None, answer.text)
        reading = answer.reading
        if isinstance(answer, jobs.Failure):
            reason = f"{answer.error_type}: {first_line(answer.message)}"
            peak, steps, phase = (reading.peak_bytes, reading.steps, reading.phase) if reading else (None, 0, "build")
            return attempt(answer.outcome, peak, steps, phase, reason)
        assert reading is not None
        notes = answer.notes
        self.samples += notes.samples
        self.optimizer = self.optimizer or notes.optimizer
        if spec.timed_s and reading.timed_step_s:
            self.rows = sorted([*self.rows, throughput_row(size, reading.timed_step_s)], key=lambda row: row.batch_size)
            if size == self.rows[-1].batch_size:
                self.loader = loader_of(size, reading.timed_step_s, notes.wait_s, notes.cached_step_s)
        if not spec.timed_s:
            self.eval_unseen = notes.eval_batch_size is None
            self.warnings.update(dict.fromkeys(notes.warnings))
        if reading.alloc_retries:
            return attempt("oom", reading.peak_bytes, reading.steps, "train", f"the allocator had to retry {reading.alloc_retries} times")
        # An attempt that only times a size holds a batch more than training does, and its size was seen to fit before.
        if not spec.timed_s and reading.peak_bytes is not None and reading.peak_bytes > self.budget_bytes:
            phase = next((name for name, peak in reading.phase_peaks.items() if peak > self.budget_bytes), reading.phase)
            reason = f"peak {reading.peak_bytes / GIB:.3f} GiB is over the budget of {self.budget_bytes / GIB:.3f} GiB"
            return attempt("oom", reading.peak_bytes, reading.steps, phase, reason)
        return attempt("ok", reading.peak_bytes, reading.steps, None, None)

    def warn(self, text: str) -> None:
        """Keep a warning, once."""
        self.warnings[text] = None

    def _note(self, attempt: Attempt) -> None:
        self.tried.append(attempt)
        if self._on_attempt:
            self._on_attempt(attempt)


def _may_be_fluke(attempt: Attempt, failure: jobs.Failure | Died | None) -> bool:
    """Whether an attempt failed in a way that may come of the moment: a crash, or an error that may or may not mean memory."""
    if isinstance(failure, Died):
        return attempt.outcome == "error"
    return failure is not None and attempt.outcome != "limit" and may_be_memory(failure.message)


def _objective_error(failure: jobs.Failure | Died | None, size: int, output: str | None) -> ObjectiveError:
    if isinstance(failure, jobs.Failure):
        error = error_of(failure, f"training at micro-batch {size}", output=output)
        assert isinstance(error, ObjectiveError)
        return error
    assert failure is not None
    text = f"A training step at micro-batch {size} crashed twice: {failure.text}. Expected it to end or to raise."
    return ObjectiveError(text, output=output)


def _size(attempt: Attempt, attempts: _Attempts) -> Size:
    died = attempts.last_failure is not None  # What it held when it failed is no peak, only a part of one.
    return Size(attempt.size, attempt.outcome == "ok", None if died else attempt.peak_bytes, attempt.outcome)


def _grow(growth: Growth, attempts: _Attempts) -> None:
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
            if attempt.outcome == "ok" and growth.flat and growth.smallest_failure is None and size >= SMALLEST_PLATEAU:
                rates.append(_rate(size, attempts))
                if len(rates) > 2 and max(rates[-2:]) <= PLATEAU_GAIN * rates[-3]:
                    growth.stop("plateau")
    except _TimeUp:
        growth.stop("timeout")
    if growth.answer.size is None:
        raise _nothing_fits(growth, attempts)


def _one_is_too_few(attempt: Attempt, failure: jobs.Failure | Died | None, attempts: _Attempts) -> Attempt:
    """Return the failed attempt at size 1 as a `limit` where 2 samples train.

    Raises:
        ObjectiveError: They do not: it is a bug.
    """
    if attempts.run(2)[0].outcome != "ok":
        raise _objective_error(failure, 1, attempts.last_output)
    fixed = replace(attempt, outcome="limit")
    attempts.tried[attempts.tried.index(attempt)] = fixed
    return fixed


def _rate(size: int, attempts: _Attempts) -> float:
    attempts.run(size, timed_s=TIMED_S)
    return next((row.samples_per_s for row in attempts.rows if row.batch_size == size), 0.0)


def _verify(growth: Growth, attempts: _Attempts) -> Reading:
    """See that the answer has run for three steps and that its peak is no accident; where it is, the search goes on below it.

    A peak that was foreseen to within a third of the headroom is none. Any other is measured once more.
    """
    while True:
        size = growth.answer.size
        if size is None:
            raise _nothing_fits(growth, attempts)
        reading, expected = attempts.readings[size], growth.answer.predicted_bytes
        allowed_bytes = attempts.headroom * attempts.usable_bytes / 3
        foreseen = expected is not None and reading.peak_bytes is not None and abs(expected - reading.peak_bytes) <= allowed_bytes
        if foreseen and size in attempts.eval_sizes:
            return reading
        try:
            attempt, again = attempts.run(size, final=True)
        except _TimeUp:
            growth.stop("timeout")
            return attempts.readings[size]
        growth.add(_size(attempt, attempts))
        attempts.budget_bytes = growth.budget_bytes = attempts.usable_bytes - max(
            int(attempts.headroom * attempts.usable_bytes), int(3 * growth.repeat_noise_bytes)
        )
        if attempt.outcome == "ok" and again is not None and growth.answer.size == size:
            return again
        _grow(growth, attempts)


def _time_sizes(largest: int, bounds: Bounds, attempts: _Attempts) -> None:
    """Time a handful of sizes up to the answer, alone on the device."""
    timed = {row.batch_size for row in attempts.rows}
    for size in sizes_to_time(largest, smallest=max(SMALLEST_TIMED, bounds.lowest), multiple_of=bounds.multiple_of):
        if size in timed:
            continue
        try:
            attempts.run(size, timed_s=TIMED_S)
        except _TimeUp:
            break
    if attempts.rows and _busy():
        attempts.warn("Other processes keep this machine's cores busy, so the step times are too long; probe again when it is idle.")


def _busy() -> bool:
    return os.getloadavg()[0] > usable_cores() + 0.5


def _nothing_fits(growth: Growth, attempts: _Attempts) -> BstuneError:
    """Return the error for a probe in which no size trained."""
    smallest = min(attempts.tried, key=lambda attempt: attempt.size, default=None)
    if smallest is None:
        return BstuneError("The time limit was over before the first size had run, so nothing is known. Give the probe more time.")
    if all(attempt.outcome == "limit" for attempt in attempts.tried if attempt.size <= growth.bounds.highest):
        return ObjectiveError(
            f"No micro-batch up to {growth.bounds.highest} trains, and memory is not why: {smallest.reason}. Allow a larger one, or use "
            "layers that do not need several samples."
        )
    asked = asked_bytes(smallest.reason or "")
    parts = [smallest.peak_bytes or 0, growth.answer.needed_bytes or 0, 2 * (attempts.host.facts.parameter_bytes or 0)]
    needed = max(*parts, (smallest.peak_bytes or 0) + (asked or 0))
    phase = f" in {smallest.phase}" if smallest.phase else ""
    at_least = "" if smallest.peak_bytes == needed else "at least "
    device = attempts.host.device
    return NothingFitsError(
        f"Nothing fits: a micro-batch of {smallest.size} needs {at_least}{needed / GIB:.2f} GiB{phase}; the budget on {device} is "
        f"{attempts.budget_bytes / GIB:.2f} GiB (usable {attempts.usable_bytes / GIB:.2f} GiB, headroom {attempts.headroom:.2f}). "
        "Try activation checkpointing, lower precision, shorter inputs, a smaller model, or more memory.",
        needed_bytes=needed,
        budget_bytes=attempts.budget_bytes,
    )


def _result(host: Host, attempts: _Attempts, answer: Answer, final: Reading) -> ProbeResult:
    size = answer.size
    assert size is not None
    assert final.peak_bytes is not None
    line = None
    if answer.fixed_bytes is not None and answer.bytes_per_sample is not None:
        predicted = answer.predicted_bytes
        error = None if predicted is None else (predicted - final.peak_bytes) / final.peak_bytes
        line = MemoryLine(answer.fixed_bytes, answer.bytes_per_sample, predicted, final.peak_bytes, error)
    if any(attempt.outcome == "limit" and attempt.size == 1 for attempt in attempts.tried):
        attempts.warn("A micro-batch of 1 does not train (BatchNorm needs at least 2), so it was skipped.")
    if attempts.loader is not None and attempts.loader.bound:
        attempts.warn(
            f"The data loader holds training back: {attempts.loader.wait_share:.0%} of a step waits for its batch. More num_workers, or a "
            "data set that is cheaper to read, would help more than any batch size."
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
    )


def _categories(final: Reading, size: int, bytes_per_sample: float | None) -> MemoryByCategory:
    """Split the peak: tensors are counted, activations are what grows with the batch, the rest is workspace."""
    peak = final.peak_bytes or 0
    held = [final.parameters_bytes, final.gradients_bytes, final.optimizer_state_bytes]
    known = sum(part or 0 for part in held)
    activations = None if bytes_per_sample is None else max(0, min(peak - known, round(bytes_per_sample * size)))
    workspace = None if activations is None else max(0, peak - known - activations)
    return MemoryByCategory(held[0], held[1], held[2], activations, workspace)
