"""Data of varying length: the probe measures with the longest samples, in whatever order the data has them."""

from __future__ import annotations

from typing import Any

import bstune
import pytest
import torch
from bstune.objectives.longest import longest_first
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.trials import MeasureSpec
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

LENGTHS = [1 + (7 * index) % 100 for index in range(100)]
"""Each length from 1 to 100, once, in no order."""


class Texts(Dataset[torch.Tensor]):
    """Rows of numbers of these lengths."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(LENGTHS)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one."""
        return torch.zeros(LENGTHS[index])


class Stated(Texts):
    """The same, with their lengths."""

    lengths = torch.tensor(LENGTHS)


def pad(samples: list[torch.Tensor]) -> torch.Tensor:
    """Return a batch as wide as its longest sample."""
    return pad_sequence(samples, batch_first=True).unsqueeze(-1)


class Seen:
    """An objective that notes the shape of each batch, in training and validation."""

    def __init__(self, data: Dataset[torch.Tensor], **options: Any) -> None:
        """Make it."""
        self.training: list[tuple[int, int]] = []
        self.validation: list[tuple[int, int]] = []
        self.objective = bstune.Supervised(
            lambda: nn.Linear(1, 1), data, data, training_step=self.step, **{"collate_fn": pad, **options}
        )
        self.objective.prepare()

    def step(self, model: Any, batch: Any) -> Any:
        """Note it and return a loss."""
        (self.training if torch.is_grad_enabled() else self.validation).append(tuple(batch.shape[:2]))
        return model(batch).square().mean()

    def measure(self, **spec: Any) -> None:
        """Have it measured at micro-batch 5, with validation batches of 4."""
        self.objective.measure(MeasureSpec(5, 4, 1, 2, seed=0, **spec), "cpu", Phases())


@pytest.mark.parametrize(
    ("data", "options"), [(Texts(), {"length": len}), (Stated(), {}), (Texts(), {})], ids=["function", "stated", "seen"]
)
def test_every_batch_of_a_probe_is_as_long_as_any(data: Any, options: dict[str, Any]) -> None:
    """The longest of all stands in each of them; a training batch in the order of the data would be shorter."""
    seen = Seen(data, **options)

    seen.measure()

    assert seen.training == [(5, 100)] * 2
    assert seen.validation == [(4, 100)]


def test_steps_are_timed_with_ordinary_batches() -> None:
    """The clock of a search is that of training."""
    seen = Seen(Texts(), length=len)

    seen.measure(timed_s=0.01, max_timed_steps=8)

    assert {width for _, width in seen.training} != {100}


def test_the_users_worst_batch_goes_before() -> None:
    """Length need not tell memory."""
    seen = Seen(Texts(), length=len, worst_batch=lambda n: torch.zeros(n, 300, 1))

    seen.measure()

    assert seen.training == [(5, 300)] * 2


def test_of_many_samples_some_are_looked_at() -> None:
    """What was not looked at is taken to be alike: of 2560 samples 256 are known, and the longest come ten times."""

    class Many(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.looked_at: list[int] = []

        def __len__(self) -> int:
            return 2560

        def __getitem__(self, index: int) -> torch.Tensor:
            self.looked_at.append(index)
            return torch.zeros(1 + index)

    many = Many()
    order = longest_first(many, None, may_vary=True)

    assert len(many.looked_at) == 256
    assert order is not None
    assert len(order) == 2560
    assert order[:11] == [2550] * 10 + [2540]


def test_nothing_is_looked_at_where_nothing_suggests_it() -> None:
    """Samples of one size cost no look, and data that gives no single samples is left alone."""

    class Batches(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> torch.Tensor:
            raise NotImplementedError

    assert longest_first(Batches(), None, may_vary=False) is None
    assert longest_first(Batches(), None, may_vary=True) is None
    assert longest_first([torch.zeros(3)] * 9, None, may_vary=True) is None


def test_samples_that_are_slow_to_load_are_looked_at_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of them from everywhere: all would take hours, and the search has not begun."""
    monkeypatch.setattr("bstune.objectives.longest.MOST_S", 0.0)
    loaded: list[int] = []

    def length(index: int) -> int:
        loaded.append(index)
        return index

    order = longest_first(range(1000), length, may_vary=False)

    assert order is not None
    assert len(order) == 1000
    assert order[0] == max(loaded) > 900
    assert min(loaded) < 100
    assert len(loaded) < 100
