"""Data that stream without end, batches of any form, and data that cannot be used."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import bstune
import numpy
import pytest
import torch
from bstune.objectives.data import MicroBatches, to_device
from bstune.objectives.training import TrainingRun
from bstune.tests.objectives.small import DATA, supervised
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def test_stream_has_only_full_batches_and_carries_the_rest_into_the_next_epoch() -> None:
    """10 samples in batches of 4: over 5 batches every sample is seen exactly twice."""
    batches = list(islice(MicroBatches(10, 4, seed=0), 5))

    assert {len(batch) for batch in batches} == {4}
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(10), 2)


def test_stream_can_be_entered_at_any_sample() -> None:
    """A continued run sees what the uninterrupted one would have seen."""
    whole = [index for batch in islice(MicroBatches(10, 4, seed=5), 12) for index in batch]
    later = [index for batch in islice(MicroBatches(10, 3, seed=5, start_samples=17), 5) for index in batch]

    assert later == whole[17:32]


class Pair(NamedTuple):
    """A batch as a named tuple."""

    x: torch.Tensor
    label: str


@dataclasses.dataclass
class Nested:
    """A batch as a dataclass that holds everything else."""

    pair: Pair
    parts: dict[str, list[torch.Tensor]]


def test_nested_batches_move_to_the_device() -> None:
    """Tensors in dataclasses, named tuples, dicts and lists move; what is no tensor stays."""
    moved = to_device(Nested(Pair(torch.zeros(2), "a"), {"more": [torch.ones(1)]}), "meta")

    assert moved.pair.x.device.type == "meta"
    assert moved.pair.label == "a"
    assert moved.parts["more"][0].device.type == "meta"


class Stream(IterableDataset[int]):
    """Data without a length."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataLoader(DATA), "Pass `loader.dataset`"),
        (Stream(), "map-style Dataset"),
        ((torch.zeros(3), torch.zeros(3)), "TensorDataset"),
        (TensorDataset(torch.zeros(0, 4)), "is empty"),
        (7, "is an int"),
    ],
    ids=["loader", "iterable", "tuple", "empty", "number"],
)
def test_data_that_cannot_be_used_says_what_to_pass(data: Any, said: str) -> None:
    """One clear error, at once for data and in the worker for a factory of it."""
    with pytest.raises(bstune.ObjectiveError, match=said):
        supervised(train_data=data)
    if not callable(data):
        with pytest.raises(bstune.ObjectiveError, match=said):
            supervised(train_data=lambda: data).prepare()


def test_batches_may_be_anything(tmp_path: Path) -> None:
    """Also NumPy arrays, which cannot be compared with None."""
    objective = supervised(
        collate_fn=lambda samples: numpy.stack(
            [numpy.append(x.flatten().numpy(), y.item()) for x, y in samples]
        ).astype("float32"),
        training_step=lambda model, batch: model(torch.tensor(batch[:, :-1])).square().mean(),
    )
    training = TrainingRun(objective, device="cpu", learning_rate=0.01, seed=0, horizon_samples=None)
    training.open_stream(4, 1)
    training.hold_batch()
    training.step()
    assert training.samples == 4
