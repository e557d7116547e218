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
DIVERGED = (
    "Not verified: the loss was not finite in 1 of 1 full runs on fresh seeds. Look for values in the data that "
    "are not finite, or search smaller learning rates."
)
ONE = {"batch_size": [64], "learning_rate": [0.03]}


@pytest.mark.parametrize(
    ("table", "timed", "plan", "reason", "warnings", "notes"),
    [
        (
            CALM,
            False,
            {"budget": 1},
            "Batch 64 at learning rate 0.03 is expected to be best by the trials so far; it was not confirmed.",
            ("Not verified: a budget of 1 leaves no full run on a fresh seed; a budget of 2 would.",),
            {"not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 2, "goal": "time"},
            "Batch 32 at learning rate 0.12 is expected to reach the target loss of 0.1291 soonest of "
            "8 settings tried, after 5.8 s.",
            (),
            {"not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 12, "goal": "time"},
            "Batch 32 at learning rate 0.03 is expected to reach the target loss of 0.1038 soonest of "
            "26 settings tried, after 5.84 s; memory allows 48, hardware reaches half its speed at 100, "
            "gradient noise has its critical batch at "
            "1878 (512 or more).",
            (),
            {"", "not run to the end"},
        ),
        (
            NOISY,
            True,
            {"budget": 12, "tolerance": 0.0, "baseline": (64, 0.03)},
            "Batch 64 at learning rate 0.03 (your present setting) is expected to end a full run lowest of 22 settings "
            "tried, a tie with the other within the noise of seeds; memory allows 48, hardware reaches half its speed "
            "at 100, gradient noise has its critical batch at 512 (99 or more).",
            (),
            {"", "not run to the end"},
        ),
        (
            NOISY,
            True,
            {"budget": 12, "goal": "largest"},
            "Batch 512 at learning rate 0.06 is the largest batch without measurable loss of 13 settings tried; memory "
            "allows 48, hardware reaches half its speed at 100, gradient noise has its critical batch at 1579 (235 or "
            "more).",
            (),
            {"", "not confirmed: the loss that it was selected by", "not run to the end"},
        ),
        (
            CALM,
            True,
            {"budget": 6, "confirm": 0},
            "Batch 64 at learning rate 0.03 is expected to be best by the trials so far; it was not confirmed.",
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
            "Batch 64 at learning rate 0.03 is expected to be best by the trials so far; it was not confirmed.",
            (
                DIVERGED,
                "It diverged on a fresh seed, and nothing else that was run is better. Look for values in the data "
                "that are not finite, or search smaller learning rates.",
                "Only batch 64 was tried, of 8 to 512, so nothing is known of others. A larger budget may try them.",
                "Only the learning rate 0.03 was tried at batch 64: another may be better.",
            ),
            set(),
        ),
        (
            DIVERGES,
            True,
            {"budget": 4, "space": ONE},
            "Batch 64 at learning rate 0.03 is expected to be best by the trials so far; it was not confirmed.",
            (
                DIVERGED,
                "It diverged on a fresh seed, and nothing else that was run is better. Look for values in the data "
                "that are not finite, or search smaller learning rates.",
            ),
            set(),
        ),
    ],
)
def test_the_sentences_of_a_recorded_search(
    table: Table, timed: bool, plan: dict[str, Any], reason: str, warnings: tuple[str, ...], notes: set[str]
) -> None:
    """The same search is told in the same words."""
    strategy = Strategy(Plan(**{"space": table.space, "goal": "loss", **plan}), table.facts(), PROBE if timed else None)
    replay(strategy, table)

    best = strategy.recommend()

    assert best.reason == reason
    assert best.warnings == warnings
    assert {other.note for other in best.alternatives} == notes
