"""The first race along the learning rate, at one batch size, and what can be tried while nothing finite is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.results import Setting
from .ledger import Ledger, key_of
from .posterior import Context
from .space import Point

RACE_OCTAVES = 2.0
"""Spacing of the first race along the learning rate."""
RACE_MOST = 8


@dataclass(frozen=True)
class Action:
    """A run worth starting, and how far it goes before it is judged."""

    setting: Setting
    first_stop: int
    """Rung at which it is judged first, in samples."""
    continues: int | None = None
    racing: bool = False


class Race:
    """Short runs at one batch size, spread over the learning rates."""

    def __init__(self, context: Context, batch: int) -> None:
        """Race at this batch size."""
        self._context = context
        self._batch = batch

    def next(self, ledger: Ledger) -> Action | None:
        """Return the next learning rate of the race: outwards until the best has a worse one on either side."""
        space = self._context.space
        batch, params = self._batch, space.default_params()
        rung = self._first_rung(batch)
        start = space.nearest_learning_rate(space.centre(batch))
        wanted = [start, *(space.nearest_learning_rate(start * 2.0**step) for step in (RACE_OCTAVES, -RACE_OCTAVES))]
        losses: dict[float, float | None] = {}
        """By learning rate; None while that is not known yet."""
        for run in ledger:
            setting = run.setting
            here = setting.global_batch_size == batch and setting.params == params and run.seed == self._context.seed
            if here and (run.stage == "anchor" or setting.learning_rate in wanted):
                value = run.at(rung)
                ended = math.inf if value is None or not math.isfinite(value) else value
                losses[setting.learning_rate] = None if value is None and run.state == "running" else ended
        known = {lr: value for lr, value in losses.items() if value is not None}
        if known and len(known) == len(losses) < RACE_MOST:  # What runs tells where to go on.
            best = min(known, key=lambda lr: (known[lr], lr))  # All diverged: only smaller ones can help.
            if best == min(known):
                wanted.append(space.nearest_learning_rate(best * 2.0**-RACE_OCTAVES))
            elif best == max(known):
                wanted.append(space.nearest_learning_rate(best * 2.0**RACE_OCTAVES))
        rate = next((lr for lr in wanted if lr not in losses), None)
        if rate is None:
            return None
        setting = space.setting(batch, rate)
        key = key_of(setting)
        return (
            Action(setting, rung, racing=True)
            if self._context.allowed(key, batch) and not ledger.of(key, self._context.seed)
            else None
        )

    def _first_rung(self, batch: int) -> int:
        return self._context.rungs.counted(batch)[0]

    def untried(self, ledger: Ledger) -> Action | None:
        """Return the untried cell nearest to the centre line: all that can be done while nothing finite is known."""
        space = self._context.space
        tried = {run.key for run in ledger if run.seed == self._context.seed}
        fresh = [
            p for p in space.grid if p.key not in tried and self._context.allowed(p.key, p.setting.global_batch_size)
        ]
        if not fresh:
            return None

        def distance(point: Point) -> tuple[float, float]:
            setting = point.setting
            off = abs(math.log2(setting.learning_rate / space.centre(setting.global_batch_size)))
            return (off + 0.5 * abs(math.log2(setting.global_batch_size / self._batch)), setting.learning_rate)

        setting = min(fresh, key=distance).setting
        return Action(setting, self._first_rung(setting.global_batch_size))
