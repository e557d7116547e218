"""The budget of a search on tables whose truth is known: never exceeded, in runs and in seconds, and forecast."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from bstune.tests.strategy.replayed import KINDS, TABLE, make, settings_of
from bstune.tuner.core.specs import Forecast, Plan, Proposal
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.engines.base import Event, Finished
from bstune.tuner.report.progress import forecast_line
from bstune.tuner.report.units import duration
from bstune.tuner.searching.loop import Drive
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.records import Records
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import TablePool, replay
from bstune.tuner.testing.tables import synthetic


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("budget", "jobs"), [(2, 4), (4, 1), (4, 4), (7.5, 1)])
def test_the_budget_is_never_exceeded(kind: str, budget: float, jobs: int) -> None:
    """Training, with confirmation, stays within the budget; a loop may pass it by one report of each running trial."""
    strategy = make(kind=kind, budget=budget, jobs=jobs)
    slack = jobs * TABLE.n_samples if kind == "loop" else 0
    allowed = budget * TABLE.n_samples * TABLE.epochs + slack

    def watch(now: Strategy) -> None:
        assert now.spent().samples <= allowed

    records = replay(strategy, TABLE, slots=jobs, watch=watch)

    assert strategy.stopped_by in ("budget", "converged")
    assert sum(r.samples - r.start_samples for r in records) == strategy.spent().samples
    assert strategy.recommend().verified


def test_a_larger_budget_continues() -> None:
    """More budget adds to what was done; nothing finished is run again."""
    first = replay(make(budget=4), TABLE)
    strategy = make(budget=8, history=first)

    more = replay(strategy, TABLE)

    assert more
    assert strategy.spent().full_runs <= 8
    confirmed = [r for r in (*first, *more) if r.stage == "confirm"]
    assert len({(r.global_batch_size, r.learning_rate, r.seed) for r in confirmed}) == len(confirmed)


def test_a_finished_search_goes_on_where_the_budget_is_doubled() -> None:
    """Also where it had ended as nothing more was worth its price: who allows more wants to be surer."""
    table = synthetic(noise=0.0, seed=1)
    facts = table.facts(step_times=tuple((batch, 1e-4 * (64 + batch)) for batch in table.batches))
    plan = Plan(budget=12, space=table.space, goal="time")
    first = replay(Strategy(plan, facts, None), table)
    again = Strategy(plan, facts, None, first)
    longer = Strategy(replace(plan, budget=24), facts, None, first)

    assert replay(again, table) == []
    assert (longer.forecast().reference_runs or 0.0) > 0.5
    assert replay(longer, table)


def test_a_continued_run_is_charged_for_what_it_adds() -> None:
    """A continued trial starts where the other stopped, carries its values, and only its own samples count."""
    strategy = make(kind="continued", budget=8)

    records = replay(strategy, TABLE)

    by_number = {r.number: r for r in records}
    continued = [r for r in records if r.continues is not None]
    assert continued
    for r in continued:
        before = by_number[r.continues or 0]
        assert r.start_samples == before.samples
        assert r.values[: len(before.values)] == before.values
    assert strategy.spent().samples == sum(r.samples - r.start_samples for r in records)


def test_each_run_pays_for_its_start() -> None:
    """Also one that goes on from the checkpoint of another: its model is built anew."""
    probe = replace(known_probe(step_s=(0.01, 0.0001)), start_s=2.0)
    table = synthetic(noise=0.1, seed=2)
    strategy = Strategy(Plan(space=table.space, goal="time"), table.facts(**KINDS["continued"]), probe)

    records = replay(strategy, table)

    def seconds(r: TrialRecord) -> float:
        batch = r.global_batch_size
        return 2.0 + (r.samples - r.start_samples) / batch * (0.01 + 0.0001 * batch)

    assert any(r.continues is not None for r in records)
    assert strategy.spent().predicted_seconds == pytest.approx(sum(map(seconds, records)), rel=1e-3)


def test_what_is_held_back_for_a_run_has_its_start_in_it_once() -> None:
    """Whether it begins afresh or from a checkpoint: what is left falls by the price of starting."""
    probe = replace(known_probe(step_s=(0.01, 0.0001)), start_s=2.0)
    table = synthetic(noise=0.1, seed=2)
    strategy = Strategy(Plan(space=table.space, goal="time"), table.facts(**KINDS["continued"]), probe)
    begun: list[tuple[bool, float, float]] = []
    started, price = strategy.started, strategy._clock.price_of_start()

    def watched(number: int, proposal: Proposal) -> None:
        before, asked = strategy._budget.left, strategy._budget.price_of_starting(proposal)
        started(number, proposal)
        begun.append((proposal.continues is not None, before - strategy._budget.left, asked))

    strategy.started = watched  # type: ignore[method-assign]
    replay(strategy, table)

    assert {continues for continues, _, _ in begun} == {True, False}
    for _, held, asked in begun:
        assert held == pytest.approx(asked, abs=1e-6)
        assert held > price > 0


def test_the_present_setting_does_not_shorten_a_search() -> None:
    """Its full run may take half of the budget; it is foreseen, and the search is as long as without it."""
    table = synthetic(noise=0.5, seed=1)
    step_times = tuple((batch, 1e-4 * (512 + batch)) for batch in table.batches)
    plan = Plan(budget=40, space=table.space, goal="time")
    own = (32, table.learning_rates[4])
    without, strategy = (
        Strategy(replace(plan, baseline=baseline), table.facts(step_times=step_times), None) for baseline in (None, own)
    )
    own_price = (512 / 32 + 1) / 2
    foreseen = strategy.forecast().reference_runs

    assert foreseen == pytest.approx((without.forecast().reference_runs or 0.0) + own_price)
    length = without.planned_end
    records = replay(strategy, table)
    assert records[0].stage == "baseline"
    assert 0.8 * length - 0.1 <= strategy.spent().reference_runs - own_price <= length


def test_a_search_that_does_not_end_by_itself_confirms_what_it_has_kept_a_budget_for() -> None:
    """At random, and where no step time is known, a search goes on to the end of its budget, however long that is."""
    table = synthetic(noise=0.5, seed=1)
    strategy = make(table, budget=24)

    records = replay(strategy, table)

    assert sum(r.stage == "confirm" for r in records) > 1


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("budget", [6, 12, 96])
def test_a_search_is_as_long_as_was_announced(noise: float, budget: float) -> None:
    """Whether nothing is left to learn soon, or each confirmation may overthrow the answer."""
    table = synthetic(noise=noise, seed=1)
    step_times = tuple((batch, 1e-4 * (64 + batch)) for batch in table.batches)
    strategy = Strategy(Plan(budget=budget, space=table.space, goal="time"), table.facts(step_times=step_times), None)
    foreseen = strategy.forecast()
    assert foreseen.reference_runs is not None
    assert foreseen.usual_reference_runs is not None
    low, high = foreseen.usual_reference_runs

    records = replay(strategy, table)

    taken = strategy.spent().reference_runs
    assert taken / 1.2 <= foreseen.reference_runs <= taken * 1.2
    assert low <= taken <= high == min(budget, 24)
    assert strategy.stopped_by in ("budget", "converged")
    assert (budget < 96) or strategy.stopped_by == "converged"
    assert sum(record.stage == "confirm" for record in records) > (budget > 6)


@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_a_duration_is_kept_to_in_seconds(factor: float) -> None:
    """Also where each run takes longer, or less long, than the probe has said: there are fewer runs then, or more."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget_s=60.0, space=TABLE.space, goal="time"), TABLE.facts(), probe)
    foreseen = strategy.forecast().seconds

    Drive(Records(()), strategy, None, tell=lambda *_: None).run(SlowPool(strategy, factor))

    assert foreseen is not None
    assert strategy.spent().seconds / 1.2 <= foreseen <= strategy.spent().seconds * 1.2


