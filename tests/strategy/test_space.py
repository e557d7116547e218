"""What is searched by default, and the forms of the `space` argument."""

from __future__ import annotations

import math
from typing import Any

import bstune
import pytest
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.progress import forecast_line
from bstune.tuner.strategy.space import Space, make_space
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution


def space_of(
    asked: dict[str, Any] | None = None,
    *,
    family: str = "other",
    n_samples: int = 10_000,
    epochs: float = 5,
    kind: str = "loop",
    **plan: Any,
) -> Space:
    """Return the space of a plan."""
    facts = Facts("t", kind, n_samples, epochs, optimizer_family=family)  # type: ignore[arg-type]
    return make_space(check_search(space=asked, **plan).plan, facts, None)


def test_default_batches_are_powers_of_two_with_a_hundred_steps_left() -> None:
    """From 4 to min(n, epochs * n / 100)."""
    assert space_of().batches == (4, 8, 16, 32, 64, 128, 256)
    assert space_of(n_samples=500, epochs=2).batches == (4, 8)


ONE_STEP = {"n_samples": 4000, "epochs": 30, "accumulates": False}
"""Of a command without a place for accumulation, whose probe ends at the largest size that a trial would use."""


@pytest.mark.parametrize(
    ("facts", "probe", "space", "said"),
    [
        ({"n_samples": 400, "epochs": 3}, None, {}, "4 to 8 (a larger one makes under 100 steps in a full run)"),
        ({"n_samples": 400, "epochs": 300}, None, {}, "4 to 256 (the data set has no more)"),
        (ONE_STEP, {"micro_batch_size": 48}, {}, "4 to 32 (no more fit in memory)"),
        (ONE_STEP, {"micro_batch_size": 48, "limited_by": "max_batch"}, {}, "4 to 32 (the probe tried no larger one)"),
        (
            {**ONE_STEP, "epochs": 2},
            {"micro_batch_size": 80, "limited_by": "max_batch"},
            {},
            "4 to 64 (a larger one makes under 100 steps in a full run)",
        ),
        ({"n_samples": 400, "epochs": 3}, None, {"batch_size": [4, 8]}, "4 to 8"),
    ],
)
def test_a_forecast_says_why_batch_sizes_end(
    facts: dict[str, Any], probe: dict[str, Any] | None, space: dict[str, Any], said: str
) -> None:
    """By what leaves no room for twice the largest; those that the user names end where they end."""
    known = None if probe is None else known_probe(**probe)
    strategy = Strategy(Plan(space=space), Facts(None, "supervised", **facts), known)

    line = forecast_line(strategy.forecast())
    assert f"; batch sizes {said}, learning rates" in line
    assert " reference runs (full runs at batch " in line


def test_tiny_data_still_has_a_batch() -> None:
    """So little data that a hundred steps cannot be had is no error."""
    assert space_of(n_samples=20, epochs=1).batches == (1, 2, 4)


@pytest.mark.parametrize(
    ("family", "low", "high", "centre"),
    [("sgd", 1e-4, 3.0, 0.025), ("adam", 1e-6, 1e-1, 1e-3), ("other", 1e-5, 1.0, 10**-2.5)],
)
def test_the_default_learning_rates_follow_the_family(family: str, low: float, high: float, centre: float) -> None:
    """Range and centre by family; the middle of the range where the family is unknown."""
    space = space_of(family=family)

    assert low <= space.learning_rates[0] < low * 2**0.6
    assert high / 2**0.6 < space.learning_rates[-1] <= high
    assert space.centre_learning_rate == pytest.approx(centre)


def test_the_baseline_is_in_the_space_and_its_centre() -> None:
    """The user's own setting is always a cell."""
    space = space_of(baseline=(48, 3e-4))

    assert 48 in space.batches
    assert 3e-4 in space.learning_rates
    assert (space.centre_batch, space.centre_learning_rate) == (48, 3e-4)


