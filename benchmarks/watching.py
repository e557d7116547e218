"""What bstune would recommend at every moment of a search on a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from baselines import Trace
from bstune.tuner.core.errors import NoSignalError
from bstune.tuner.strategy.strategy import Strategy


def recommendations(trace: Trace, cost: Callable[[Strategy], float]) -> Callable[[Strategy], None]:
    """Return a function for `replay(watch=...)` that keeps a trace.

    It adds (cost so far, recommended cell) whenever something was learned.
    """
    before: list[tuple[int, ...]] = []

    def look(now: Strategy) -> None:
        # Between rungs and ends nothing is learned that the recommendation rests on.
        state = tuple(
            sum(rung in run.values for rung in now.rungs.samples) + 8 * (run.state != "running")
            for run in now.ledger
            if run.values
        )
        if state not in before[-1:] and any(run.finite for run in now.ledger):
            before.append(state)
            with contextlib.suppress(NoSignalError):  # A planned run has first to reach its end.
                best = now.recommend()
                trace.append((cost(now), (best.global_batch_size, best.learning_rate)))

    return look
