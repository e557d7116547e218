"""What a learning curve says besides its end."""

from __future__ import annotations

import math

import pytest
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Proposal
from bstune.tuner.strategy.curves import jumps
from bstune.tuner.strategy.ledger import Run


def run(losses: list[float]) -> Run:
    """Return a finished run that reported these losses, evenly."""
    values = {100 * (i + 1): loss for i, loss in enumerate(losses)}
    end = max(values, default=0)
    return Run(0, Proposal("search", Setting(32, 0.1), 0, end, ()), "complete", end, values=values)


def test_a_loss_that_falls_smoothly_does_not_jump() -> None:
    """However fast it falls."""
    variance, freedom = jumps(run([0.9**i for i in range(15)]))

    assert variance == pytest.approx(0, abs=1e-9)
    assert freedom >= 3


def test_what_a_loss_jumps_at_the_end_is_measured() -> None:
    """Each report a quarter above or below the line; before the last third it may have done anything."""
    variance, _ = jumps(run([5.0, 0.1] * 5 + [0.2 * math.exp(0.25 * (-1) ** i) for i in range(6)]))

    assert 0.2 < math.sqrt(variance) < 0.45


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 0.5, 0.4], [0.5, math.nan, -1.0, 0.0]])
def test_few_reports_say_nothing(losses: list[float]) -> None:
    """Nor do losses that have no logarithm."""
    assert jumps(run(losses)) == (0, 0)
