"""Batches by tokens: every sample once, never over the budget, little padding, and the longest first."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bstune
import pytest
import torch
from bstune.objectives.token_batches import largest_only
from bstune.tests.objectives.small import run, spec_of
from bstune.tuner.core.trials import MeasureSpec
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pad_sequence

DRAW = random.Random(0)
LENGTHS = [60 if index % 50 == 7 else 1 + min(30, int(DRAW.expovariate(0.2))) for index in range(400)]
TEXTS = [torch.full((length,), 1 + index % 5) for index, length in enumerate(LENGTHS)]


def padded(batches: list[list[int]], lengths: list[int] = LENGTHS) -> list[int]:
    """Return the tokens of each batch, padding included."""
    return [len(batch) * max(lengths[index] for index in batch) for batch in batches]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(1, 200),
    st.none() | st.integers(1, 5),
    st.integers(0, 8),
)
def test_every_sample_comes_once_and_no_batch_is_over(
    lengths: list[int], budget: int, most: int | None, longest_first: int
) -> None:
    """In each epoch; only a sample that is too long for any batch is over, alone."""
    batches = bstune.TokenBatches(lengths, budget, max_samples=most, longest_first=longest_first)
    for _ in range(2):
        expected = len(batches)
        epoch = list(batches)

        assert len(epoch) == expected
        assert sorted(index for batch in epoch for index in batch) == list(range(len(lengths)))
        assert all(n <= budget or len(batch) == 1 for n, batch in zip(padded(epoch, lengths), epoch, strict=True))
        assert max(map(len, epoch)) <= (most or len(lengths))


def test_the_largest_are_the_longest_and_the_fullest() -> None:
    """Where the longest does not divide the budget, two shorter ones are more tokens; a probe sees both."""
    lengths = [5, 700, 500, 512, 300, 3]
    batches = bstune.TokenBatches(lengths, 1024, max_samples=3)

    assert batches.largest == ([1], [3, 2])
    with largest_only():
        seen = list(batches)
    assert seen[:2] == [[1], [3, 2]]
    assert set(map(tuple, seen)) == {(1,), (3, 2)}
    first, *_ = bstune.TokenBatches(LENGTHS, 250)
    assert padded([first]) == [max(padded(list(bstune.TokenBatches(LENGTHS, 250, longest_first=0))))]


def test_padding_is_little_and_order_is_random() -> None:
    """Shuffled batches of these samples are padded to more than twice their tokens; these are not."""
    batches = bstune.TokenBatches(LENGTHS, 240)
    first, second = list(batches), list(batches)

    assert sum(padded(first)) < 1.25 * sum(LENGTHS)
    assert sum(map(len, first)) / len(first) > 2 * (240 // max(LENGTHS))  # Samples a batch, against a fixed size.
    assert sorted(first) != sorted(second)
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(bstune.TokenBatches(LENGTHS, 240, seed=1)) != first


def test_ranks_share_an_epoch_evenly() -> None:
    """No batch goes to two of them, and none has more than another."""
    whole = list(bstune.TokenBatches(LENGTHS, 240))
    parts = [list(bstune.TokenBatches(LENGTHS, 240, rank=rank, world_size=3)) for rank in range(3)]

    assert [len(part) for part in parts] == [len(whole) // 3] * 3
    assert all(batch in whole for part in parts for batch in part)
    assert len({tuple(batch) for part in parts for batch in part}) == 3 * (len(whole) // 3)


def test_wrong_arguments_are_listed_together() -> None:
    """Each with what was expected."""
    with pytest.raises(bstune.ArgumentError, match=r"lengths: .*max_tokens=0: .*max_samples=0: .*rank=2, world_size=2"):
        bstune.TokenBatches([], 0, max_samples=0, rank=2, world_size=2)


class _Seen:
    """What the loop of the page is given: its data, and a model that notes the shapes of its batches."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.model = nn.Linear(1, 1)

    def names(self) -> dict[str, Any]:
        """Return the names that the page takes as given."""
        return {
            "bstune": bstune,
            "DataLoader": torch.utils.data.DataLoader,
            "texts": TEXTS,
            "pad": lambda batch: pad_sequence(batch, batch_first=True),
            "build": lambda lr: (self.model, torch.optim.SGD(self.model.parameters(), lr)),
            "loss_of": self.loss_of,
            "validate": lambda model: float(model.weight.detach().square()),
        }

    def loss_of(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return some loss."""
        self.shapes.append((batch.shape[0], batch.shape[1]))
        loss: torch.Tensor = model(batch.float().mean().reshape(1, 1)).square().mean()
        return loss


@pytest.fixture
def page(root: Path) -> str:
    """The loop in docs/own-loop.md."""
    text = (root / "docs" / "own-loop.md").read_text()
    codes: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(code for code in codes if "TokenBatches" in code)


def test_the_loop_of_the_page_trains_in_tokens_and_is_probed_with_the_longest(page: str) -> None:
    """All that the probe runs is full of the longest; the others begin with them, and are no larger."""
    seen = _Seen()
    names = seen.names()
    exec(page, names)
    objective = names["objective"]
    meter = SimpleNamespace(phase=lambda name: None, step_done=lambda: None, holds=lambda **sizes: None)

    objective.measure(MeasureSpec(240, 1, 2, 3, seed=0), "cpu", meter)
    probed, seen.shapes = seen.shapes, []
    spec = spec_of(global_batch_size=480, micro_batch_size=240, accumulation_steps=2, end_samples=9600, points=(9600,))
    reports = run(objective, spec)

    assert len(probed) == 6
    assert set(probed) == {(240 // 60, 60)}
    assert seen.shapes[0] == probed[0]
    assert max(n * width for n, width in seen.shapes) <= 240
    assert [report.samples for report in reports] == [9600]
    assert len(seen.shapes) == 9600 // 240
