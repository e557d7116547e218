"""How much each dimension is said to matter, on losses whose truth is known."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import bstune
import numpy as np
import pytest
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts
from bstune.tuner.strategy.strategy import Strategy

SPACE: dict[str, Any] = {
    "batch_size": [16, 32, 64],
    "learning_rate": (1e-3, 1e-1),
    "weight_decay": (1e-5, 1e-1),
    "dropout": [0.0, 0.2, 0.4],
    "optimizer": ["adam", "sgd"],
    "momentum": bstune.When(optimizer="sgd", values=[0.0, 0.5, 0.9]),
}


def told(n: int, space: dict[str, Any] = SPACE, **weights: float) -> Strategy:
    """Return a strategy that knows n full runs; each weight is how much the loss falls along a dimension."""
    strategy, rng = Strategy(Plan(space=space), Facts("t", "loop", 1000, 4), None), np.random.default_rng(1)
    for number in range(n):
        batch, rate = int(rng.choice(strategy.space.batches)), float(rng.choice(strategy.space.learning_rates))
        params = strategy.space.params(rng.random)
        where = {
            "learning_rate": (math.log10(rate) + 3) / 2,
            "weight_decay": (math.log10(params.get("weight_decay", 1.0)) + 5) / 4,
            "dropout": params.get("dropout", 0.0) / 0.4,
            "optimizer": float(params.get("optimizer") == "sgd"),
        }
        loss = 2.0 - sum(weight * where[name] for name, weight in weights.items())
        cost = (3968, loss, loss, 1.0, 1.0, None)
        record = TrialRecord(number, "search", "complete", "", batch, batch, 1, rate, 0, *cost)
        strategy.finish(dataclasses.replace(record, params=params, values=((3968, loss),), end_samples=3968))
    return strategy


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "dropout", "optimizer"])
def test_what_alone_changes_the_loss_has_the_largest_share(name: str) -> None:
    """And all shares are one together, in descending order, the same at every call, in a moment."""
    strategy = told(60, SPACE, **{name: 0.5})
    start_s = time.process_time()
    shares, why = strategy.importance()
    took_s = time.process_time() - start_s

    assert why is None
    assert shares is not None
    assert {*shares} == {*SPACE}
    assert next(iter(shares)) == name
    assert shares[name] > 0.5
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert strategy.importance() == (shares, why)
    assert took_s < 1.0


def test_too_few_settings_tell_nothing() -> None:
    """The reason says how many there are, and how many would do."""
    assert told(5, weight_decay=0.5).importance() == (
        None,
        "5 settings were run, and 24 or more are needed to tell 6 dimensions apart",
    )


def test_where_nothing_varies_nothing_matters() -> None:
    """A single setting, as after the first trial or with a fixed space."""
    space: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.1}

    assert told(3, space).importance() == (None, "no dimension has had two values")
    assert Strategy(Plan(space=space), Facts("t", "loop", 1000, 4), None).importance()[0] is None