def test_an_answer_is_verified_where_steps_take_far_longer_than_the_probe_said() -> None:
    """The seconds that were announced may then hold no full run; the budget does."""
    probe = known_probe(step_s=(0.01, 0.0001))
    whole_s = TABLE.facts().full_run_samples / 128 * (0.01 + 0.0128)
    strategy = Strategy(Plan(budget_s=96 * whole_s, space=TABLE.space, goal="time"), TABLE.facts(), probe)

    Drive(Records(()), strategy, None, tell=lambda *_: None).run(SlowPool(strategy, 20.0))

    assert strategy.recommend().verified
    assert strategy.spent().seconds <= 96 * whole_s


@pytest.mark.parametrize(("n_rates", "confirm", "most"), [(1, 3, 2), (6, 3, 12), (13, 0, 40)])
def test_no_full_runs_are_made_for_nothing(n_rates: int, confirm: int, most: int) -> None:
    """Of one setting, of a few, and where nothing is to be confirmed: no length is announced, and none is filled up."""
    space = {"batch_size": TABLE.space["batch_size"] if n_rates == 13 else 128}
    space["learning_rate"] = list(TABLE.learning_rates[:n_rates])
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget=96, confirm=confirm, space=space, goal="time"), TABLE.facts(), probe)
    foreseen = strategy.forecast()

    records = replay(strategy, TABLE)

    assert foreseen.usual_reference_runs is None
    assert len(records) <= most
    assert sum(r.stage == "confirm" for r in records) <= (1 if n_rates == 1 else confirm)


