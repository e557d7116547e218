"""What users read of a few recorded searches, word for word: reason, warnings and the notes of the alternatives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table, synthetic

PROBE = known_probe(48)
CALM = synthetic()
NOISY = synthetic(seeds=8, noise=0.2)


def diverges_on_fresh_seeds(table: Table) -> Table:
    """Return a table whose losses are finite on the seed of the search only."""
    curves = {}
    for cell, (first, *fresh) in table.curves.items():
        curves[cell] = [first, *([(samples, math.inf) for samples, _ in seed] for seed in fresh)]
    return dataclasses.replace(table, curves=curves)


DIVERGES = diverges_on_fresh_seeds(CALM)
ONE = {"batch_size": [64], "learning_rate": [0.03]}


@pytest.mark.parametrize(
    ("table", "timed", "plan", "reason", "warnings", "notes"),
    [
        (
            CALM,
            False,
            {"budget": 1},
            "Batch 64 at learning rate 0.03 is expected to end lowest by the trials so far; it was not confirmed.",
            ("Not verified: a budget of 1 leaves no full run on a fresh seed; a budget of 2 would.",),
            {"not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 2, "goal": "time"},
            "Batch 64 at learning rate 0.03 was expected to reach the target first, or to come nearest to it, of 5 "
            "settings, and is the only one that was run to the end on a fresh seed.",
            ("One setting was confirmed, on one fresh seed; a budget of 4 would compare two.",),
            {"not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 12, "goal": "time"},
            "Batch 32 at learning rate 0.03 reaches the target of 0.1242 first of 4 settings run on fresh seeds; "
            "memory allows 48, hardware saturates at 100, gradient noise at 1328 (431 or more): 32 should be fastest.",
            (),
            {"", "not confirmed: the loss that it was selected by", "not run to the end"},
        ),
        (
            NOISY,
            True,
            {"budget": 12, "tolerance": 0.0, "baseline": (64, 0.03)},
            "Batch 16 at learning rate 0.015 has the lowest validation loss of 4 settings run on fresh seeds, a tie "
            "with 3 of them within the noise of seeds; memory allows 48, hardware saturates at 100, gradient noise at "
            "558 (140 or more): 32 should be fastest.",
            (),
            {"", "your present setting", "not confirmed: the loss that it was selected by"},
        ),
        (
            NOISY,
            True,
            {"budget": 12, "goal": "largest"},
            "Batch 128 at learning rate 0.06 is the largest without measurable loss of 4 settings run on fresh seeds.",
            (),
            {"", "not confirmed: the loss that it was selected by"},
        ),
        (
            CALM,
            True,
            {"budget": 6, "confirm": 0},
            "Batch 256 at learning rate 0.24 is expected to end lowest by the trials so far; it was not confirmed; "
            "memory allows 48, hardware saturates at 100, gradient noise at 1579 (395 or more): 32 should be fastest.",
            ("Not verified: confirmation is switched off (confirm=0).",),
            {"not confirmed: the loss that it was selected by", "not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 3, "space": ONE},
            "Batch 64 at learning rate 0.03 is the only setting that was tried.",
            (),
            set(),
        ),
        (
            DIVERGES,
            False,
            {"budget": 6, "n_trials": 2},
            "Batch 64 at learning rate 0.03 is expected to end lowest by the trials so far; it was not confirmed.",
            (
                "Not verified yet: 2 trials left none for a full run on a fresh seed; n_trials=3 would.",
                "It diverged on a fresh seed, and nothing else that was run is better. Search smaller learning rates.",
            ),
            set(),
        ),
        (
            DIVERGES,
            True,
            {"budget": 4, "space": ONE},
            "Batch 64 at learning rate 0.03 is expected to end lowest by the trials so far; it was not confirmed.",
            (
                "Not verified yet: the full run on a fresh seed is still to come.",
                "It diverged on a fresh seed, and nothing else that was run is better. Search smaller learning rates.",
            ),
            set(),
        ),
    ],
)
def test_the_sentences_of_a_recorded_search(
    table: Table, timed: bool, plan: dict[str, Any], reason: str, warnings: tuple[str, ...], notes: set[str]
) -> None:
    """The same search is told in the same words."""
    strategy = Strategy(Plan(**{"goal": "loss", "space": table.space, **plan}), table.facts(), PROBE if timed else None)
    replay(strategy, table)

    best = strategy.recommend()

    assert best.reason == reason
    assert best.warnings == warnings
    assert {other.note for other in best.alternatives} == notes
