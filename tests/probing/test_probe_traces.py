"""The probe with traced attempts, end to end on CPU: it foresees the answer, and does without where it cannot."""

from __future__ import annotations

from typing import Any

import bstune
import pytest
import torch
from torch import nn

MIB = 1 << 20


class Wide(nn.Module):
    """Takes some 2 MiB a sample."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two scores a sample."""
        h: torch.Tensor = self.first(x)
        for _ in range(8):
            h = torch.sigmoid(h)
        scores: torch.Tensor = self.last(h.mean(1))
        return scores


class Branching(Wide):
    """Does another number of operations at every size, so that no two traces pair."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two scores a sample."""
        for _ in range(x.shape[0] % 7 + x.shape[0] // 7):
            x = x + 0
        return super().forward(x)


def supervised(model: Any) -> bstune.Supervised:
    """Return an objective on 4,096 samples of 4,096 x 16."""

    def batch(items: list[Any]) -> Any:
        return torch.ones(len(items), 4096, 16), torch.zeros(len(items), dtype=torch.long)

    data = torch.utils.data.TensorDataset(torch.zeros(4096, 1))
    return bstune.Supervised(model=model, train_data=data, val_data=data, collate_fn=batch, name="traces")


@pytest.fixture
def stable_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    """With malloc's own threshold, resident memory scatters by some per cent; see docs."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("stable_malloc")
def test_the_answer_is_foreseen_and_then_run() -> None:
    """A handful of steps, no failure on the way, and the prediction came true to within half a per cent."""
    result = bstune.probe(supervised(Wide), device="cpu", memory="400MiB", storage="sqlite:///:memory:")

    sizes = [attempt.size for attempt in result.attempts]
    # What follows the answer is timed, with few steps on a busy machine.
    search = result.attempts[: sizes.index(result.micro_batch_size) + 1]
    assert sum(attempt.steps for attempt in search) <= 12
    assert all(attempt.outcome == "ok" for attempt in search if attempt.size < result.micro_batch_size)
    assert result.limited_by == "memory"
    assert result.peak_bytes <= result.budget_bytes
    assert result.memory_line is not None
    assert result.memory_line.relative_error == pytest.approx(0, abs=0.005)
    # The next size would not fit: what is left of the budget is less than a sample, give or take the pages' noise.
    assert result.budget_bytes - result.peak_bytes < 1.5 * result.memory_line.bytes_per_sample + MIB


@pytest.mark.usefixtures("stable_malloc")
def test_traces_that_do_not_pair_leave_measured_peaks_to_go_by() -> None:
    """It takes more attempts, and ends at a size that was run all the same."""
    result = bstune.probe(
        supervised(Branching), device="cpu", memory="400MiB", max_batch=60, storage="sqlite:///:memory:"
    )

    assert any(
        attempt.size == result.micro_batch_size and attempt.outcome == "ok" and attempt.steps >= 3
        for attempt in result.attempts
    )
    assert result.peak_bytes <= result.budget_bytes


@pytest.mark.usefixtures("stable_malloc")
def test_a_compiled_model_is_measured_as_it_trains() -> None:
    """Its traced attempt ran eagerly and counts for nothing; the first size was run again without."""

    def compiled() -> Any:
        return torch.compile(Wide(), backend="eager")

    result = bstune.probe(
        supervised(compiled), device="cpu", memory="600MiB", max_batch=6, storage="sqlite:///:memory:"
    )

    assert result.micro_batch_size == 6
    assert next(attempt.size for attempt in result.attempts if attempt.steps <= 3) == 3