def test_confirmations_that_diverge_end_with_the_length_of_a_search() -> None:
    """What is not planned for is there for the first only."""
    table = synthetic(noise=0.1, seed=1)
    curves = {
        cell: [
            curve if k == 0 else [(s, v if s < 4096 else math.nan) for s, v in curve] for k, curve in enumerate(seeds)
        ]
        for cell, seeds in table.curves.items()
    }
    table = replace(table, curves=curves)
    facts = table.facts(step_times=tuple((batch, 1e-4 * (64 + batch)) for batch in table.batches))
    strategy = Strategy(Plan(budget=40, space=table.space, goal="time"), facts, None)
    end = strategy.planned_end

    records = replay(strategy, table)

    assert any(r.stage == "confirm" and not math.isfinite(r.val_loss or math.nan) for r in records)
    assert strategy.spent().reference_runs <= end


def test_n_trials_counts_confirmation_too() -> None:
    """`n_trials` is the total; one trial of it is kept for confirmation."""
    strategy = make(budget=12, n_trials=6)

    records = replay(strategy, TABLE)

    assert len(records) == 6
    assert strategy.stopped_by == "n_trials"
    assert records[-1].stage == "confirm"
    assert strategy.recommend().verified


def test_a_budget_below_two_may_end_unverified_and_says_what_would_help() -> None:
    """A budget of one full run is all for the search; the warning names the budget that verifies."""
    strategy = make(budget=1)

    replay(strategy, TABLE)
    best = strategy.recommend()

    assert not best.verified
    assert any("budget of 2" in warning for warning in best.warnings)


def test_the_forecast_is_said_before_training() -> None:
    """It names trials, reference runs and the space; seconds are unknown without a step time."""
    forecast = make(budget=8).forecast()

    assert forecast.reference_runs == 8
    assert (forecast.n_trials or 0) >= 8
    assert forecast.batch_range == (8, 512)
    assert forecast.seconds is None


def test_the_forecast_is_of_what_is_left_in_seconds() -> None:
    """Reference runs are full runs at the smallest batch of half the peak speed, and a duration says the same."""
    probe = known_probe(step_s=(0.01, 0.0001))
    forecast = Strategy(Plan(budget=8, space=TABLE.space), TABLE.facts(), probe).forecast()

    whole_s = TABLE.facts().full_run_samples / 128 * (0.01 + 0.0128)
    assert forecast.reference_batch == 128
    assert forecast.seconds == pytest.approx(0.92 * 8 * whole_s, rel=1e-3)
    runs = "7.36 reference runs (full runs at batch 128), 6.4 to 8"
    said = f"{runs}, about {duration(forecast.seconds)} of training; batch"
    assert said in forecast_line(forecast)
    same = Strategy(Plan(budget_s=8 * whole_s, space=TABLE.space), TABLE.facts(), probe).forecast()
    assert same.reference_runs == pytest.approx(7.36, rel=1e-3)
    assert "allows" not in forecast_line(same)

    plan = Plan(budget_s=44 * whole_s, space=TABLE.space, goal="time")
    long = Strategy(plan, TABLE.facts(), probe).forecast()
    length = 12 * (44 / 12) ** (1 / 3)
    assert long.seconds == pytest.approx(0.92 * length * whole_s, rel=1e-3)
    assert long.usual_reference_runs == pytest.approx((0.8 * length, length))
    usual = " to ".join(duration(share * length * whole_s) for share in (0.8, 1))
    assert f"training ({usual}); the budget allows 44 runs ({duration(44 * whole_s)}); batch" in forecast_line(long)


