"""Failures that users of other tuners report, as scenarios of a search: what went wrong there must go right here.

Others stand with their subject: a trial that runs out of memory (test_search, test_strategy), memory kept between
trials (test_worker), a caller that is not as it was (test_search), a model that never runs out of memory
(test_scenarios).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import pytest

N_SAMPLES, EPOCHS, EVALS = 2048, 10, 10
FULL = N_SAMPLES * EPOCHS


def looked_up(loss: Callable[[bstune.Trial, int], float], *, n_samples: int = N_SAMPLES) -> Any:
    """Return an objective whose losses are a formula of the trial and the samples seen."""

    @bstune.objective(n_samples=n_samples, epochs=EPOCHS, evals=EVALS, name="formula")
    def formula(trial: bstune.Trial) -> None:
        samples = 0
        while samples < trial.max_samples:
            samples = min(trial.max_samples, max(trial.next_report, samples + trial.global_batch_size))
            trial.report(val_loss=loss(trial, samples), samples=samples)

    return formula


def search(objective: Any, **options: Any) -> bstune.SearchResult:
    """Search in this process for the lowest loss at equal samples: what is looked up takes no time."""
    return bstune.search(objective, isolation="none", goal="loss", storage="sqlite:///:memory:", **options)


def scatter(trial: bstune.Trial, samples: int, deviation: float) -> float:
    """Return noise that is another one for each setting, seed and report, and the same when it is asked for again."""
    return random.Random(f"{trial.seed} {trial.learning_rate:.9g} {trial.global_batch_size} {samples}").gauss(
        0.0, deviation
    )


def test_a_learning_rate_is_found_under_noise() -> None:
    """A curve flat below 1e-5 with its valley at 2e-3 that blows up above 3e-2: 19 of 20 answers lie in the valley."""

    def loss(trial: bstune.Trial, samples: int) -> float:
        decades = math.log10(trial.learning_rate / 2e-3)
        if trial.learning_rate > 3e-2:
            return math.nan
        floor = min(2.3, 0.4 + decades**2)
        return floor + (2.3 - floor) * math.exp(-5 * samples / FULL) + scatter(trial, samples, 0.3)

    rates = []
    for seed in range(20):
        space = {"batch_size": [32], "learning_rate": (1e-6, 1.0)}
        rates.append(search(looked_up(loss), space=space, seed=seed).recommendation.learning_rate)

    assert sum(3e-4 <= rate <= 1e-2 for rate in rates) >= 19, rates


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("below zero", lambda trial, samples: -100.0 - samples / FULL),
        (
            "infinite at some rates",
            lambda trial, samples: math.inf if trial.learning_rate > 1e-2 else 1.0 - samples / FULL,
        ),
        ("huge", lambda trial, samples: 1e30 * (1 + trial.learning_rate)),
        ("falls to zero", lambda trial, samples: max(0.0, 1 - 20 * samples / FULL)),
    ],
)
def test_odd_losses_end_in_an_answer(name: str, loss: Callable[[bstune.Trial, int], float]) -> None:
    """Whatever the loss is, a setting that was run is recommended."""
    result = search(looked_up(loss), budget=4)

    assert result.recommendation.learning_rate in set(result.trials["learning_rate"]), name


def test_a_loss_that_never_moves_is_said_so() -> None:
    """The same loss everywhere is no evidence for any setting, and the answer says so."""
    told = search(looked_up(lambda trial, samples: 2.3), budget=4).recommendation

    assert any("same loss" in warning for warning in told.warnings)


def test_large_batches_are_not_stopped_for_starting_slowly() -> None:
    """At equal samples large batches begin behind, and batch 512 with 3e-3 ends first: 19 of 20 searches come near it.

    Small batches report more often, so a pruner that compares by the number of the report would stop the wrong ones.
    """

    def loss(trial: bstune.Trial, samples: int) -> float:
        octaves = math.log2(trial.global_batch_size / 512)
        decades = math.log10(trial.learning_rate / 3e-3)
        floor = 0.3 + 0.015 * octaves**2 + 0.3 * (decades - 0.1 * octaves) ** 2
        pace = FULL / (6 + 8 * max(0.0, -octaves / 5))  # Small batches fall faster at first.
        return min(2.3, floor) + 2.0 * math.exp(-samples / pace) + scatter(trial, samples, 0.003)

    space = {"batch_size": [16, 32, 64, 128, 256, 512, 1024], "learning_rate": (1e-5, 1e-1)}
    batches = [search(looked_up(loss), space=space, seed=seed).recommendation.global_batch_size for seed in range(20)]

    assert sum(batch in (256, 512, 1024) for batch in batches) >= 19, batches


MODEL = """
import bstune, torch
from torch import nn
from torch.utils.data import TensorDataset

held = []

def data(n):
    inputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))

def two_mib_a_sample(model, batch):
    held.clear()
    held.append(torch.ones(len(batch[0]) << 19))
    return nn.functional.mse_loss(model(batch[0]), batch[1])

def net():
    return nn.Linear(4, 1)

def mean_square(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])

tight = bstune.Supervised(
    net, data(256), data(64), training_step=two_mib_a_sample, validation_step=mean_square, epochs=4
)
twenty = bstune.Supervised(net, data(20), data(20), epochs=30)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an objective for each scenario."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_a_batch_beyond_memory_is_accumulated_exactly(path: Path) -> None:
    """64 samples are asked for and fewer fit: micro-batch x accumulation x devices is exactly 64, and it is said."""
    objective = bstune.load(f"{path}:tight")
    probe = bstune.probe(objective, device="cpu", memory="320MiB", storage="sqlite:///:memory:")
    result = bstune.search(
        objective,
        probe=probe,
        device="cpu",
        space={"batch_size": [64], "learning_rate": [0.01, 0.03]},
        budget=2,
        storage="sqlite:///:memory:",
    )
    told = result.recommendation

    assert told.micro_batch_size <= probe.micro_batch_size < 64
    assert told.micro_batch_size * told.accumulation_steps * told.world_size == told.global_batch_size == 64
    assert set(result.trials["micro_batch_size"] * result.trials["accumulation_steps"]) == {64}


def test_a_data_set_of_twenty_is_searched_within_its_size(path: Path) -> None:
    """No batch is larger than the data, none is dropped as incomplete, and there is an answer."""
    result = bstune.search(bstune.load(f"{path}:twenty"), device="cpu", budget=2, storage="sqlite:///:memory:")

    assert result.trials["global_batch_size"].max() <= 20
    assert result.recommendation.val_loss.mean is not None
