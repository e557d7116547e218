"""Failures that users of other batch-size finders report, as scenarios: what went wrong there must go right here."""

from __future__ import annotations

from pathlib import Path

import bstune
import pytest
from bstune.tuner.growth import Bounds, Growth
from bstune.tuner.host import Host
from bstune.tuner.probe import run_probe
from bstune.tuner.testing import FakeDevice

MIB = 1 << 20
MODEL = """
import bstune, torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

LENGTHS = [4096 if index % 500 == 7 else 64 for index in range(2000)]  # One in 500 is 64 times as long as the others.

class Texts(Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        return torch.ones(LENGTHS[index], 16)

class Rows(Dataset):
    def __len__(self):
        return 10_000_000

    def __getitem__(self, index):
        return torch.ones(4), torch.tensor(0)

    def __getitems__(self, indices):
        return torch.ones(len(indices), 4), torch.zeros(len(indices), dtype=torch.long)

def pad(items):
    return nn.utils.rnn.pad_sequence(items, batch_first=True)

def longest(n):
    return torch.ones(n, max(LENGTHS), 16)

def net():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))

def loss(model, batch):
    return model(batch).square().mean()

few = TensorDataset(torch.zeros(20, 16))
texts = bstune.Supervised(net, Texts(), Texts(), training_step=loss, collate_fn=pad, worst_batch=longest)
twenty = bstune.Supervised(net, few, few, training_step=lambda model, batch: loss(model, batch[0]))
rows = bstune.Supervised(lambda: nn.Linear(4, 2), Rows(), TensorDataset(torch.ones(9, 4), torch.zeros(9, dtype=torch.long)),
                         collate_fn=lambda batch: batch if isinstance(batch, tuple) else torch.utils.data.default_collate(batch))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an objective for each scenario."""
    path = tmp_path_factory.mktemp("scenarios") / "model.py"
    path.write_text(MODEL)
    return path


def test_a_found_size_survives_a_drift_of_memory_in_real_training() -> None:
    """Peak 10 + 0.1 GiB a sample on 16 GiB, and 3 % more over 500 steps: headroom is memory, so the size still fits."""
    device = FakeDevice(capacity_gib=16, fixed_gib=10, gib_per_sample=0.1)
    growth = Growth(Bounds(1, 10_000), budget_bytes=int(0.95 * (16 << 30)))
    while (size := growth.next_size()) is not None:
        growth.add(device.attempt(size, n_steps=2))

    assert growth.answer.size in (51, 52)  # 15.2 GiB is the budget to the byte; 59 would fit today and fail later.
    assert 1.03 * (10 + 0.1 * growth.answer.size) <= 16


def test_a_data_set_smaller_than_any_batch_is_the_cap(path: Path) -> None:
    """20 samples: nothing larger is tried, and every size that is called ok has made its steps."""
    with Host(bstune.load(f"{path}:twenty"), device="cpu") as host:
        result = run_probe(host)

    assert (result.micro_batch_size, result.limited_by) == (20, "dataset")
    assert all(attempt.size <= 20 and attempt.steps >= 2 for attempt in result.attempts)


def test_long_samples_that_are_rare_are_in_the_answer(path: Path) -> None:
    """Batches of ordinary texts would let many more fit; the worst batch is probed, so any order of the data survives."""
    with Host(bstune.load(f"{path}:texts"), device="cpu", memory_bytes=700 * MIB) as host:
        result = run_probe(host)

    assert result.limited_by == "memory"
    # One worst sample holds 4096 x (64 + 64 + ...) floats: more than 2 MiB of activations, against 32 KiB for an ordinary one.
    assert result.memory_line is not None
    assert result.memory_line.bytes_per_sample > 2 * MIB
    assert result.micro_batch_size < 300


def test_a_model_that_never_runs_out_of_memory_comes_to_an_end(path: Path) -> None:
    """A linear layer on ten million rows: the probe ends by itself, or by its time limit, and says which."""
    with Host(bstune.load(f"{path}:rows"), device="cpu") as host:
        result = run_probe(host, timeout=30)

    assert result.limited_by in ("plateau", "timeout", "dataset", "memory")
    assert result.seconds < 45
    assert any(attempt.size == result.micro_batch_size and attempt.outcome == "ok" for attempt in result.attempts)
