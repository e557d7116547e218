"""The choice among what was run: goals, tolerance, intervals, and what is said of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from bstune.tuner.core.probe_results import ProbeResult
from bstune.tuner.core.results import Candidate, Recommendation
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic
from bstune.tuner.theory.intervals import student_quantile

TABLE = synthetic()
PROBE = known_probe(48)


def best_of(probe: ProbeResult | None = None, **plan: Any) -> Recommendation:
    """Return the recommendation of a whole search."""
    plan = {"space": TABLE.space, "goal": "loss", **plan}
    strategy = Strategy(Plan(**plan), TABLE.facts(), probe)
    replay(strategy, TABLE)
    return strategy.recommend()


def test_without_step_times_the_lowest_loss_is_chosen() -> None:
    """By all that is known of it, which is more than one fresh seed: near the best that the table has."""
    best = best_of(budget=12)

    assert best.verified
    assert TABLE.regret(best.global_batch_size, best.learning_rate) <= 0.06


def test_with_step_times_the_fastest_within_tolerance_is_chosen() -> None:
    """With a wide tolerance every finalist is as good, and the fastest of them is taken; the micro-batch fits."""
    best = best_of(PROBE, budget=12, tolerance=10.0)

    assert best.fastest is not None
    assert best.global_batch_size == best.fastest.global_batch_size
    assert best.micro_batch_size <= 48
    assert PROBE.step_time_line is not None
    step_s = PROBE.step_time_line.step_s(best.micro_batch_size, best.accumulation_steps)
    assert best.samples_per_s == pytest.approx(best.global_batch_size / step_s)


def test_a_run_that_ends_at_the_target_has_reached_it() -> None:
    """Also where the values before were above it: no sentence says that the target was not reached."""
    plan = Plan(space=TABLE.space, budget=12)
    records = replay(Strategy(plan, TABLE.facts(), PROBE), TABLE)
    best = Strategy(plan, TABLE.facts(), PROBE, records).recommend()
    assert best.val_loss.mean is not None
    target = 1.001 * best.val_loss.mean
    late = [
        dataclasses.replace(
            r, values=(*((samples, loss and max(loss, 2 * target)) for samples, loss in r.values[:-1]), r.values[-1])
        )
        for r in records
    ]
    told = Strategy(dataclasses.replace(plan, target=target), TABLE.facts(), PROBE, late).recommend()

    found: list[Recommendation | Candidate] = [told, *told.alternatives]
    at_end = [c for c in found if c.val_loss.mean is not None and c.val_loss.mean <= target]
    assert at_end
    for each in at_end:
        assert each.samples_to_target == pytest.approx(TABLE.facts().full_run_samples, rel=0.05)
        assert each.seconds_to_target is not None


def test_the_interval_holds_the_mean_and_is_wider_with_fewer_seeds() -> None:
    """A 90 % prediction interval for one fresh full run, from the noise pooled over all repeated settings."""
    best = best_of(budget=12)

    assert best.val_loss.low is not None
    assert best.val_loss.high is not None
    assert best.val_loss.mean is not None
    assert best.val_loss.low < best.val_loss.mean < best.val_loss.high


def test_the_interval_covers_fresh_runs() -> None:
    """At least 85 % of full runs on other seeds fall into the interval that was given."""
    inside = total = 0
    for seed in range(4):
        table = synthetic(seeds=12, noise=0.05, seed=seed)
        strategy = Strategy(Plan(budget=8, space=table.space, tolerance=0.0), table.facts(), None)
        replay(strategy, table)
        best = strategy.recommend()
        for other in range(4, 12):
            value = table.curve(best.global_batch_size, best.learning_rate, other)[-1][1]
            inside += (best.val_loss.low or 0) <= value <= (best.val_loss.high or 0)
            total += 1
    assert inside >= 0.85 * total


def test_the_batch_interval_holds_the_recommended_batch() -> None:
    """Sizes that cannot be told from the best: smallest and largest."""
    best = best_of(budget=12)

    assert best.batch_interval[0] <= best.global_batch_size <= best.batch_interval[1]


def test_the_learning_rate_rule_finds_the_slope_of_the_table() -> None:
    """The slope of the synthetic table is 0.7 octaves per octave; the interval contains it."""
    rule = best_of(budget=12).lr_rule

    assert rule is not None
    assert rule.low is not None
    assert rule.high is not None
    assert rule.low <= 0.7 <= rule.high


def test_the_largest_batch_without_measurable_loss_is_larger() -> None:
    """With `goal="largest"` the answer is at least as large as with `goal="loss"`, and the sentence says so."""
    usual = best_of(budget=12)
    largest = best_of(budget=12, goal="largest")

    assert largest.global_batch_size >= usual.global_batch_size
    assert "largest" in largest.reason or "won" in largest.reason


@pytest.mark.parametrize(("rates", "tied"), [([0.00046875, 0.03], False), ([0.015, 0.03, 0.06], True)])
def test_a_tie_is_called_a_tie(rates: list[float], tied: bool) -> None:
    """Settings that differ by less than seeds do are not told apart: 3 % here; a rate that is far off is no tie."""
    table = synthetic(seeds=8, noise=0.2)
    space = {"batch_size": [64], "learning_rate": rates}
    strategy = Strategy(Plan(budget=20, space=space, tolerance=0.0, goal="loss"), table.facts(), None)
    replay(strategy, table)

    assert ("a tie with" in strategy.recommend().reason) == tied


def test_the_target_of_the_time_goal_is_chosen_and_reached() -> None:
    """Without a target one is chosen from the first full run, and the winner says when it reaches it.

    A program that takes its time to start makes all later, and none so many times sooner.
    """
    plan = Plan(goal="time", budget=12, space=TABLE.space)
    strategy = Strategy(plan, TABLE.facts(), PROBE)
    records = replay(strategy, TABLE)
    best = strategy.recommend()

    assert strategy.target is not None
    assert best.samples_to_target is not None
    assert best.seconds_to_target == pytest.approx(best.samples_to_target / (best.samples_per_s or 1))

    started = Strategy(plan, TABLE.facts(), dataclasses.replace(PROBE, start_s=1000.0), records).recommend()
    assert started.samples_to_target is not None
    assert started.seconds_to_target == pytest.approx(
        1000 + started.samples_to_target / (started.samples_per_s or 1), rel=1e-6
    )
    assert started.larger is not None
    assert started.larger.times_sooner == pytest.approx(1, rel=0.1)


def test_a_recommendation_survives_json() -> None:
    """What is written is read back equal."""
    best = best_of(budget=4)

    assert Recommendation.from_dict(best.to_dict()) == best


def test_a_rate_at_the_edge_is_warned_of() -> None:
    """The best rate at the edge of the range may not be the best there is."""
    table = dataclasses.replace(
        TABLE, curves={cell: seeds for cell, seeds in TABLE.curves.items() if cell[1] <= 0.03 / 8}
    )
    strategy = Strategy(Plan(budget=6, space={**table.space, "batch_size": [64, 128]}), table.facts(), None)
    replay(strategy, table)

    assert any("edge" in warning for warning in strategy.recommend().warnings)


def test_the_largest_batch_is_warned_of_where_larger_ones_make_few_steps() -> None:
    """The default range ends where a full run has a hundred steps left, which a user may not expect."""
    rates = {"learning_rate": TABLE.space["learning_rate"]}
    strategy = Strategy(
        Plan(budget=4, goal="largest", space=rates),
        dataclasses.replace(TABLE.facts(), n_samples=1600, epochs=1.0),
        None,
    )

    batches = strategy.space.batches
    replay(strategy, dataclasses.replace(TABLE, n_samples=1600, epochs=1.0))

    assert batches == (4, 8, 16)
    assert any("Batch 16 is the largest that was searched" in warning for warning in strategy.recommend().warnings)


@pytest.mark.parametrize(("freedom", "exact"), [(2, 2.920), (3, 2.353), (5, 2.015), (10, 1.812), (30, 1.697)])
def test_student_quantiles_are_close(freedom: float, exact: float) -> None:
    """Against the printed table."""
    assert student_quantile(freedom) == pytest.approx(exact, rel=0.02)
