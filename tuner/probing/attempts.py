"""Runs sizes, each in a fresh process, and returns how each ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ..core.errors import ObjectiveError, in_words
from ..core.probe_results import Attempt, Loader, Outcome, ThroughputRow
from ..core.trials import MeasureSpec
from ..device.meter import Reading
from ..device.out_of_memory import first_line, may_be_memory
from ..memory.predictor import Foresight
from ..theory.step_time import knee, loader_of, throughput_row
from ..workers import messages
from ..workers.fork_server import Host, error_of
from ..workers.template import Died

STEPS = 2
SMALL_EVAL = 8
"""Validation batch of the attempts on the way: the validation size is found with the answer."""
LARGE_EVAL = 256
"""Validation batch with an answer that is small because a search uses no larger one."""
FINAL_STEPS = 3
"""For the size that is returned: memory has been seen to grow in the second step (pytorch/pytorch#35901)."""
GIB = 1 << 30

OnAttempt = Callable[[Attempt], None]
OnNote = Callable[[str], None]


class TimeUp(Exception):
    """The probe's own time limit has passed."""


class Attempts:
    """Runs sizes, each in a fresh process, and keeps how each ended."""

    def __init__(
        self,
        host: Host,
        *,
        headroom: float,
        seed: int,
        timeout_s: float | None = None,
        on_attempt: OnAttempt | None = None,
        on_note: OnNote | None = None,
        for_search: bool = False,
    ) -> None:
        """Look what memory there is; `timeout_s` counts from now."""
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
        self.accumulates = True
        """Not so where a loop of the user's own was seen not to."""
        self.waiting_counts = False
        """Whether a time holds what its steps waited for a core."""
        self._timed: dict[int, dict[int, tuple[ThroughputRow, Loader | None]]] = {}
        """By threads and size."""
        self.last_output: str | None = None
        self.last_failure: messages.Failure | Died | None = None
        self.validation_s: dict[int, float] = {}
        """Seconds of validation for each of its samples, with a micro-batch size."""
        self.whole_validation_s: float | None = None
        """Seconds of a validation of a loop of the user's own."""
        self._validates = False
        self.start_s: float | None = None
        """Seconds until a command, or a loop of the user's own, begins to train."""
        self.eval_sizes: dict[int, int] = {}
        """Validation batch size that was seen to fit with a micro-batch size, as training would use it."""
        self.cut_at: int | None = None
        """Size at which the search for the answer ends because a larger one is of no use."""
        self._eval_limit: int | None = None
        on_cpu = host.device_info.kind == "cpu"
        self.foresight = Foresight(self.eval_size, reserved_bytes=None if on_cpu else self.usable_bytes)
        self._on_attempt = on_attempt
        self._on_note = on_note
        self._needs_loss = for_search
        # On CPU: twice the budget lets a size that is just too large be measured and not killed, where RAM allows it.
        self.fence_bytes = min(2 * self.usable_bytes + GIB, memory.available_bytes) if on_cpu else self.usable_bytes

    @property
    def fixed_bytes(self) -> float | None:
        """Bytes of the smallest size that do not grow with the size; None before an attempt has ended."""
        if not self.readings:
            return None
        reading = self.readings[min(self.readings)]
        parts = (reading.parameters_bytes, reading.gradients_bytes, reading.optimizer_state_bytes)
        return reading.start_bytes + sum(part or 0 for part in parts)

    @property
    def is_command(self) -> bool:
        """Whether the sizes are run by a command of the user's: it is seen from outside, without steps to time."""
        return self.host.facts.kind == "command"

    @property
    def validation_is_untimed(self) -> bool:
        """Whether a loop of the user's own was seen to validate only while it was recorded, which takes longer."""
        return self._validates and self.whole_validation_s is None

    @property
    def hopeless(self) -> bool:
        """Whether parameters and gradients alone are over the budget: one attempt at the smallest size is enough."""
        return 2 * (self.host.facts.parameter_bytes or 0) > self.budget_bytes

    def eval_size(self, size: int, *, final: bool = False) -> int:
        """Return the validation batch size that is run with a micro-batch size: a small one, or at last as large."""
        facts = self.host.facts
        most = size if final else min(size, SMALL_EVAL * facts.longest)
        if final and size == self.cut_at:
            most = max(size, int(LARGE_EVAL * facts.mean_size))
        return min(most, facts.n_val_samples or most, self._eval_limit or most)

    def run(self, size: int, *, final: bool = False, timed_s: float = 0.0) -> tuple[Attempt, Reading | None]:
        """Try one size; where only validation runs out of memory, with ever smaller validation batches.

        Args:
            size: The micro-batch size.
            final: It may be the answer: three steps, and the validation batch that training would use.
            timed_s: Time steps of one micro-batch for about this many seconds.

        Raises:
            ObjectiveError: The user's code failed, its process crashed twice, or it told no loss where one is needed.
            _TimeUp: The probe's time is over.
        """
        facts = self.host.facts
        eval_size = self.eval_size(size, final=final)
        if timed_s > 0 and not self.validation_s and self.eval_sizes:
            eval_size = list(self.eval_sizes.values())[-1]  # It is timed as training would do it.
        n_steps = FINAL_STEPS if final else STEPS
        fluke: str | None = None
        while True:
            spec, traced = self._spec(size, eval_size, n_steps, timed_s, final=final)
            attempt, reading, failure = self._once(spec, traced=traced)
            if attempt is None:
                continue
            if fluke is None and _may_be_fluke(attempt, failure):
                fluke = attempt.reason  # The same twice is none.
                continue
            if fluke is not None and attempt.outcome == "ok":
                self.warn(f"A first run at micro-batch {size} failed where a second one did not: {fluke}.")
            self.last_failure = failure
            self._note(attempt)
            if (
                attempt.outcome == "oom"
                and attempt.phase == "validation"
                and eval_size > facts.longest  # No batch is smaller, whatever it is to hold.
                and attempt.steps >= n_steps
                and not (failure is None and self.eval_unseen)  # It validates in batches of its own, whatever is asked.
            ):
                eval_size = self._eval_limit = max(facts.longest, eval_size // 2)
                continue
            if attempt.outcome == "error" and not (size == 1 and isinstance(failure, messages.Failure)):
                raise objective_error(failure, size, self.last_output)
            if reading is not None and attempt.outcome == "ok" and not timed_s:
                self.readings[size] = reading
                if final:
                    self.eval_sizes[size] = eval_size
            return attempt, reading

    def _spec(
        self, size: int, eval_size: int, n_steps: int, timed_s: float, *, final: bool
    ) -> tuple[MeasureSpec, bool]:
        """Return what one attempt is to run, and whether its memory is traced."""
        facts = self.host.facts
        both = not timed_s and (facts.kind == "supervised" or 2 * size * facts.world_size <= facts.n_samples)
        traced = (
            self.foresight.wants_trace
            and not timed_s
            and not self.is_command
            and facts.world_size == 1  # A trace sees one process.
            and not (self.validation_is_untimed and size in self.eval_sizes)
        )
        # With the answer; where that was traced, with the first size that is timed.
        validates = not traced and (final or (timed_s > 0 and not self.validation_s))
        spec = MeasureSpec(
            size,
            eval_size,
            2 if both else 1,
            n_steps,
            self.seed,
            timed_s,
            times_validation=validates,
            params=self.host.params,
        )
        return spec, traced

    def _once(
        self, spec: MeasureSpec, *, traced: bool
    ) -> tuple[Attempt | None, Reading | None, messages.Failure | Died | None]:
        left_s = None if self.deadline_s is None else self.deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeUp
        start_s = time.monotonic()
        worker = self.host.start(messages.Measure(spec, traced), fence_bytes=self.fence_bytes)
        try:
            answer = self.host.answer(worker, left_s)
            self.last_output = worker.tail() if isinstance(answer, (messages.Failure, Died)) else None
            if self._needs_loss and isinstance(answer, messages.Measured) and answer.notes.no_loss:
                raise ObjectiveError(answer.notes.no_loss, output=worker.tail())
        finally:
            worker.end()
        if answer is None:
            raise TimeUp
        if isinstance(answer, messages.Measured) and answer.trace is not None:
            self.foresight.add(answer.trace, context_bytes=answer.reading.start_bytes)
            if answer.trace.compiled:
                return (
                    None,
                    None,
                    None,
                )  # It ran eagerly because it was traced, so its memory is not that of training either.
        attempt = self._outcome(spec, answer, time.monotonic() - start_s)
        reading = answer.reading if isinstance(answer, (messages.Measured, messages.Failure)) else None
        return attempt, reading, None if isinstance(answer, messages.Measured) else answer

    def _outcome(
        self, spec: MeasureSpec, answer: messages.Measured | messages.Failure | Died, seconds: float
    ) -> Attempt:
        size = spec.micro_batch_size

        def attempt(outcome: Outcome, peak: int | None, steps: int, phase: str | None, reason: str | None) -> Attempt:
            return Attempt(size, outcome, peak, seconds, steps, spec.eval_batch_size, phase, reason)

        if isinstance(answer, Died):
            # SIGKILL is the kernel's answer to a process that takes too much; nobody else here sends it.
            return attempt("oom" if answer.exit_code == -9 else "error", None, 0, None, answer.text)
        reading = answer.reading
        if isinstance(answer, messages.Failure):
            reason = in_words(answer.error_type, first_line(answer.message))
            peak, steps, phase = (reading.peak_bytes, reading.steps, reading.phase) if reading else (None, 0, "build")
            return attempt(answer.outcome, peak, steps, phase, reason)
        assert reading is not None
        notes = answer.notes
        self.samples += notes.samples
        self.optimizer = self.optimizer or notes.optimizer
        if notes.validation_s_per_sample is not None:
            self.validation_s[size] = notes.validation_s_per_sample
        # What disturbs them only makes them longer.
        self._validates |= notes.validation_s is not None
        if answer.trace is None:  # To record takes most of the time.
            self.start_s = _least(notes.start_s, self.start_s)
            self.whole_validation_s = _least(notes.validation_s, self.whole_validation_s)
        if spec.timed_s and reading.timed_step_s:
            row = throughput_row(size * self.host.facts.world_size, reading.timed_step_s)  # Of all processes together.
            self.waiting_counts |= reading.waiting_counts
            timed, known_s = self._timed.setdefault(self.host.threads, {}), self.step_s(row.batch_size)
            if known_s is None or row.s_per_step < known_s:  # What disturbs a step only makes it longer.
                loader = loader_of(size, reading.timed_step_s, notes.wait_s, notes.cached_step_s)
                timed[row.batch_size] = row, loader
        self.accumulates &= notes.accumulates
        if not spec.timed_s:
            self.eval_unseen = notes.eval_batch_size is None
            self.warnings.update(dict.fromkeys(notes.warnings))
        if reading.alloc_retries:
            return attempt(
                "oom",
                reading.peak_bytes,
                reading.steps,
                "train",
                f"the allocator had to retry {reading.alloc_retries} times",
            )
        # An attempt that only times a size holds a batch more than training does, and its size was seen to fit before.
        if not spec.timed_s and reading.peak_bytes is not None and reading.peak_bytes > self.budget_bytes:
            phase = next(
                (name for name, peak in reading.phase_peaks.items() if peak > self.budget_bytes), reading.phase
            )
            reason = f"peak {reading.peak_bytes / GIB:.3f} GiB is over the budget of {self.budget_bytes / GIB:.3f} GiB"
            return attempt("oom", reading.peak_bytes, reading.steps, phase, reason)
        return attempt("ok", reading.peak_bytes, reading.steps, None, None)

    @property
    def rows(self) -> list[ThroughputRow]:
        """What was timed with as many threads as there are now, by size."""
        timed = self._timed.get(self.host.threads, {})
        return [timed[size][0] for size in sorted(timed)]

    def step_s(self, size: int) -> float | None:
        """Return the seconds of a step at a size, with the present number of threads; None where it was not timed."""
        return next((row.s_per_step for row in self.rows if row.batch_size == size), None)

    @property
    def loader(self) -> Loader | None:
        """What the loader costs about where throughput stops rising: at tiny sizes everything else costs more."""
        size = knee(self.rows)
        return None if size is None else self._timed[self.host.threads][size][1]

    def validation_s_per_sample(self, size: int) -> float | None:
        """Return the seconds of validation for each of its samples: seen with the answer, else with another size."""
        return self.validation_s.get(size, next(iter(self.validation_s.values()), None))

    @contextlib.contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """End what runs in the block after so many seconds; only the probe's own time limit raises `TimeUp`."""
        before, own = self.deadline_s, time.monotonic() + seconds
        self.deadline_s = own if before is None else min(before, own)
        try:
            yield
        except TimeUp:
            if self.deadline_s == before:
                raise
        finally:
            self.deadline_s = before

    def note(self, text: str) -> None:
        """Tell listeners what has been decided."""
        if self._on_note:
            self._on_note(text)

    def warn(self, text: str) -> None:
        """Keep a warning, once."""
        self.warnings[text] = None

    def _note(self, attempt: Attempt) -> None:
        self.tried.append(attempt)
        if self._on_attempt:
            self._on_attempt(attempt)


def _may_be_fluke(attempt: Attempt, failure: messages.Failure | Died | None) -> bool:
    """Whether an attempt may have failed by chance: a crash, or an error that may or may not mean memory."""
    if isinstance(failure, Died):
        return attempt.outcome == "error"
    return failure is not None and attempt.outcome != "limit" and may_be_memory(failure.message)


def _least(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def objective_error(failure: messages.Failure | Died | None, size: int, output: str | None) -> ObjectiveError:
    """Return the error for an attempt in which the user's code failed."""
    if isinstance(failure, messages.Failure):
        error = error_of(failure, f"training at micro-batch {size}", output=output)
        assert isinstance(error, ObjectiveError)
        return error
    assert failure is not None
    text = f"A training step at micro-batch {size} crashed twice: {failure.text}. Expected it to end or to raise."
    return ObjectiveError(text, output=output)
