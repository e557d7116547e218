"""What training costs: samples into seconds, as steps are run, and nothing where no step time is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bstune.tuner.core.probe_results import ProbeResult, StepTimeLine, ThroughputRow
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Proposal
from bstune.tuner.core.trial_record import TrialRecord, begun
from bstune.tuner.core.trials import Facts
from bstune.tuner.strategy.cost import Clock, Cost, fitted
from bstune.tuner.strategy.ledger import Ledger
from bstune.tuner.strategy.rungs import Rungs
from bstune.tuner.testing.fake_device import known_probe

FACTS = Facts("made up", "supervised", n_samples=1000, epochs=2.0)
COST = Cost.of(FACTS, known_probe(64, step_s=(0.01, 0.0001)))


def test_a_full_run_is_of_whole_steps() -> None:
    """2,000 samples are 31 steps of 64, and the 16 samples left over are not paid for."""
    assert COST.full_run_s(64) == pytest.approx(31 * 0.0164)
    assert COST.seconds(64, 2000) == pytest.approx(2000 / 64 * 0.0164)


def test_a_batch_that_does_not_fit_brings_no_speed() -> None:
    """It is accumulated from micro-batches that fit, and a run that was split smaller pays for its own split."""
    assert COST.split(256) == (64, 4)
    assert COST.samples_per_s(256) == pytest.approx(COST.samples_per_s(64))
    assert COST.samples_per_s(256, split=(32, 8)) == pytest.approx(32 / 0.0132)


@pytest.mark.parametrize("probe", [None, known_probe(64, step_s=None)])
def test_without_step_times_nothing_is_known(probe: ProbeResult | None) -> None:
    """Neither without a probe, whose batches are then run whole, nor with one that timed nothing."""
    cost = Cost.of(FACTS, probe)

    assert not cost.known
    assert (cost.step_s(64), cost.samples_per_s(64), cost.seconds(64, 1000), cost.full_run_s(64)) == (None,) * 4
    assert cost.split(256) == ((256, 1) if probe is None else (64, 4))


@pytest.mark.parametrize("most", [1, 2])
def test_where_one_or_two_samples_fit_their_time_is_that_of_every_batch(most: int) -> None:
    """One size is no line, and all batches are accumulated of it; of a larger one, less may be trained at a time."""
    row = ThroughputRow(most, 2.0, most * 0.5, 0.0)
    known = known_probe(most, step_s=None, throughput=(row,))

    assert Cost.of(FACTS, known).seconds(64, 128) == pytest.approx(64.0)
    assert not Cost.of(FACTS, replace(known, micro_batch_size=3)).known


def test_what_a_loop_takes_beside_its_steps_is_paid_for_once() -> None:
    """Its start, and each validation; but not where its seconds are stated, or fitted to whole runs."""
    facts = replace(FACTS, kind="loop", evals=2)
    beside: dict[str, Any] = {"start_s": 5.0, "validation_s": 0.5}
    timed = Cost.of(facts, known_probe(64, step_s=(0.01, 0.0001), **beside))
    stated = Cost.of(replace(facts, step_times=((64, 0.0164),)), known_probe(64, **beside))
    found = Cost.of(facts, known_probe(64, step_s=None, **beside), StepTimeLine(0.01, 0.0001, 100.0))

    n_reports = len(Rungs.of(facts).points(31 * 64))
    assert timed.full_run_s(64) == pytest.approx(31 * 0.0164 + 5.0 + 0.5 * n_reports)
    assert stated.full_run_s(64) == found.full_run_s(64) == pytest.approx(31 * 0.0164)


@pytest.mark.parametrize("probed", [True, False])
def test_a_start_is_paid_once_however_soon_the_target_is_reached(probed: bool) -> None:
    """A run of 2 s that a program of 5 s starts has trained a quarter after 5.5 s, by the probe's start or the trials'.

    A reference run is such a whole run, and so is what a full run takes.
    """
    facts = replace(FACTS, kind="command")
    line = StepTimeLine(0.0, 0.001, None)
    probe = known_probe(64, step_s=None)
    if probed:
        cost = Cost.of(facts, replace(probe, step_time_line=line, start_s=5.0))
    else:
        cost = Cost.of(facts, probe, line, 5.0)

    assert cost.seconds_to(50, 500) == pytest.approx(5.5)
    assert cost.full_run_s(50) == pytest.approx(7.0)
    assert Clock(Rungs.of(facts), (50,), cost).reference_s == pytest.approx(7.0)


def ledger(seconds: Callable[[int, int], float]) -> Ledger:
    """Return runs of three batch sizes and lengths that took so many seconds by batch size and samples."""
    records: list[TrialRecord] = []
    for batch in (8, 32, 128):
        for samples in (1024, 2048, 8192):
            asked = Proposal("search", Setting(batch, 0.1, {}), 0, samples, (samples,))
            record = begun(asked.spec(len(records), batch, 1))
            taken = seconds(batch, samples)
            records.append(
                replace(
                    record, state="complete", samples=samples, values=((samples, 1.0),), seconds=taken, val_loss=1.0
                )
            )
    return Ledger(records)


def test_the_start_of_a_program_is_told_from_its_training() -> None:
    """Long and short runs of several batch sizes show what each part takes."""
    line, start_s = fitted(ledger(lambda batch, samples: 5 + samples / batch * (0.02 + 0.001 * batch)), starts=True)

    assert line is not None
    assert line.a_s == pytest.approx(0.02, rel=1e-3)
    assert line.c_s_per_sample == pytest.approx(0.001, rel=1e-3)
    assert start_s == pytest.approx(5, rel=1e-3)


def test_a_start_that_hides_the_training_makes_no_batch_size_look_fast() -> None:
    """Where runs are mostly start, no batch size costs more than twice as much as another."""
    line, _ = fitted(
        ledger(lambda batch, samples: 20 + (batch * samples) % 7 / 5 + samples / batch * 1e-4), starts=True
    )

    assert line is not None
    costs = [line.step_s(batch) / batch for batch in (8, 32, 128)]
    assert max(costs) < 2 * min(costs)
