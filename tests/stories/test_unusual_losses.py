"""Losses of sizes that tests seldom have, and users do: perfect scores, and tiny or huge ones."""

from __future__ import annotations

from collections.abc import Callable

import bstune
import pytest
from bstune.tests.stories.bowl import SPACE, formula, search
from bstune.tuner.strategy.evidence import Evidence


def losing(change: Callable[[float], float]) -> bstune.SearchResult:
    """Search the formula with its losses changed."""

    @bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
    def function(trial: bstune.Trial) -> None:
        report = trial.report
        trial.report = lambda val_loss, samples: report(  # type: ignore[method-assign, assignment, misc]
            change(val_loss), samples=samples
        )
        formula(trial)

    return search(function, space={**SPACE, "learning_rate": [0.0001, 0.001, 0.01, 0.1, 1.0]})


@pytest.mark.parametrize("times", [1e-9, 1e9, 1e200])
def test_the_unit_of_a_loss_does_not_matter(times: float) -> None:
    """Not even where its square is no number any more."""
    answer = losing(lambda loss: times * loss).recommendation

    assert answer.learning_rate == 0.01
    assert answer.verified


def test_a_perfect_score_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing below zero is a target where no loss is, whatever the surrogate makes of many zeros."""
    monkeypatch.setattr(Evidence, "lowest_expected", -1e-4)
    result = losing(lambda loss: max(0.0, loss - 0.3))

    assert result.target == 0.0
    assert result.recommendation.val_loss.mean == 0.0
    assert result.recommendation.samples_to_target is not None
