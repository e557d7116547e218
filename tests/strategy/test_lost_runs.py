"""What the strategy makes of runs that diverge, collapse, fail or are lost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import bstune
import pytest
from bstune.tests.strategy.replayed import TABLE, make
from bstune.tuner.core.errors import NoSignalError
from bstune.tuner.core.results import Setting
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.report.reasons import no_advice
from bstune.tuner.testing.replay import replay


def test_a_loss_that_is_not_finite_stops_the_trial_at_once() -> None:
    """A diverged trial is a result: it is stopped, and neither recommended nor run again."""
    strategy = make(budget=8, baseline=(64, max(TABLE.learning_rates)))

    records = replay(strategy, TABLE)

    bad = [r for r in records if r.val_loss is None]
    assert bad
    assert all(r.samples <= 2 * TABLE.n_samples for r in bad)
    assert strategy.recommend().learning_rate not in {
        r.learning_rate for r in bad if r.global_batch_size == strategy.recommend().global_batch_size
    }


def test_nothing_learned_is_said_so() -> None:
    """Without one finite loss there is no recommendation, and the search ends."""
    table = dataclasses.replace(TABLE, curves={cell: [[(1024, math.nan)]] for cell in TABLE.curves})
    strategy = make(table, budget=4)

    replay(strategy, table)

    with pytest.raises(bstune.NoSignalError, match="finite validation loss"):
        strategy.recommend()


def test_what_diverges_at_once_with_the_present_setting_is_not_searched() -> None:
    """A far smaller rate that does as well shows that no rate mends it, and the answer says where to look."""
    table = dataclasses.replace(TABLE, curves={cell: [[(1024, math.nan)]] for cell in TABLE.curves})
    strategy = make(table, budget=16, baseline=(64, 0.03))

    records = replay(strategy, table)

    assert len(records) == 4
    assert min(record.learning_rate for record in records) < 0.03
    with pytest.raises(
        bstune.NoSignalError, match=r"first report, your present setting \(batch 64, learning rate 0.03\).*the data"
    ):
        strategy.recommend()


def test_a_setting_that_diverged_on_its_fresh_seed_is_not_recommended() -> None:
    """The next best is run and recommended instead; and where all has diverged, that is said."""
    curves = {
        cell: [
            seeds[0],
            *([[(at, math.nan) for at, _ in curve] for curve in seeds[1:]] if cell[0] <= 64 else seeds[1:]),
        ]
        for cell, seeds in TABLE.curves.items()
    }
    table = dataclasses.replace(TABLE, curves=curves)
    for all_of_them, space in ((False, table.space), (True, {"batch_size": [64], "learning_rate": [0.03]})):
        strategy = make(table, budget=3, space=space)
        replay(strategy, table)
        told = strategy.recommend()
        spoilt = {
            (run.setting.global_batch_size, run.setting.learning_rate)
            for run in strategy.ledger
            if run.stage == "confirm" and run.diverged
        }
        assert spoilt
        assert ((told.global_batch_size, told.learning_rate) in spoilt) == all_of_them
        assert any("diverged on a fresh seed" in warning for warning in told.warnings) == all_of_them


def test_where_no_run_comes_further_with_a_finite_loss_nothing_is_recommended() -> None:
    """As with a value in the data that is not finite: it is said from where on, and no larger budget is advised."""
    curves = {
        cell: [[(at, loss if at <= 2048 else math.nan) for at, loss in seed] for seed in seeds]
        for cell, seeds in TABLE.curves.items()
    }
    strategy = make(dataclasses.replace(TABLE, curves=curves), budget=4)

    replay(strategy, dataclasses.replace(TABLE, curves=curves))

    told = strategy.recommend()
    assert not told.verified
    said = no_advice(told.warnings)
    assert said is not None
    assert said.startswith("Every run past 2,048 samples diverged: the loss was not finite in ")
    assert "of them on fresh seeds. Look for values in the data that are not finite" in said
    assert not any("budget of" in warning for warning in told.warnings)


def test_what_failed_before_anything_was_learned_is_tried_again() -> None:
    """An error in the user's code ended the search and was repaired; later failures rule a setting out."""
    records = replay(make(budget=8), TABLE)
    failed: dict[str, Any] = {"state": "failed", "cause": "error", "val_loss": None}
    first = make(budget=8, history=[dataclasses.replace(records[0], **failed)]).ask()
    assert first is not None
    assert first.setting == Setting(records[0].global_batch_size, records[0].learning_rate, dict(records[0].params))
    late = next(r for r in records if r.stage == "search")
    history = [*records[: late.number], dataclasses.replace(late, **failed)]
    later = replay(make(budget=8, history=history), TABLE)
    assert (late.global_batch_size, late.learning_rate) not in {(r.global_batch_size, r.learning_rate) for r in later}


