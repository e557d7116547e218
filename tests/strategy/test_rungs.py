"""Rungs in samples, the same for every batch size."""

from __future__ import annotations

import math

import pytest
from bstune.tuner.core.trials import Facts
from bstune.tuner.strategy.rungs import Rungs, survives

FACTS = Facts("t", "supervised", 1000, 27)


def test_rungs_are_the_same_for_all_batch_sizes() -> None:
    """1/27, 1/9, 1/3 and all of a full run, in samples."""
    assert Rungs.of(FACTS).samples == (1000, 3000, 9000, 27000)


@pytest.mark.parametrize("batch", [1, 8, 96, 500, 1000])
def test_a_run_is_asked_for_reports_at_the_rungs_and_at_equal_points(batch: int) -> None:
    """The points ascend, contain every rung, and the last is due at the end."""
    rungs = Rungs.of(FACTS)
    end = rungs.end_of(batch)

    points = rungs.points(end)

    assert list(points) == sorted(set(points))
    assert set(rungs.samples[:-1]) <= set(points)
    assert end <= points[-1] < end + batch
    assert len(points) >= FACTS.evals


def test_a_run_that_is_planned_short_reports_no_more_often() -> None:
    """Each validation costs seconds, and only its end is compared."""
    rungs = Rungs.of(FACTS)

    assert len(rungs.points(27000)) == FACTS.evals + 3
    assert rungs.points(1000) == (1000,)
    assert rungs.points(3000)[-2:] == (1688, 3000)


def test_a_rung_counts_only_after_enough_steps() -> None:
    """A batch of 500 has made two steps at the first rung: it is compared later."""
    rungs = Rungs.of(FACTS)

    assert rungs.counted(8) == rungs.samples
    assert rungs.counted(500)[0] == 3000
    assert rungs.counted(27000) == rungs.samples[-1:]


def test_the_plain_race_lets_the_best_third_pass() -> None:
    """Three values are too few to compare; of many, a third goes on, and what is not finite never does."""
    assert survives(9.0, [1.0, 2.0])
    assert not survives(9.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert survives(1.5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert not survives(math.nan, [])
