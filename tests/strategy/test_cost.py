"""What training costs: samples into seconds, as steps are run, and nothing where no step time is known."""

from __future__ import annotations

import pytest
from bstune.tuner.core.probe_results import ProbeResult
from bstune.tuner.core.trials import Facts
from bstune.tuner.strategy.cost import Cost
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
