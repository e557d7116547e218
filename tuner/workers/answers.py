"""What a worker may answer, checked against what it was asked.

It must be the right message, about the right trial, with possible figures.

User code runs in the worker, so an answer may be anything. What passes here is safe to use, store and show.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.examination import Examined
from ..core.plain_text import one_line, printable
from ..core.trials import Facts, TrialReport, TrialSpec, Verdict
from ..device.cuda import CudaFacts
from . import messages
from .message_json import decode
from .wire import MOST_BYTES, MalformedError

if TYPE_CHECKING:
    from ..memory.trace import Trace

SMALL_BYTES = 1 << 20
"""Of any message but a measurement with its trace."""
MOST_COUNT = 1 << 60
"""No count of bytes, samples or steps is larger."""
FAR_PAST = 1_000_000
"""A loop of the user's own may pass its planned end, but by so many times it has not."""
MOST_MESSAGE, MOST_TRACEBACK, MOST_NAME, MOST_WARNINGS = 2_000, 20_000, 200, 20
"""Characters of an error's message, its traceback and its type; warnings of one measurement."""

MOST_LOOKS = 1_000
"""At a model, in one process."""


class Listener:
    """Reads what one worker says, and refuses what it was not asked for."""

    def __init__(self, work: messages.Work | None) -> None:
        """Read from a process that does this job; None: one that loads the objective."""
        answers: dict[type[Any], tuple[type[Any], ...]] = {
            type(None): (messages.Ready,),
            messages.Describe: (Facts,),
            messages.TryCuda: (CudaFacts,),
            messages.Measure: (messages.Measured,),
            messages.Train: (TrialReport, messages.Trained),
            messages.Examine: (Examined,),
        }
        self.most_bytes = MOST_BYTES if isinstance(work, messages.Measure) else SMALL_BYTES
        self._expected = (*answers[type(work)], messages.Failure)
        self._trial = _TrialProgress(work.spec) if isinstance(work, messages.Train) else None

    def take(self, body: bytes) -> messages.Answer:
        """Return the answer in a message.

        Raises:
            MalformedError: It is none, or one that was not asked for.
        """
        answer = decode(body, *self._expected)
        if isinstance(answer, (TrialReport, messages.Trained)):
            assert self._trial is not None
            self._trial.check(answer)
            return answer
        if isinstance(answer, Examined):
            return _checked_examined(answer)
        _check_figures(answer, type(answer).__name__)
        if isinstance(answer, messages.Failure):
            return _tidied(answer) if self._trial is None else self._trial.failed(_tidied(answer))
        if isinstance(answer, messages.Measured):
            return _checked_measured(answer)
        if isinstance(answer, CudaFacts):
            _refuse_unless(re.fullmatch(r"cuda:\d{1,4}", answer.device) is not None, "a device that is none")
        return answer

    def told(self, verdict: Verdict) -> None:
        """Note the verdict on the last report."""
        if self._trial is not None:
            self._trial.waits, self._trial.stopped = False, verdict == "stop"


class _TrialProgress:
    """How far a trial has come, by what it has said."""

    def __init__(self, spec: TrialSpec) -> None:
        self.waits = False
        """For the verdict on its report."""
        self.stopped = False
        self._spec = spec
        self._samples = spec.start_samples
        self._wanted = spec.points[sum(point <= spec.start_samples for point in spec.points) :]
        self._n_reported = 0
        self._most_samples = FAR_PAST * max(1, spec.end_samples)

    def check(self, answer: TrialReport | messages.Trained) -> None:
        """Raise a MalformedError unless the trial may say this now."""
        spec, samples = self._spec, answer.samples
        _refuse_unless(not self.waits, "a second message before the answer to its report")
        if not self._samples <= samples <= self._most_samples:
            raise MalformedError(
                f"told bstune of {samples} samples after {self._samples}, in a trial that ends at {spec.end_samples}: "
                "that cannot be"
            )
        if isinstance(answer, messages.Trained):
            _check_figures(answer, "Trained")
            _refuse_unless(answer.checkpoint in (None, spec.checkpoint_to), "a checkpoint that it was not asked for")
            return
        for figures in (
            answer.seconds,
            answer.interval,
            answer.points,
            [(p.at_samples, p.n_microbatches, p.microbatch_size) for p in answer.noise],
        ):
            _check_figures(figures, "TrialReport")
        _check_figures(tuple(answer.metrics), "TrialReport.metrics")
        _refuse_unless(
            answer.number == spec.number, f"a report of trial {answer.number}, and it runs trial {spec.number}"
        )
        _refuse_unless(not self.stopped, "a report after it was told to stop")
        left = itertools.islice(self._wanted, self._n_reported, None)
        due = tuple(itertools.takewhile(lambda point: samples >= min(point, spec.end_samples), left))
        _refuse_unless(
            answer.points == due and bool(due or not math.isfinite(answer.val_loss)),
            "a report that it was not asked for",
        )
        self._samples, self._n_reported, self.waits = samples, self._n_reported + len(due), True

    def failed(self, failure: messages.Failure) -> messages.Failure:
        """Return a failure whose samples can be."""
        return dataclasses.replace(failure, samples=min(max(failure.samples, self._samples), self._most_samples))