def test_the_forms_of_a_dimension() -> None:
    """A scalar fixes, a list means exactly these, a tuple is a range, a distribution is itself."""
    space = space_of(
        {
            "batch_size": (10, 100),
            "learning_rate": [0.1, 0.01],
            "momentum": 0.9,
            "depth": [1, 2, 3],
            "weight_decay": (1e-4, 1e-1),
            "dropout": FloatDistribution(0.0, 0.5),
            "width": (16, 64),
        }
    )

    assert space.batches == (16, 32, 64)
    assert space.learning_rates == (0.01, 0.1)
    assert space.fixed == {"momentum": 0.9}
    assert {dimension.name for dimension in space.extras} == {"depth", "weight_decay", "dropout", "width"}
    params = space.default_params()
    assert params["momentum"] == 0.9
    assert params["depth"] == 2
    assert params["weight_decay"] == pytest.approx(10**-2.5, rel=1e-3)
    assert (params["width"], type(params["width"])) == (32, int)  # Between whole numbers lie whole numbers.


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch_size": [0, 32]}, r"\['batch_size'\]\[0\]=0: expected at least 1"),
        ({"batch_size": [32.5]}, r"\['batch_size'\]\[0\]=32.5: expected a whole number"),
        ({"batch_size": []}, "empty"),
        ({"batch_size": (65, 100)}, "no power of two"),
        ({"batch_size": [100_000]}, "full run"),
        ({"batch_size": IntDistribution(0, 64)}, r"\['batch_size'\].low=0: expected at least 1"),
        ({"batch_size": IntDistribution(65, 100, log=True)}, "no power of two"),
        ({"batch_size": CategoricalDistribution([32, 0])}, r"\['batch_size'\]\[1\]=0: expected at least 1"),
        ({"batch_size": FloatDistribution(1, 2)}, r"expected a list, \(lowest, highest\) or Optuna's IntDistribution"),
        ({"learning_rate": (0.0, 1.0)}, r"\['learning_rate'\]\[0\]=0.0: expected a number from 1e-15"),
        ({"learning_rate": [-0.1]}, r"\['learning_rate'\]\[0\]=-0.1: expected a number from 1e-15"),
        ({"learning_rate": FloatDistribution(0.0, 1.0)}, r"\['learning_rate'\].low=0.0: expected a number from 1e-15"),
        ({"learning_rate": CategoricalDistribution([0.0, 0.1])}, r"\['learning_rate'\]\[0\]=0.0: expected a number"),
        ({"learning_rate": IntDistribution(1, 3)}, "Optuna's FloatDistribution"),
        ({"dropout": (0.5, 0.1)}, r"\['dropout'\]=\(0.5, 0.1\): the lowest is more than the highest"),
        ({"dropout": (0.0, 0.1)}, r"\['dropout'\]\[0\]=0.0: expected a number from 1e-15"),
        ({"dropout": FloatDistribution(-math.inf, 0.5)}, r"\['dropout'\].low=-inf: expected a finite number"),
    ],
)
def test_a_wrong_space_is_refused_by_name(asked: dict[str, Any], message: str) -> None:
    """The message names the dimension and what was expected, in the same words whichever form it has."""
    with pytest.raises(bstune.ArgumentError, match=message):
        space_of(asked)


def test_all_forms_of_one_dimension_mean_the_same() -> None:
    """A range is one, and a list is one, whether it is Python's or Optuna's."""
    for form in ((16, 64), IntDistribution(16, 64, log=True), [16, 32, 64], CategoricalDistribution([64, 32, 16])):
        assert space_of({"batch_size": form}).batches == (16, 32, 64)
    assert space_of({"batch_size": IntDistribution(10, 30, step=10)}).batches == (10, 20, 30)
    rates = space_of({"learning_rate": (0.01, 0.1)}).learning_rates
    assert space_of({"learning_rate": FloatDistribution(0.01, 0.1)}).learning_rates == rates
    for choices in ([0.3, 0.1], CategoricalDistribution([0.3, 0.1])):
        assert space_of({"learning_rate": choices}).learning_rates == (0.1, 0.3)
    assert space_of({"gate": CategoricalDistribution([None])}).fixed == {"gate": None}  # Only Optuna can say None.


def test_a_batch_is_no_larger_than_the_data_that_bstune_deals_out() -> None:
    """A loop of the user's own may take more, and says what that means."""
    assert space_of({"batch_size": [20_000]}).batches == (20_000,)
    with pytest.raises(bstune.ArgumentError, match=r"\[20000\], more than the 10000 samples of the training data"):
        space_of({"batch_size": [64, 20_000]}, kind="supervised")


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Two mistakes, one message."""
    with pytest.raises(bstune.ArgumentError, match=r"(?s)2 arguments are wrong.*batch_size.*learning_rate"):
        space_of({"batch_size": [0], "learning_rate": [0]})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("batchsize", "batch_size"), ("learning-rate", "learning_rate"), ("lr", "learning_rate"), ("Batch", "batch_size")],
)
def test_a_misspelt_dimension_is_not_searched_for_nothing(name: str, meant: str) -> None:
    """It would be an extra dimension that changes nothing, and the batch sizes would be the default ones."""
    with pytest.raises(bstune.ArgumentError, match=f"did you mean '{meant}'"):
        space_of({name: [32]})
