"""What a full run on a fresh seed is expected to bring."""

from __future__ import annotations

import numpy as np
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.gain import gains_of_confirming
from bstune.tuner.strategy.posterior import CURVE
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.tables import synthetic


def gains(ends: list[float], deviations: list[float]) -> list[float]:
    """Return the gain of running each setting, of which the first was confirmed; gaps at the end of full runs."""
    table = synthetic()
    facts = table.facts(step_times=tuple((batch, 1e-4 * (64 + batch)) for batch in table.batches))
    worth = Strategy(Plan(space=table.space, budget=12), facts, None)._evidence().worth
    curves = np.array(ends)[:, None] + np.linspace(1.0, 0.0, len(CURVE))
    shifts = np.zeros((len(ends), len(ends), len(CURVE)))
    for i, deviation in enumerate(deviations):
        shifts[i, i] = deviation
    found = gains_of_confirming(
        worth, np.zeros(len(ends)), curves, shifts, 0.1, np.arange(len(ends)) == 0, np.arange(len(ends))
    )
    return [float(gain) for gain in found]


def test_a_setting_that_only_a_great_surprise_would_make_the_answer_is_not_confirmed() -> None:
    """It had begun so badly that little was known of it, and what is not known seemed worth a full run."""
    _, near, far = gains([1.6, 1.95, 4.4], [0.1, 0.3, 1.26])

    assert near > 0
    assert far == 0


def test_the_setting_that_is_the_answer_may_turn_out_worse() -> None:
    """So running it again brings something, where another may then be chosen: not here, where it is the only one."""
    again, other = gains([1.6, 1.7], [0.3, 0.3])

    assert again == 0
    assert other > 0
