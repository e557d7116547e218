"""What the strategy makes of gradient noise and of samples to target.

Who is measured, who pays, and which batch is fastest.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import NoisePoint, TrialReport
from bstune.tuner.strategy.ledger import Ledger
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table

N, EPOCHS, CRITICAL = 1024, 16, 200
FULL = N * EPOCHS
PROBE = known_probe(512, step_s=(0.01, 0.0002), n_train_samples=N)
"""Saturates at 50 samples."""


def table(constant: float | None = None) -> Table:
    """Return curves whose samples to any loss grow as 1 + batch / 200, with the best rate at 0.02, or constant ones."""
    curves = {}
    for batch in (16, 64, 256):
        for k in (-2, 0, 2):
            pace = 0.3 * FULL * (1 + batch / CRITICAL)
            curve = [
                (n * N, constant or (0.1 + math.exp(-n * N / pace)) * (1 + 0.02 * k**2)) for n in range(1, EPOCHS + 1)
            ]
            curves[batch, 0.02 * 2.0**k] = [curve]
    return Table("line", N, EPOCHS, curves, noise_scale=None if constant else 300.0)


TABLE = table()


def searched(
    budget: float, kind: str, history: list[TrialRecord] | None = None, given: Table = TABLE, **plan: Any
) -> Strategy:
    """Return a strategy for the table: `supervised`, whose gradients can be measured, or a `loop`."""
    facts = given.facts(kind=kind, schedule="constant", can_continue=kind == "supervised")
    return Strategy(Plan(budget=budget, space=given.space, **plan), facts, PROBE, history or ())


@pytest.mark.parametrize("budget", [2, 6])
def test_measuring_noise_is_charged_and_stays_within_the_budget(budget: float) -> None:
    """At every moment; the search spends 3 % of a full run on it at most, and a resumed search asks for the same."""
    strategy = searched(budget, "supervised")

    def watch(now: Strategy) -> None:
        assert now.spent().reference_runs <= budget

    records = replay(strategy, TABLE, watch=watch)

    drawn = {
        stage: sum(p.n_samples for r in records if r.stage == stage for p in r.noise)
        for stage in ("anchor", "search", "confirm")
    }
    assert drawn["anchor"] + drawn["search"] <= 0.03 * FULL
    assert sum(drawn.values()) > 0
    assert strategy.spent().samples == sum(r.samples - r.start_samples for r in records) + sum(drawn.values())
    assert strategy.recommend().verified
    cut = len(records) // 2
    again = replay(searched(budget, "supervised", records[:cut]), TABLE)
    assert [(r.learning_rate, r.samples, r.noise) for r in again] == [
        (r.learning_rate, r.samples, r.noise) for r in records[cut:]
    ]


def test_a_users_own_loop_is_not_asked_to_measure() -> None:
    """Its steps are not bstune's to look into."""
    records = replay(searched(4, "loop"), TABLE)

    assert all(r.noise == () for r in records)


def whole_runs(*batches: int) -> list[TrialRecord]:
    """Return full runs at the best learning rate."""
    return [
        TrialRecord(
            number=i,
            stage="search",
            state="complete",
            reason="",
            global_batch_size=batch,
            micro_batch_size=batch,
            accumulation_steps=1,
            learning_rate=0.02,
            seed=0,
            samples=FULL,
            val_loss=TABLE.curve(batch, 0.02, 0)[-1][1],
            best_val_loss=None,
            seconds=1.0,
            samples_per_s=None,
            peak_bytes=None,
            values=tuple(TABLE.curve(batch, 0.02, 0)),
            end_samples=FULL,
        )
        for i, batch in enumerate(batches)
    ]


def test_three_batch_sizes_that_were_run_give_the_fastest() -> None:
    """The critical batch of the table is 200 and the hardware saturates at 50, so B* is 100; the reason says so."""
    strategy = searched(12, "loop", whole_runs(16, 64, 256))

    answer = strategy.batch_answer()

    assert (answer.source, answer.n_batches, answer.decided_by) == ("trials", 3, "hardware")
    assert answer.b_crit == pytest.approx(CRITICAL, rel=0.25)
    assert answer.b_star == pytest.approx(100, rel=0.15)
    assert answer.fastest == 64
    assert strategy.limits().noise == answer.b_crit
    limits = "memory allows 512, hardware reaches half its speed at 50, gradient noise has its critical batch at"
    assert limits in strategy.recommend().reason


