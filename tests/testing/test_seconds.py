"""The scores of the clock benchmark, on curves whose time to the target is known by a formula."""

from __future__ import annotations

import math

import baselines
import pytest
from bstune.tuner.testing.tables import Table
from seconds import NEVER_OCTAVES, Clock, Truth

N, EPOCHS, SLOPE = 1000, 12, 0.4
LEVELS = {8: 1.0, 32: 1.02, 128: 1.3, 512: 2.5}
"""Every batch size has the same curve, so many times as high."""


def _table() -> Table:
    curves = {}
    for batch, level in LEVELS.items():
        whole = [(N * k, level * (k / EPOCHS) ** -SLOPE) for k in range(1, EPOCHS + 1)]
        curves[batch, 0.1] = [whole]
        curves[batch, 9.9] = [[whole[0], (2 * N, math.nan)]]
    return Table("powers", N, EPOCHS, curves)


def test_seconds_to_the_target_are_those_of_the_formula() -> None:
    """Before the end between two records, after it along the slope, for four full runs and no more."""
    clock = Clock.of_line(128, list(LEVELS))
    truth = Truth(_table())

    assert truth.slope == pytest.approx(SLOPE)
    for batch in (8, 32, 128):
        full_runs = (LEVELS[batch] / 1.05) ** (1 / SLOPE)
        expected_s = full_runs * N * EPOCHS / batch * (128 + batch) * 1e-5
        assert truth.seconds((batch, 0.1), clock) == pytest.approx(expected_s, rel=1e-3)
    assert truth.soonest(clock) == (
        128,
        0.1,
    )  # 1.7 full runs, of two units a sample: 5 and 17 at the batches with less loss.
    assert truth.octaves((32, 0.1), clock) == pytest.approx(math.log2(5 / 2 * (1.02 / 1.3) ** (1 / SLOPE)), abs=1e-3)
    assert truth.octaves((512, 0.1), clock) == NEVER_OCTAVES  # It would take 8.7 full runs.
    assert truth.octaves((8, 9.9), clock) == NEVER_OCTAVES
    assert truth.octaves(None, clock) == NEVER_OCTAVES


def test_a_rule_that_knows_all_losses_finds_the_soonest_where_all_curves_are_alike() -> None:
    """Equal-loss seconds, at every kind of clock."""
    truth = Truth(_table())

    chosen = {a: truth.by_rule(Clock.of_line(a, list(LEVELS)))[0] for a in (0.01, 16, 128)}

    assert chosen == {0.01: 8, 16: 32, 128: 128}
    assert truth.by_rule(Clock.of_line(128, list(LEVELS))) == truth.soonest(Clock.of_line(128, list(LEVELS)))


@pytest.mark.parametrize(("saturation", "reference"), [(1, 8), (100, 128), (128, 128), (5000, 512)])
def test_the_reference_batch_reaches_half_the_peak_throughput(saturation: float, reference: int) -> None:
    """And is the largest where none does."""
    assert Clock.of_line(saturation, list(LEVELS)).reference_batch == reference


def test_a_peer_pays_in_seconds_and_ends_with_them() -> None:
    """A random search of one full run at batch 8 sees that one, or several of the quick ones."""
    clock, table = Clock.of_line(128, list(LEVELS)), _table()
    cap_s = clock.seconds(8, N * EPOCHS)

    meter = baselines.search("random", table, 0, cap_s, clock.seconds)

    assert meter.cost == pytest.approx(sum(meter.by_batch.values()))
    assert meter.cost < cap_s + clock.seconds(8, N)
    assert meter.trace[-1][0] <= meter.cost
