"""A bowl in the learning rate, and a search of it in this process."""

from __future__ import annotations

import math
from typing import Any

import bstune

BUDGET = 4
SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate, deeper the longer it trains; best at 0.01."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
            trial.report(val_loss=loss + 0.001 * trial.seed, samples=samples)


def search(objective: Any = formula, **changes: Any) -> bstune.SearchResult:
    """Search the formula in this process."""
    arguments: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": BUDGET, "storage": "sqlite:///:memory:"}
    return bstune.search(objective, **(arguments | changes))


def failing(when: Any, error: type[Exception] = ValueError) -> Any:
    """The formula, raising where `when` says so."""

    @bstune.objective(n_samples=320, epochs=4, evals=4, name="failing")
    def function(trial: bstune.Trial) -> None:
        if when(trial):
            raise error(f"bad rate {trial.learning_rate}")
        formula(trial)

    return function
