"""Odd values for whatever a user hands in, and a formula to search with them."""

from __future__ import annotations

import bstune
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SPACE = {"batch_size": [16], "learning_rate": [0.001, 0.01]}
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)
