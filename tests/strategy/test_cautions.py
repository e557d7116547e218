"""What a recommendation warns of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bstune.tests.strategy.replayed import make
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic

TABLE = synthetic()
PROBE = known_probe(48)
PLAN = Plan(space=TABLE.space, goal="loss", budget=6)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (5.0, "Full runs really took 5 times as long as their step times say: the machine was busy, or something "),
        (0.5, "Full runs really took 0.5 times as long as their step times say: the machine was busy while these "),
        (1.3, ""),
    ],
)
def test_full_runs_that_took_other_seconds_than_their_step_times_say_are_told(times: float, said: str) -> None:
    """Beyond a factor of 1.5, and short runs count for nothing: starting takes most of their time."""
    first = Strategy(PLAN, TABLE.facts(), PROBE)
    replay(first, TABLE)
    line = PROBE.step_time_line
    assert line is not None
    records = []
    for run in first.ledger:
        assert run.record is not None
        record = run.record
        step_s = line.step_s(record.micro_batch_size, record.accumulation_steps)
        seconds = (record.samples - record.start_samples) / record.global_batch_size * step_s
        records.append(replace(record, seconds=seconds * (times if record.state == "complete" else 100)))

    warnings = Strategy(PLAN, TABLE.facts(), PROBE, records).recommend().warnings

    assert any(record.state == "complete" and (record.seconds or 0) > 1 for record in records)
    assert [text.startswith(said) for text in warnings if "step times" in text] == ([True] if said else [])


ONE_BATCH = "Only batch 64 was tried, of 8 to 512, so nothing is known of others. A larger budget may try them."


@pytest.mark.parametrize(
    ("n_trials", "rates", "said"),
    [
        (2, None, [ONE_BATCH, "Only the learning rate 0.03 was tried at batch 64: another may be better."]),
        (3, None, [ONE_BATCH, "0.12 is the highest learning rate tried at batch 64: a higher one may be better."]),
        (5, None, [ONE_BATCH]),
        (3, [0.03, 0.12], [ONE_BATCH, "The learning rate 0.12 is at the edge of its range 0.03 to 0.12; "]),
        (20, None, []),
    ],
)
def test_what_was_not_tried_beside_the_answer_is_told(
    n_trials: int, rates: list[float] | None, said: list[str]
) -> None:
    """Other batch sizes, and rates beyond the answer: an end of the user's own range has its own warning."""
    space = TABLE.space if rates is None else {**TABLE.space, "learning_rate": rates}
    strategy = make(budget=8, n_trials=n_trials, space=space)
    replay(strategy, TABLE)

    warnings = [text for text in strategy.recommend().warnings if "tried" in text or "edge" in text]

    assert len(warnings) == len(said)
    for text in said:
        assert sum(warning.startswith(text) for warning in warnings) == 1


def test_a_single_batch_that_was_asked_for_is_no_news() -> None:
    """Nor is it that no other was tried."""
    strategy = make(budget=6, n_trials=5, space={**TABLE.space, "batch_size": [64]})
    replay(strategy, TABLE)

    assert strategy.recommend().warnings == ()


def test_trials_that_fail_in_the_users_code_are_told_and_no_larger_budget_is_advised() -> None:
    """As where a loop stops early by itself: no full run ends, and the answer says what has to be mended."""
    first = make(budget=8)
    records = replay(first, TABLE)
    fails = [record for record in records if record.stage == "confirm"]
    broken = [
        replace(record, state="failed", cause="error", val_loss=None) if record in fails else record
        for record in records
    ]

    warnings = Strategy(PLAN, TABLE.facts(), None, broken).recommend().warnings

    assert first.recommend().verified
    assert warnings[0].startswith(f"Not verified: all {len(fails)} full runs on fresh seeds failed by an error")
    assert any(text.startswith(f"{len(fails)} of {len(records)} trials failed by an error") for text in warnings)
    assert not any("a budget of" in text for text in warnings)


@pytest.mark.parametrize(("start_s", "said"), [(1000.0, True), (0.5, False), (0.0, False)])
def test_runs_that_take_longer_to_start_than_to_train_are_told(start_s: float, said: bool) -> None:
    """As where a loop compiles its model: the budget goes to starting."""
    strategy = Strategy(PLAN, TABLE.facts(), replace(PROBE, start_s=start_s))
    replay(strategy, TABLE)

    warnings = strategy.recommend().warnings

    assert [text[:39] for text in warnings if "first step" in text] == [
        "A run takes 1,000 s until its first ste"
    ] * said