def test_a_lost_run_is_started_again_as_it_was() -> None:
    """To its own planned end, and from the checkpoint that it continued, if that is still there."""
    for kind in ("cosine", "continued"):
        strategy = make(kind=kind, budget=8)
        records = replay(strategy, TABLE)
        victim = next(
            r
            for r in records
            if r.stage == "search" and (r.continues is not None or kind == "cosine") and r.samples > 2048
        )
        lost = dataclasses.replace(
            victim, state="failed", cause="orphan", val_loss=None, values=(), samples=victim.start_samples
        )
        again = make(kind=kind, budget=8, history=[*records[: victim.number], lost]).ask()
        assert again is not None
        assert (again.setting, again.end_samples, again.continues) == (
            Setting(victim.global_batch_size, victim.learning_rate, dict(victim.params)),
            victim.end_samples,
            victim.continues,
        )


def test_an_orphan_is_started_again_and_a_setting_that_keeps_killing_is_not() -> None:
    """A run cut off by a crash comes again, twice at most."""
    strategy = make(budget=8)
    proposal = strategy.ask()
    assert proposal is not None
    lost = TrialRecord(
        number=0,
        stage=proposal.stage,
        state="failed",
        reason="the search was killed",
        global_batch_size=proposal.setting.global_batch_size,
        micro_batch_size=proposal.setting.global_batch_size,
        accumulation_steps=1,
        learning_rate=proposal.setting.learning_rate,
        seed=proposal.seed,
        samples=100,
        val_loss=None,
        best_val_loss=None,
        seconds=1.0,
        samples_per_s=None,
        peak_bytes=None,
        end_samples=proposal.end_samples,
        cause="orphan",
    )
    history = [lost]
    for _ in range(2):
        again = make(budget=8, history=history).ask()
        assert again is not None
        assert again.setting == proposal.setting
        history.append(dataclasses.replace(lost, number=len(history)))

    other = make(budget=8, history=history).ask()

    assert other is not None
    assert other.setting != proposal.setting


def test_out_of_memory_forbids_the_batch_and_all_larger_ones() -> None:
    """After a trial that ran out of memory without accumulation, nothing as large is proposed again."""
    strategy = make(budget=12)
    records = replay(strategy, TABLE)
    victim = next(r for r in records if r.global_batch_size == 64)
    history = [
        *records[: victim.number],
        dataclasses.replace(victim, state="failed", cause="oom", val_loss=None, values=()),
    ]

    later = replay(make(budget=12, history=history), TABLE)

    assert later
    assert max(r.global_batch_size for r in later) < 64


def test_where_all_diverges_late_a_baseline_changes_nothing() -> None:
    """No setting can be recommended, and that is what is said."""
    curves = {
        cell: [[(at, loss if at < 3 * 1024 else math.nan) for at, loss in curve] for curve in seeds]
        for cell, seeds in TABLE.curves.items()
    }
    table = dataclasses.replace(TABLE, curves=curves)
    strategy = make(table, budget=12, baseline=(32, 0.0075), pruner="none")
    replay(strategy, table)

    with pytest.raises(NoSignalError):
        strategy.recommend()


def test_a_run_that_lost_what_it_had_gained_is_not_trained_further() -> None:
    """A rate that leads at the first rung and then falls back to an untrained model's loss is not chosen."""
    curves = dict(TABLE.curves)
    for (batch, lr), seeds in TABLE.curves.items():
        if lr == 0.03 * 2**2:
            curves[batch, lr] = [[(1024 * epoch, 0.05 if epoch <= 2 else 0.9) for epoch in range(1, 17)] for _ in seeds]
    table = dataclasses.replace(TABLE, curves=curves)
    strategy = make(table, budget=6)

    records = replay(strategy, table)

    full = table.n_samples * table.epochs
    fallen = [r for r in records if r.learning_rate == 0.03 * 2**2]
    assert fallen
    assert all(r.samples < full / 2 for r in fallen)
    assert strategy.recommend().learning_rate != 0.03 * 2**2


@pytest.mark.usefixtures("formulas_take_no_time")
def test_a_cliff_does_not_move_the_valley() -> None:
    """The largest of three rates diverges and the middle one leads at every rung: the middle one is recommended."""

    @bstune.objective(n_samples=320, epochs=4, evals=4, name="cliff")
    def cliff(trial: bstune.Trial) -> None:
        for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
            if samples >= trial.next_report:
                loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
                trial.report(
                    val_loss=math.nan if trial.learning_rate == 0.1 and samples > 64 else loss, samples=samples
                )

    space = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
    result = bstune.search(cliff, isolation="none", storage="sqlite:///:memory:", budget=4, space=space)

    assert result.recommendation.learning_rate == 0.01