def test_one_setting_is_foreseen_as_one() -> None:
    """It is run and confirmed: the budget for a search among many is not announced."""
    one = {"batch_size": 128, "learning_rate": 0.1}
    forecast = Strategy(Plan(budget=12, space=one), TABLE.facts(), None).forecast()

    assert (forecast.n_trials or 99) <= 5
    assert (forecast.reference_runs or 99) < 12
    assert forecast_line(forecast).endswith("batch size 128 only, learning rate 0.1 only.")


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"n_trials": 3}, 1.5),
        ({"space": {name: values[2:4] for name, values in TABLE.space.items()}}, 10),
        ({"sampler": "random"}, 36),
    ],
)
def test_a_search_of_another_kind_is_foreseen_without_a_range(asked: dict[str, Any], most: float) -> None:
    """Few trials, few settings, or a sampler that never finds that more would not pay."""
    plan = Plan(**{"budget": 36, "space": TABLE.space, "goal": "time", **asked})
    strategy = Strategy(plan, TABLE.facts(), known_probe(step_s=(0.01, 0.0001)))
    foreseen = strategy.forecast()
    replay(strategy, TABLE)

    assert (foreseen.usual_reference_runs, foreseen.usual_seconds) == (None, None)
    assert foreseen.reference_runs is not None
    assert strategy.spent().reference_runs / 3 <= foreseen.reference_runs <= most


def test_the_forecast_does_not_leap_while_a_search_goes_on() -> None:
    """What is left and what was spent are within the range that was said before, to the end."""
    plan = Plan(budget=100, space=TABLE.space, goal="time")
    strategy = Strategy(plan, TABLE.facts(), known_probe(step_s=(0.01, 0.0001)))
    ends: list[tuple[float, Forecast]] = []
    replay(strategy, TABLE, watch=lambda now: ends.append((now.spent().reference_runs, now.forecast())))

    low, high = Strategy(plan, TABLE.facts(), known_probe(step_s=(0.01, 0.0001))).forecast().usual_reference_runs or (
        0,
        0,
    )
    for spent, forecast in ends:
        assert forecast.reference_runs is not None
        assert low - 1e-6 <= spent + forecast.reference_runs <= high + 1e-6
    assert ", at most " in forecast_line(ends[-1][1])


def test_what_would_have_been_enough_is_said_in_the_unit_of_the_budget() -> None:
    """Who gave seconds is told seconds."""
    probe = known_probe(step_s=(0.01, 0.0001))
    strategy = Strategy(Plan(budget_s=3.0, space=TABLE.space, goal="time"), TABLE.facts(), probe)
    replay(strategy, TABLE)

    (said,) = [text for text in strategy.recommend().warnings if text.startswith("Not verified")]
    assert re.search(r"a budget of 3 s leaves no full run on a fresh seed; a budget of [\d.]+ s would", said), said


def test_a_probe_that_took_long_beside_training_is_told() -> None:
    """No budget counts it. A quick one is no news."""
    forecast = Strategy(Plan(budget_s=20.0, space=TABLE.space), TABLE.facts(), known_probe()).forecast()

    assert "about 18.4 s of training (16 s to 20 s), after a probe of 2.0 min; batch" in forecast_line(
        replace(forecast, probe_seconds=118.0)
    )
    for seconds, took in ((20.0, 9.0), (1000.0, 118.0)):
        assert "probe" not in forecast_line(replace(forecast, seconds=seconds, probe_seconds=took))


def test_nothing_is_foreseen_of_a_duration_before_a_step_was_timed() -> None:
    """It says what will take how long, and names no number of trials."""
    forecast = Strategy(Plan(budget_s=90.0, space=TABLE.space), TABLE.facts(), None).forecast()

    assert (forecast.n_trials, forecast.seconds) == (None, 90.0)
    assert "as many trials as fit in about 1.5 min of training" in forecast_line(forecast)
    told = {**json.loads(forecast.to_json()), "of_a_newer_version": 1}
    assert told["reference_runs"] is None
    assert Forecast.from_dict(told) == forecast


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("budget", [4, 12])
def test_the_forecast_is_about_right(kind: str, budget: int) -> None:
    """The number of trials that is announced is within a factor of two of what then runs."""
    strategy = make(kind=kind, budget=budget)
    said = strategy.forecast().n_trials

    assert said is not None
    assert 0.5 * said <= len(replay(strategy, TABLE)) <= 2 * said


