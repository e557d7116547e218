"""What the surrogate is told of a run: above all, when a run has fallen for good."""

from __future__ import annotations

import math

import pytest
from bstune.tests.strategy.replayed import TABLE
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.core.trials import TrialReport
from bstune.tuner.strategy.ledger import Ledger
from bstune.tuner.strategy.posterior import Model, collapsed
from bstune.tuner.strategy.strategy import Strategy


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


def ledger_of(losses: dict[float, dict[int, float]]) -> Ledger:
    """Return full runs at batch 64: for each learning rate the last losses, by seed."""
    ledger = Ledger(())
    runs = [(rate, seed, loss) for rate, by_seed in losses.items() for seed, loss in by_seed.items()]
    for number, (rate, seed, loss) in enumerate(runs):
        ledger.start(number, Proposal("search", Setting(64, rate, {}), seed, 16384, (16384,), None, 0), 16384)
        ledger.report(TrialReport(number, (16384,), 16384, loss, {}, 0.0))
    return ledger


def test_a_lucky_seed_speaks_less_for_a_setting_that_ran_on_no_other() -> None:
    """Others that ended as low on the seed of the search ended higher on fresh ones: so would this one, in part."""
    lucky, usual = 0.112, 0.12
    others = {0.0075: {0: 1.05 * lucky}, 0.06: {0: lucky, 1: usual}, 0.12: {0: 1.07 * lucky}}
    ledger = ledger_of({0.015: {0: lucky}, 0.03: {0: lucky, 1: usual, 2: usual}, **others})
    model = Model.of(Strategy(Plan(space=TABLE.space), TABLE.facts(), None)._context(), ledger)
    assert model is not None

    once, often = model.losses([Setting(64, rate, {}) for rate in (0.015, 0.03)])

    assert lucky + 0.2 * (usual - lucky) < once < often
