"""What a recommendation warns of."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