def _refuse_unless(holds: bool, what: str) -> None:
    if not holds:
        raise MalformedError(f"sent bstune {what}")


def _check_figures(value: Any, where: str) -> None:
    """Raise a MalformedError where a number is negative, not finite or absurd, or a text cannot be stored."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            if item.name != "trace":
                _check_figures(getattr(value, item.name), f"{where}.{item.name}")
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_figures(each, where)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check_figures(key, where)
            _check_figures(each, where)
    elif isinstance(value, (int, float)) and not (0 <= value <= MOST_COUNT):
        raise MalformedError(f"sent bstune a number that cannot be: {where} is {value!r}")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MalformedError(f"sent bstune a text that is none: {where}") from None


def _checked_measured(measured: messages.Measured) -> messages.Measured:
    reading, notes = measured.reading, measured.notes
    _refuse_unless(
        all(seconds > 0 for seconds in (*reading.timed_step_s, *notes.cached_step_s)), "steps that took no time"
    )
    if measured.trace is not None:
        _check_trace(measured.trace)
    warnings = tuple(cut(one_line(text), MOST_MESSAGE) for text in notes.warnings[:MOST_WARNINGS])
    return dataclasses.replace(measured, notes=dataclasses.replace(notes, warnings=warnings))


def _checked_examined(examined: Examined) -> Examined:
    _check_figures((examined.samples, examined.seconds), "Examined")
    looks = []
    for look in examined.looks[:MOST_LOOKS]:
        _check_figures((look.at_samples, look.seconds), "Look")
        texts = {
            one_line(name, MOST_NAME): tuple(one_line(text, MOST_NAME) for text in found)
            for name, found in look.texts.items()
        }
        failed = None if look.failed is None else one_line(look.failed, MOST_MESSAGE)
        name = one_line(look.measurement, MOST_NAME)
        looks.append(dataclasses.replace(look, measurement=name, texts=texts, failed=failed))
    return dataclasses.replace(examined, looks=tuple(looks))


def _check_trace(trace: Trace) -> None:
    """Raise a MalformedError unless the arrays of a trace belong together."""
    n_storages, n_events = len(trace.nbytes), len(trace.signs)
    n_names = len(trace.op_names) or len(trace.nbytes) + 1
    holds = (
        trace.batch >= 1
        and (trace.eval_batch is None or trace.eval_batch >= 1)
        and len(trace.storages) == n_events
        and len(trace.born_in) == n_storages
        and bool((abs(trace.signs.astype("int16")) == 1).all())
        and _within(trace.storages, n_storages)
        and _within(trace.born_in, n_names)
        and _within(trace.nbytes, MOST_COUNT)
        and float(trace.nbytes.astype("float64")[trace.storages].sum()) <= MOST_COUNT
        and all(0 <= count <= n_events for _, count in trace.marks)
    )
    _refuse_unless(holds, "a trace whose parts do not belong together")


def _within(array: Any, end: int) -> bool:
    return len(array) == 0 or bool(array.min() >= 0 and array.max() < end)


# --- what an error says, at either end --------------------------------------------------------------------------------


def cut(text: str, most: int) -> str:
    """Return text of at most about `most` characters: its beginning and its end, and how much is missing.

    Example:
        >>> cut("a" * 50 + "b" * 50, 40)
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa [60 characters cut] bbbbbbbbbb'
    """
    if len(text) <= most:
        return text
    last = most // 4
    return f"{text[: most - last]} [{len(text) - most:,} characters cut] {text[-last:]}"


def told(text: str, most: int) -> str:
    """Return text as it may be shown, cut after what must not be shown is hidden: half a password is still a secret."""
    if len(text) <= most:
        return cut(printable(text), most)
    last = most // 4
    begin, end = printable(text[: 4 * most])[: most - last], printable(text[-4 * most :])[-last:]
    return f"{begin} [{len(text) - most:,} characters cut] {end}"


def _tidied(failure: messages.Failure) -> messages.Failure:
    return dataclasses.replace(
        failure,
        error_type=one_line(cut(failure.error_type, MOST_NAME)) or "Exception",
        message=told(failure.message, MOST_MESSAGE + 100),
        traceback=told(failure.traceback, MOST_TRACEBACK + 100),
    )
