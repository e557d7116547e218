"""Recorded tables: a run that is planned short under a falling rate is not the beginning of a longer one."""

from __future__ import annotations

import math

import pytest
from bstune.tuner.core.errors import ArgumentError
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table

N, EPOCHS = 1080, 10
FULL = N * EPOCHS


def _falling() -> Table:
    """Return a table under a linear schedule: halfway to its end a run is twice as high as there."""
    curves, short = {}, {}
    for batch in (4, 8, 16):
        for lr in (0.01, 0.02, 0.04, 0.08):
            off = abs(math.log2(lr / 0.02)) + 0.1 * math.log2(batch)

            def planned(share: float, batch: int = batch, off: float = off) -> list[tuple[int, float]]:
                end = math.floor(FULL * share / batch) * batch
                loss = (1 + 0.1 * off) * share**-0.25
                return [(end // 2, 2 * loss), (end, loss)]

            curves[batch, lr] = [planned(1.0), planned(1.0)]
            short[batch, lr] = [[planned(share) for share in (1 / 27, 1 / 9, 1 / 3)]] * 2
    return Table("falling", N, EPOCHS, curves, schedule="linear", short=short)


def test_a_search_sees_each_planned_run_to_its_own_end() -> None:
    """A trial that was planned short ends with the loss that was recorded of such a run."""
    table = _falling()

    trials = replay(Strategy(Plan(budget=8, space=table.space), table.facts(), None), table)

    ends = {trial.end_samples for trial in trials}
    assert len(ends) > 2
    for trial in trials:
        assert trial.end_samples is not None
        assert trial.val_loss is not None
        batch, lr = trial.global_batch_size, trial.learning_rate
        recorded = [curve[-1] for curve in (*table.short[batch, lr][0], table.curves[batch, lr][0])]
        assert (trial.samples, trial.val_loss) == pytest.approx(
            next(end for end in recorded if end[0] == trial.samples)
        )


def test_a_run_that_was_not_planned_so_is_not_made_up() -> None:
    """Half a full run was not recorded."""
    table = _falling()

    with pytest.raises(
        ArgumentError, match="planned to end at 5400 samples; it has those that end at 400, 1200, 3600, 10800"
    ):
        table.planned_curve(8, 0.02, 0, FULL // 2)
    assert table.planned_curve(8, 0.02, 3, 1190)[-1][0] == 1200
