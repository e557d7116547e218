"""The user's present setting in a search: it is run first, compared with, and the centre of what is tried."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import bstune
import pytest
from bstune.tests.strategy.replayed import TABLE, make
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.searching.prepare import whether_run
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay


def test_the_baseline_is_measured_and_is_the_centre() -> None:
    """The user's own setting is the first that is tried."""
    records = replay(make(budget=6, baseline=(32, 0.0075)), TABLE)

    assert (records[0].global_batch_size, records[0].learning_rate) == (32, 0.0075)


def test_a_baseline_beyond_a_full_run_is_refused() -> None:
    """No step of it could be made."""
    with pytest.raises(bstune.ArgumentError, match=r"more than the .* samples of a full run"):
        make(budget=4, baseline=(10**6, 0.1))


@pytest.mark.parametrize("baseline", [(32, 0.0075), (64, 0.00046875)])
def test_the_baseline_is_run_to_its_end_and_compared(baseline: tuple[int, float]) -> None:
    """However poor it is: it is the first run, sets the target, and the answer says how it compares."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget=12, space=TABLE.space, baseline=baseline, goal="time"), TABLE.facts(), probe)
    records = replay(strategy, TABLE)
    best = strategy.recommend()

    first = records[0]
    assert (first.stage, first.state, first.global_batch_size, first.learning_rate) == (
        "baseline",
        "complete",
        *baseline,
    )
    assert first.samples == TABLE.n_samples * TABLE.epochs
    assert strategy.target == first.val_loss
    (own,) = [each for each in best.compared if each.name == "your present setting"]
    assert (own.setting.global_batch_size, own.setting.learning_rate) == baseline
    assert own.setting.note.startswith("your present setting")
    assert own.times_sooner is not None
    assert own.times_sooner > 1


def test_a_baseline_outside_of_the_usual_rates_widens_them() -> None:
    """Adadelta is trained at rates around 1, where others diverge."""
    space = make(budget=6, space={}, baseline=(32, 4.0)).space

    assert space.learning_rates[-1] >= 32
    assert 4.0 in space.learning_rates


def test_a_baseline_that_costs_more_than_half_the_budget_is_left_out() -> None:
    """A full run at batch 8 takes six times as long as at the reference batch."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget=8, space=TABLE.space, baseline=(8, 0.0075), goal="time"), TABLE.facts(), probe)

    assert "It is not run, unless it turns out cheaper: a full run seems to take " in whether_run(strategy)
    assert not [record for record in replay(strategy, TABLE) if record.stage == "baseline"]
    affordable = Strategy(Plan(budget=8, space=TABLE.space, baseline=(128, 0.0075)), TABLE.facts(), probe)
    assert whether_run(affordable) == "It is run too."


def test_the_budget_that_would_verify_holds_the_baseline_too() -> None:
    """A search that goes on with what was advised is verified, though the present setting is run first."""
    probe = known_probe(step_s=(0.01, 0.0001))

    def search(budget_s: float, history: Sequence[TrialRecord] = ()) -> tuple[Strategy, list[TrialRecord]]:
        plan = Plan(budget_s=budget_s, space=TABLE.space, baseline=(128, 0.0075), goal="time")
        strategy = Strategy(plan, TABLE.facts(), probe, history)
        return strategy, replay(strategy, TABLE)

    strategy, records = search(3.0)
    (said,) = [text for text in strategy.recommend().warnings if text.startswith("Not verified")]
    found = re.search(r"a budget of ([\d.]+) s would", said)
    assert found is not None, said

    strategy, _ = search(float(found[1]), records)

    assert strategy.recommend().verified
    assert any(run.stage == "baseline" for run in strategy.ledger)


def test_the_answer_is_compared_with_batch_32_by_what_is_expected_of_it() -> None:
    """Its runs were stopped early: then its best rate is the expected one."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget=8, space=TABLE.space, goal="time"), TABLE.facts(), probe)
    records = replay(strategy, TABLE)
    (usual,) = strategy.recommend().compared

    assert {record.state for record in records if record.global_batch_size == 32} == {"pruned"}
    assert (usual.name, usual.setting.global_batch_size, usual.setting.val_loss.n_seeds) == ("batch 32", 32, 0)
    assert usual.setting.learning_rate in {0.0075, 0.015, 0.03}
    assert usual.times_sooner is not None
    assert usual.times_sooner > 1.5
    tokens = dataclasses.replace(TABLE.facts(), size_unit="tokens")
    assert not Strategy(strategy.plan, tokens, probe, records).recommend().compared