@pytest.mark.parametrize("saturation", [16, 128, 512])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_search_keeps_to_its_seconds_whatever_it_tries(kind: str, saturation: int) -> None:
    """On a line of any shape a search costs what was announced, in reference runs and in seconds, and is soon done."""
    probe = known_probe(step_s=(saturation * 1e-4, 1e-4))
    strategy = Strategy(Plan(budget=12, space=TABLE.space, goal="time"), TABLE.facts(**KINDS[kind]), probe)
    announced = strategy.forecast().most_seconds or 0.0

    records = replay(strategy, TABLE)

    seconds = sum(
        (r.samples - r.start_samples) / r.global_batch_size * 1e-4 * (saturation + r.global_batch_size) for r in records
    )
    assert seconds <= 1.05 * announced
    assert strategy.spent().predicted_seconds == pytest.approx(seconds, rel=0.05)
    best = strategy.recommend()
    assert best.verified
    tried = {r.global_batch_size for r in records}
    near = [b for b in tried if best.global_batch_size / 4 <= b <= best.global_batch_size * 4]
    assert len(near) >= 3


def test_a_duration_is_a_budget() -> None:
    """Both halves of a search that was cut off count towards it, and without a step time the trials' own seconds do."""
    probe = known_probe(step_s=(0.01, 0.0001))
    plan = Plan(budget_s=20.0, space=TABLE.space, goal="time")
    whole = replay(Strategy(plan, TABLE.facts(), probe), TABLE)
    again = Strategy(plan, TABLE.facts(), probe, whole[: len(whole) // 2])
    rest = replay(again, TABLE)

    assert settings_of([*whole[: len(whole) // 2], *rest]) == settings_of(whole)
    assert 10 < (again.spent().predicted_seconds or 0.0) <= 20 * 1.05


def test_a_forecast_names_no_more_trials_than_the_rest_of_the_budget_pays() -> None:
    """Of a study that goes on with little left: each trial runs to the first rung at least."""
    facts = TABLE.facts(step_times=tuple((batch, 1e-4 * (64 + batch)) for batch in TABLE.batches))

    said = [Strategy(Plan(space=TABLE.space, budget=budget), facts, None).forecast().n_trials for budget in (0.1, 0.2)]

    assert said == [2, 5]


class BusyPool(TablePool):
    """A pool on a machine that does other things as well: a run may take twice as long as its like."""

    def __init__(self, seed: int) -> None:
        """Make up by this seed how long runs take."""
        super().__init__(TABLE)
        self._random = random.Random(seed)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what happens, with the seconds of each run that has ended."""
        for event in super().events(timeout_s):
            if isinstance(event, Finished):
                event = replace(event, seconds=event.samples * 1e-3 * math.exp(self._random.gauss(0, 0.4)))
            yield event


class SlowPool(TablePool):
    """A pool where each run takes so many times as long as its price says."""

    def __init__(self, strategy: Strategy, factor: float) -> None:
        """Ask the strategy what runs cost."""
        super().__init__(TABLE)
        self._strategy, self._factor = strategy, factor

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what happens, with the seconds of each run that has ended."""
        for event in super().events(timeout_s):
            if isinstance(event, Finished):
                run = self._strategy.ledger[event.number]
                clock = self._strategy._clock
                event = replace(event, seconds=self._factor * clock.price_of(run) * (clock.reference_s or 0.0))
            yield event


@pytest.mark.parametrize(("budget", "seed"), [(2, 3), (2, 11), (2, 22), (3, 1), (3, 14)])
def test_the_answer_is_verified_whatever_runs_turn_out_to_cost(budget: int, seed: int) -> None:
    """Without a probe each run that ends may change what all before it have cost, the more so on a busy machine.

    The full run that is held back for the answer is made all the same, and no more than that passes the budget.
    """
    strategy = Strategy(Plan(budget=budget, space=TABLE.space), TABLE.facts(), None)

    Drive(Records(()), strategy, None, tell=lambda *_: None).run(BusyPool(seed))

    assert strategy.recommend().verified
    assert strategy.spent().reference_runs <= budget + 1
