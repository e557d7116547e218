"""What a step costs: with how many threads, which sizes are timed, alone on the device, and for how long."""

from __future__ import annotations

import contextlib
import os
import time

from ..core.probe_results import Attempt
from ..device.memory import usable_cores
from ..theory.step_time import LINE_KNOWN, REACH, fit_step_time, next_size_to_time, worst_error
from .attempts import Attempts, TimeUp
from .size_search import Bounds

TIMED_S = 0.4
LEAST_S = 1.0
"""Timing may always take so long. Beyond, it takes no longer than finding the size did."""
LEAST_COMMAND_S = 10.0
"""The same for a command, which starts a program each time."""
SMALLEST_TIMED = 4
USUAL_SIZE = 32
"""Of a command an epoch is timed: at much smaller sizes that takes long."""
AS_FAST = 1.03
"""One thread that takes up to so many times as long as all of them is as fast, and leaves the other cores free."""
PATIENCE = 3
"""With one thread, timing may take so many times as long as with all."""
SLOW_STEPS = 6
"""Steps of an attempt that times a size whose steps are slow: two to warm up, and as few as will do."""


def enough_to_time(longest: int = 1) -> int:
    """Return the size that must be tried for a line of step times: the larger of the first two that are timed.

    Example:
        >>> enough_to_time()
        32
    """
    return REACH * max(SMALLEST_TIMED, longest)


def time_sizes(largest: int, bounds: Bounds, attempts: Attempts) -> None:
    """Time a few sizes up to the answer, until the step-time line is known or timing took as long as finding the size.

    Where the threads are to be chosen, the first size is timed with all of them and with one, and the faster are used
    from then on.
    """
    begun_s = time.monotonic()
    end_s = begun_s + max(LEAST_S, begun_s - attempts.started_s)
    last: Attempt | None = None
    repeated: set[int] = set()
    try:
        if attempts.host.chooses_threads:
            _choose_threads(largest, bounds, attempts)
        while (size := _next(largest, bounds, attempts, repeated)) is not None:
            if last is not None and time.monotonic() + _expected_s(size, last, attempts) > end_s:
                break
            last = time_size(size, attempts)
            if last.outcome != "ok" or size not in {row.batch_size for row in attempts.rows}:
                break
    except TimeUp:
        pass
    if attempts.rows and _busy() and attempts.waiting_counts:
        attempts.warn(
            "Other processes keep this machine's cores busy, so the step times are too long; probe again when it is "
            "idle."
        )


def time_command(largest: int, bounds: Bounds, attempts: Attempts) -> None:
    """Time an epoch of a command at the answer and at a smaller size, for no longer than twice what finding it took.

    Where that is too short for the epochs, what one takes is left to the trials.
    """
    smaller = min(USUAL_SIZE, largest // 4)
    sizes = {largest, max(smaller - smaller % bounds.multiple_of, bounds.lowest)}
    most_s = max(LEAST_COMMAND_S, 2 * (time.monotonic() - attempts.started_s))
    with attempts.limited_to(most_s), contextlib.suppress(TimeUp):
        for size in sorted(sizes, reverse=True):
            if time_size(size, attempts).outcome != "ok" or not attempts.rows:
                break


def _choose_threads(largest: int, bounds: Bounds, attempts: Attempts) -> None:
    """Time a middle size with all threads and with one, and keep the faster: small steps lose by sharing the work."""
    host, n_all, one_is_faster = attempts.host, attempts.host.threads, False
    size = next_size_to_time([], largest, smallest=_smallest(largest, bounds, attempts), multiple_of=bounds.multiple_of)
    assert size is not None
    shared_s = time_size(size, attempts).seconds
    with_all = attempts.step_s(size)
    host.use_threads(1)
    try:
        with attempts.limited_to(PATIENCE * shared_s):
            time_size(size, attempts)
        with_one = attempts.step_s(size)
        one_is_faster = with_one is not None and (with_all is None or with_one <= AS_FAST * with_all)
    finally:
        if not one_is_faster:
            host.use_threads(n_all)
    attempts.note(
        f"threads {host.threads}: a step at micro-batch {size} takes {_ms(with_one)} with 1, "
        f"{_ms(with_all)} with {n_all}"
    )


def _ms(seconds: float | None) -> str:
    return "far longer" if seconds is None else f"{1000 * seconds:.3g} ms"


def time_size(size: int, attempts: Attempts) -> Attempt:
    """Time one size; its row is then among those of the attempts."""
    return attempts.run(size, timed_s=TIMED_S)[0]


def _next(largest: int, bounds: Bounds, attempts: Attempts, repeated: set[int]) -> int | None:
    """Return the next size to time: the one far off the line once more (something else may have run), or a new one."""
    rows = attempts.rows
    line = fit_step_time(rows)
    if line is not None and worst_error(line, rows) > LINE_KNOWN:
        slowest = max(rows, key=lambda row: row.s_per_step / line.step_s(row.batch_size)).batch_size
        if slowest not in repeated:
            repeated.add(slowest)
            return slowest
    smallest = _smallest(largest, bounds, attempts)
    size = next_size_to_time(rows, largest, smallest=smallest, multiple_of=bounds.multiple_of)
    return None if size in {row.batch_size for row in rows} else size


def _smallest(largest: int, bounds: Bounds, attempts: Attempts) -> int:
    """Return the smallest size to time: where no more than that fits, a line needs one below it all the same."""
    half = max(largest // 2, 1 if 1 in attempts.readings else 2)  # A model may not train on one sample.
    return max(min(SMALLEST_TIMED, half), bounds.lowest)


def _expected_s(size: int, last: Attempt, attempts: Attempts) -> float:
    """Return how long timing a size is expected to take; nothing while there is no line, which needs two sizes."""
    line = fit_step_time(attempts.rows)
    return 0.0 if line is None else last.seconds + SLOW_STEPS * (line.step_s(size) - line.step_s(last.size))


def _busy() -> bool:
    return os.getloadavg()[0] > usable_cores() + 0.5
