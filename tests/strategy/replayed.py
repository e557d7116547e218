"""A table whose truth is known, and the strategy that is tested on it."""

from __future__ import annotations

from typing import Any

from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.tables import Table, synthetic

TABLE = synthetic()
KINDS: dict[str, dict[str, Any]] = {
    "loop": {},
    "continued": {"kind": "supervised", "schedule": "constant", "can_continue": True},
    "cosine": {"kind": "supervised", "schedule": "cosine"},
}


def make(table: Table = TABLE, kind: str = "loop", history: list[TrialRecord] | None = None, **plan: Any) -> Strategy:
    """Return a strategy for a table that searches just its cells."""
    plan = {"space": table.space, "goal": "loss", **plan}
    return Strategy(Plan(**plan), table.facts(**KINDS[kind]), None, history or ())


def settings_of(records: list[TrialRecord]) -> list[tuple[int, float, int, int]]:
    """Return what was run, how far and on which seed."""
    return [(r.global_batch_size, r.learning_rate, r.seed, r.samples) for r in records]
