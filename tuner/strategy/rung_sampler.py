"""What to try next where no step time is known: a race along the learning rate, then rungs filled with what looks best.

All batch sizes cost the same there, so what is left to decide is how many settings go how deep.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .ledger import Key, Ledger, Run
from .posterior import Context, Model
from .race import Action, Race
from .space import Point

PROMOTED = 1.2
"""One in so many settings goes on to the next rung; the surrogate chooses, so fewer are dropped than in halving."""
ROOM = 0.5
"""A rung has room while one over `PROMOTED` of the settings at the rung before exceed those at it by more than this."""
LARGEST_SHARE = 0.25
"""No single run takes more than this share of what the search may train; what is left at the end may go deeper."""
OPTIMISM = 1.0
"""A new setting is judged by its expected end less this many standard deviations."""
HOPELESS_GAP = 0.35
"""A setting that is expected to end so much worse than the best, for each full run of the search, is not trained on."""
LARGEST_HOPELESS_GAP = 1.5
"""Gaps are compressed ones: this is a loss 14 % higher."""


class RungSampler:
    """The sampler of bstune: a race along the learning rate, then rungs filled with what is expected to end lowest."""

    def __init__(self, context: Context, left: float = math.inf) -> None:
        """Keep the context and how many full runs the search may train; all else is read off the ledger each time."""
        self._context = context
        self._left = left
        self._race = Race(context, context.space.anchor_batch)

    def next(self, ledger: Ledger) -> Action | None:
        """Return the next run to start, or None when nothing is left to learn."""
        action = self._race.next(ledger)
        if action is not None:
            return action
        model = Model.of(self._context, ledger)
        return self._race.untried(ledger) if model is None else self._climb(ledger, model)

    def goes_on(self, ledger: Ledger, run: Run, point: int) -> bool:
        """Return whether a running trial passes the rung at `point`: the next has room, and nothing better waits."""
        rungs = self._context.rungs
        following = rungs.after(point, run.setting.global_batch_size)
        if following is None:
            return True
        if self._race.next(ledger) is not None:
            return False
        model = Model.of(self._context, ledger)
        if model is None:
            return True
        rung = rungs.samples.index(following)
        level = self._levels(ledger, model)
        if run.number in model.lost or not self._has_room(ledger, level, rung):
            return False
        waiting = [
            p for p in model.points if p.key == run.key or (level.get(p.key) == rung - 1 and not model.closed(p.key))
        ]
        best = self._best_of(ledger, model, waiting)
        return best is not None and best.key == run.key

    # --- the rungs ---

    def _levels(self, ledger: Ledger, model: Model) -> dict[Key, int]:
        """Return the deepest rung, by its place, that each setting has reached or is granted."""
        rungs = self._context.rungs
        level: dict[Key, int] = {}
        for run in (*model.deepest.values(), *(run for run in ledger.running if run.seed == self._context.seed)):
            samples = max(run.samples, run.granted if run.state == "running" and not run.values else 0)
            # A run that is planned to end at a rung ends up to one step before it.
            reached = bisect.bisect_left(rungs.samples, samples + run.setting.global_batch_size) - 1 if samples else -1
            level[run.key] = max(reached, level.get(run.key, -1))
        return level

    def _has_room(self, ledger: Ledger, level: Mapping[Key, int], rung: int) -> bool:
        """Return whether another setting may go on to a rung: by the rung before, and by the share of the budget."""
        rungs = self._context.rungs
        if rungs.samples[rung] / rungs.full_samples > LARGEST_SHARE * self._in_all(ledger):
            return False
        here, before = (sum(reached >= k for reached in level.values()) for k in (rung, rung - 1))
        return here + ROOM <= before / PROMOTED

    def _in_all(self, ledger: Ledger) -> float:
        """Return how many full runs the search has, trained or left."""
        return ledger.charged / self._context.rungs.full_samples + self._left

    def _best_of(self, ledger: Ledger, model: Model, points: Sequence[Point]) -> Point | None:
        """Return the point that is expected to end lowest, unless that is hopeless beside the best that was run."""
        if not points:
            return None
        mean = model.expected(points)
        i = int(np.argmin(mean))
        gap = min(LARGEST_HOPELESS_GAP, HOPELESS_GAP * self._in_all(ledger))
        return points[i] if mean[i] <= model.expected(model.points).min() + gap else None

    def _climb(self, ledger: Ledger, model: Model) -> Action | None:
        """Return the best that waits below the deepest rung that has room, else a new setting for the first rung.

        What is left at the end is too little to lead a new setting anywhere; it takes the best ones as deep as they can
        go.
        """
        context, rungs = self._context, self._context.rungs
        level = self._levels(ledger, model)
        busy = {run.key for run in ledger.running}

        def is_open(point: Point) -> bool:
            return (
                point.key not in busy
                and context.allowed(point.key, point.setting.global_batch_size)
                and not model.closed(point.key)
            )

        seen = list({p.key: p for p in model.points if is_open(p) and p.key in level}.values())
        shares = [rung / rungs.full_samples for rung in rungs.samples]
        last = self._left < sum(shares[:-1])
        for rung in range(len(shares) - 1, 0, -1):
            if shares[rung] > self._left or not (last or self._has_room(ledger, level, rung)):
                continue
            waiting = [p for p in seen if (level[p.key] < rung if last else level[p.key] == rung - 1)]
            best = self._best_of(ledger, model, waiting)
            if best is not None:
                return self._towards(model, best, rungs.samples[rung])
        if last:
            return None
        fresh = [p for p in model.weighed(ledger) if p.key not in level and p.key not in busy]
        if not fresh:
            return None
        mean, sd = model.final(fresh)
        return self._towards(model, fresh[int(np.argmin(mean - OPTIMISM * sd))], rungs.samples[0])

    def _towards(self, model: Model, point: Point, rung: int) -> Action:
        """Return the run of a setting towards a rung: from its checkpoint if it has one, compared at each rung."""
        rungs, batch = self._context.rungs, point.setting.global_batch_size
        counted = rungs.counted(batch)
        done = model.deepest.get(point.key)
        if self._context.planned:  # A run that is planned short cannot be sent on.
            return Action(point.setting, max(rung, counted[0]))
        depth = 0 if done is None else done.samples
        first = next(rung for rung in counted if rungs.reach(rung, batch, rungs.end_of(batch)) > depth)
        resumable = (
            self._context.can_continue
            and done is not None
            and done.checkpoint is not None
            and done.state in ("pruned", "complete")
        )
        return Action(point.setting, first, done.number if done is not None and resumable else None)
