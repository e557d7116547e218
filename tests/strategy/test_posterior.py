"""What the surrogate is told of a run: above all, when a run has fallen for good."""

from __future__ import annotations

import math

import pytest
from bstune.tuner.strategy.posterior import collapsed


@pytest.mark.parametrize(
    ("losses", "fallen"),
    [
        ((0.9, 2.3), True),  # SGD at too large a rate: it led, and is back at the loss of an untrained model.
        ((0.5, 0.4, 0.6), False),  # Overfitting loses a little of much.
        ((1.85, 1.91, 1.93), False),  # What has gained little has little to lose: here every run rises before it falls.
        ((2.2, 1.4, 0.9), False),
    ],
)
def test_a_run_has_fallen_once_it_lost_most_of_what_it_had_gained(losses: tuple[float, ...], fallen: bool) -> None:
    """Measured against the loss before training, here 2.3: half of a gain that was worth something."""
    assert collapsed(min(losses), losses[-1], start=2.3 if losses[0] != 1.85 else 1.93) is fallen


def test_nothing_has_fallen_while_the_start_is_unknown() -> None:
    """Before the race has told what an untrained model loses, no run is given up for rising."""
    assert not collapsed(0.9, 2.3, start=math.inf)
