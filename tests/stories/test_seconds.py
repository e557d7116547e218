"""A search whose trials take long enough that their seconds tell what training costs: there is no other price."""

from __future__ import annotations

import time

import bstune
import pytest

STEP_S = 0.017


@pytest.fixture(autouse=True)
def _formulas() -> None:
    """Here the seconds of trials are to tell."""


@bstune.objective(n_samples=512, epochs=1, evals=2, name="timed")
def timed(trial: bstune.Trial) -> None:
    """A step takes as long whatever its batch, and all learn as much from as many samples."""
    samples = 0
    while samples < trial.max_samples:
        time.sleep(STEP_S)
        samples += trial.global_batch_size
        if samples >= trial.next_report:
            trial.report(val_loss=1.0 / samples, samples=samples)


def test_what_trials_take_is_what_training_costs() -> None:
    """A full run is priced by them, and of two batches that learn alike the answer is the one that took less."""
    result = bstune.search(
        timed,
        space={"batch_size": [8, 16], "learning_rate": [0.01]},
        n_trials=2,
        confirm=0,
        pruner="none",
        isolation="none",
        storage="sqlite:///:memory:",
    )

    best, soonest = result.recommendation, min(result.records, key=lambda record: record.seconds or 0.0)
    assert {record.global_batch_size for record in result.records} == {8, 16}
    assert best.global_batch_size == soonest.global_batch_size
    assert best.seconds_per_full_run == pytest.approx(soonest.seconds, rel=0.3)
    assert best.seconds_to_target is not None