def test_a_run_that_was_stopped_early_does_not_count_against_its_batch() -> None:
    """Its setting reached the target on another seed; stopped at a third, it might have, too."""
    runs = whole_runs(16, 64, 256)
    stopped = dataclasses.replace(runs[1], number=3, seed=1, state="pruned", samples=5 * N, values=runs[1].values[:5])

    assert searched(12, "loop", [*runs, stopped]).batch_answer() == searched(12, "loop", runs).batch_answer()


def test_two_batch_sizes_leave_it_to_the_gradients() -> None:
    """Two points are no line; measured noise then answers, and says that it does."""
    points = tuple(NoisePoint(i * N, 8, 32, 1.0 + 0.1 * (i % 2), 300.0) for i in range(6))
    runs = whole_runs(16, 64)

    bare = searched(12, "supervised", runs).batch_answer()
    measured = searched(12, "supervised", [dataclasses.replace(runs[0], noise=points), runs[1]]).batch_answer()

    assert (bare.source, bare.b_crit) == (None, None)
    assert measured.source == "noise scale"
    assert measured.b_crit == pytest.approx(300 / 1.05)


def test_the_goal_time_confirms_the_fastest_batch() -> None:
    """Of three batch sizes that all get there, the one with the fewest seconds is recommended."""
    strategy = searched(10, "loop", whole_runs(16, 64, 256), goal="time")

    replay(strategy, TABLE)

    best = strategy.recommend()
    assert best.verified
    assert best.global_batch_size == 64


@pytest.mark.parametrize(("tolerance", "batch"), [(0.0, 16), (0.35, 64)])
@pytest.mark.parametrize("budget", [8, 12])
def test_a_faster_batch_within_tolerance_is_confirmed_and_recommended(
    budget: float, tolerance: float, batch: int
) -> None:
    """Batch 64 ends 24 % higher than 16 and takes less than half of the time: the answer for those who allow it."""
    strategy = searched(budget, "loop", whole_runs(16, 64, 256), tolerance=tolerance, goal="loss")

    replay(strategy, TABLE)

    assert strategy.recommend().verified
    assert strategy.recommend().global_batch_size == batch


def test_a_loop_whose_loss_never_changes_keeps_the_budget() -> None:
    """How far reports are apart is known from the reports, not from losses that differ."""
    flat = table(constant=0.5)
    strategy = searched(6, "loop", given=flat)

    replay(strategy, flat)

    assert strategy.spent().reference_runs <= 6 + N / FULL


def test_the_distance_between_reports_outlives_the_run() -> None:
    """It is in the record, so a search that goes on knows it too."""
    ledger = Ledger()
    ledger.start(0, Proposal("search", Setting(16, 0.02), 0, FULL, (FULL,)), FULL)
    ledger.report(TrialReport(0, (FULL,), FULL, 0.5, {}, 1.0, interval=N))

    assert ledger[0].interval == N
    assert Ledger([dataclasses.replace(whole_runs(16)[0], report_interval=N)])[0].interval == N


def test_a_confirmation_that_was_cut_off_names_the_budget_that_would_help() -> None:
    """With the budget spent nothing is to come, and the warning must not say so."""
    whole = whole_runs(64)[0]
    lost = dataclasses.replace(
        whole,
        number=1,
        stage="confirm",
        seed=1,
        state="failed",
        cause="killed",
        samples=FULL // 2,
        values=(),
        val_loss=None,
    )
    strategy = searched(2, "loop", [whole, lost])

    warnings = strategy.recommend().warnings

    assert strategy.ask() is None
    assert any("cut off; a budget of 3 would give one" in warning for warning in warnings)
    assert not any("to come" in warning for warning in warnings)
