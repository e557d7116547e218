"""Runs that say nothing of how to train are known for it, and those that say something are let alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import bstune
import pytest
import torch
from bstune.tuner.core.remarks import Caution
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.report.reasons import caution_text
from bstune.tuner.strategy.ledger import Ledger, Run
from bstune.tuner.strategy.nothing_learned import nothing_learned, score_like
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic

pytestmark = pytest.mark.usefixtures("formulas_take_no_time")
N = 128


def train(trial: bstune.Trial, learning_rate: float, targets: torch.Tensor, first: float = 0.0) -> None:
    """Train a line on noise and judge it on other noise, with this learning rate whatever the trial says."""
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(2 * N, 4, generator=draw)
    model = torch.nn.Linear(4, 1)
    torch.manual_seed(trial.seed)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, first)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for step in range(trial.max_samples // trial.global_batch_size):
        rows = torch.randint(N, (trial.global_batch_size,))
        optimizer.zero_grad()
        (model(x[rows]).squeeze(1) - targets[rows]).square().mean().backward()
        optimizer.step()
        samples = (step + 1) * trial.global_batch_size
        if samples >= trial.next_report:
            with torch.no_grad():
                trial.report((model(x[N:]).squeeze(1) - targets[N:]).square().mean(), samples=samples)


def found_in(loop: Callable[[bstune.Trial], None]) -> Caution | None:
    """Return what is said of a search of a loop."""
    objective = bstune.objective(n_samples=N, epochs=27, name="noise")(loop)
    space = {"batch_size": [8, 16], "learning_rate": [0.0005, 0.002, 0.008, 0.03]}
    result = bstune.search(objective, isolation="none", budget=4, space=space, storage="sqlite:///:memory:")
    return nothing_learned(Ledger(result.records))


def learnable() -> torch.Tensor:
    """Targets that are a line through the inputs."""
    return torch.randn(2 * N, 4, generator=torch.Generator().manual_seed(7)) @ torch.tensor([1.0, -2.0, 0.5, 1.0])


def noise() -> torch.Tensor:
    """Targets that have nothing to do with the inputs."""
    return torch.randn(2 * N, generator=torch.Generator().manual_seed(8))


def test_a_loop_that_ignores_its_learning_rate_is_found() -> None:
    """Its losses fall all right, and are the same at every rate."""
    found = found_in(lambda trial: train(trial, 0.01, learnable()))
    assert found == Caution("rate_ignored", {"rates": 4, "low": 0.0005, "high": 0.03})
    assert "Does the training use the learning rate" in caution_text(found)


def test_a_loop_that_learns_is_let_alone() -> None:
    """The same loop with the rate that it is given."""
    assert found_in(lambda trial: train(trial, trial.learning_rate, learnable())) is None


def test_a_model_that_learns_nothing_is_found() -> None:
    """Of noise there is nothing to learn but its mean, which the model begins with: losses only rise."""
    found = found_in(lambda trial: train(trial, trial.learning_rate, noise()))
    assert found is not None
    assert found.code == "nothing_learned"
    assert f"The longest run had {found.figures['longest']:,.0f} samples: " in caution_text(found)
    assert caution_text(found).startswith("Nothing was learned: no run ended more than 2 % below")


def test_recorded_curves_are_let_alone() -> None:
    """At no moment of a search that learns is it said that nothing was."""
    table, found = synthetic(), []
    strategy = Strategy(Plan(budget=6, space=table.space), table.facts(), None)
    replay(strategy, table, watch=lambda strategy: found.append(nothing_learned(strategy.ledger)))
    assert score_like(strategy.ledger) is None
    assert len(found) > 20
    assert not any(found)


# --- where the line is drawn --------------------------------------------------------------------------------------


def run(number: int, rate: float, values: Mapping[int, float], batch: int = 32, **asked: Any) -> Run:
    """Return a run that has reported these losses."""
    given: dict[str, Any] = {"stage": "search", "seed": 0, "end_samples": 960} | asked
    setting = Setting(batch, rate, given.pop("params", {}))
    return Run(number, Proposal(setting=setting, points=(), **given), "complete", max(values), values=dict(values))


FALLING = {96: 2.0, 320: 1.0, 960: 0.5}
NAN = float("nan")


@pytest.mark.parametrize(
    "runs",
    [
        [(0.01, FALLING), (0.04, FALLING), (0.159, FALLING)],  # Too near to each other.
        [(0.01, FALLING), (1.0, FALLING)],  # Too few.
        [(0.01, FALLING), (0.04, FALLING), (0.16, {96: 2.0, 320: 1.0 + 1e-8})],  # One has a loss of its own.
        [(0.01, FALLING), (0.04, FALLING), (0.16, {96: 2.0, 320: NAN})],
        [(0.01, {96: 2.0}), (0.04, {320: 1.0}), (0.16, {960: 0.5})],  # Nothing that can be compared.
        [],
    ],
)
def test_few_losses_that_are_equal_are_no_proof(runs: list[tuple[float, dict[int, float]]]) -> None:
    """Three rates at least, over a factor of 16, that agree wherever they can be compared."""
    assert nothing_learned([run(i, rate, values) for i, (rate, values) in enumerate(runs)]) is None


def test_only_what_is_equal_otherwise_is_compared() -> None:
    """Batches, seeds, parameters and planned ends have losses of their own."""
    same = [run(i, rate, FALLING) for i, rate in enumerate((0.01, 0.04, 0.16))]
    lower = {samples: loss / 2 for samples, loss in FALLING.items()}
    others = [
        run(3, 0.04, lower, batch=64),
        run(4, 0.04, lower, seed=1),
        run(5, 0.04, lower, params={"width": 2}),
        run(6, 0.04, lower, end_samples=320),
    ]
    found = nothing_learned(same + others)
    assert found is not None
    assert (found.code, found.figures["rates"]) == ("rate_ignored", 3)
    assert nothing_learned([*same, run(7, 0.08, lower)]) is None


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        ([{96: 2.0, 960: 1.97}, {96: 2.1, 960: 2.3}], True),
        ([{96: 2.0, 960: 1.95}, {96: 2.1, 960: 2.3}], False),  # It ends below.
        ([{96: 2.0, 320: 1.9, 960: 2.1}, {96: 2.1, 960: 2.3}], False),  # It fell on the way.
        ([{96: 2.0, 960: 2.0}, {96: 2.1, 960: 2.05}], False),  # So did a worse one.
        ([{96: 2.0, 960: 2.0}, {320: 1.9, 960: 1.9}], False),  # One began late and ends below.
        ([{96: 2.0, 960: 2.0}, {960: 2.0}], False),  # One curve is not enough.
        ([{96: 2.0, 800: 2.0}, {96: 2.0, 800: 2.0}], False),  # Nor are two that have just begun.
        ([{960: 2.0}, {960: 1.5}], False),
        ([{96: -2.0, 960: -2.01}, {96: -2.0, 960: -1.0}], True),
        ([{96: -2.0, 960: -2.1}, {96: -2.0, 960: -1.0}], False),
        ([{96: 2.0, 960: NAN}, {96: NAN}], False),
    ],
)
def test_losses_that_never_fall(curves: list[dict[int, float]], says: bool) -> None:
    """By 2 % at least, below the first ones of all and along a run, over nine times the samples of the first report."""
    found = nothing_learned([run(i, 0.01 * 2**i, values) for i, values in enumerate(curves)])
    assert (found is not None) == says
    if found is not None:
        assert found.code == "nothing_learned"


LOW, HIGH = {96: 0.38, 960: 0.35}, {96: 0.42, 320: 0.6, 960: 0.8}


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        ([LOW, HIGH, HIGH, HIGH, {96: 0.5}], True),
        ([LOW, HIGH, HIGH, {96: 0.5}], False),  # Two may be rates that are too large.
        ([HIGH, HIGH, HIGH, {96: 2.3, 960: 0.4}], False),  # A loss that falls at a better rate.
        ([HIGH, HIGH, HIGH, {96: 2.3, 960: NAN}], True),
        ([{96: -0.4, 960: -0.8}] * 4, False),  # A score that is reported with a minus.
        ([{96: 0.4, 960: 0.41}] * 9, False),
    ],
)
def test_a_score_that_is_reported_as_the_loss_is_asked_for(curves: list[dict[int, float]], says: bool) -> None:
    """The search takes the worst accuracy for the best, which nothing but the course of the runs shows."""
    found = score_like([run(i, 0.01 * 2**i, values) for i, values in enumerate(curves)])
    assert (found is not None) == says
    if found is not None:
        assert "from 0.42 to 0.8), and fell in none by more than 15 %: is it a score" in caution_text(found)
