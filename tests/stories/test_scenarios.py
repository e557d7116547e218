"""Failures that users of other batch-size finders report, as scenarios: what went wrong there must go right here.

Others stand with their subject: sizes accepted without training, memory of validation, weights that do not fit, errors
that are no memory and memory that looks like a bug (test_probe, test_out_of_memory); memory kept between trials
(test_worker); other processes on the card (test_cuda). Where a way in could fail by itself, its own tests have them:

- A size that does not last: here, test_commands, test_ranked_run and test_command_ranks (what fits in every process).
- Out of memory only in validation: test_probe, test_framework_faults (Lightning, the Trainer), test_ranked_run.
- Data of varying length: here, test_longest, test_token_sizes, test_token_batches (own loops and scripts),
  test_lightning and test_transformers.
- Out of memory in the middle of a run: test_faults, test_commands, test_framework_faults, test_ranked_run, test_ranks
  (under torchrun), test_sampler (Optuna's studies).
- A batch that changes what is trained: test_search_scenarios, test_commands, test_lightning, test_transformers,
  test_ranked_run, test_command_ranks.
- One process of several out of memory: test_ranked_run, test_ranks.
- Memory kept between trials: test_worker (all trials are processes), test_framework_faults, test_ranked_run.
- Errors misread: test_probe, test_out_of_memory, test_commands, test_framework_faults, test_ranked_run.
"""

from __future__ import annotations

from pathlib import Path

import bstune
import pytest
import torch
from bstune.tuner.probe import STABLE_MALLOC
from bstune.tuner.probing.run import run_probe
from bstune.tuner.probing.size_search import Bounds, Growth
from bstune.tuner.testing.fake_device import FakeDevice
from bstune.tuner.workers.fork_server import Host

MIB = 1 << 20
MODEL = """
import os, time
from pathlib import Path

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

def moody(marks, times):
    # The step fails above 60 samples as cuBLAS does, the first so many times.
    def step(model, batch):
        if len(batch[0]) > 60 and len(list(Path(marks).iterdir())) < times:
            Path(marks, str(time.time_ns())).touch()
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
        return loss(model, batch[0])
    return step

hundred = TensorDataset(torch.zeros(100, 16))
flaky = bstune.Supervised(net, hundred, hundred, training_step=moody(os.environ.get("MARKS", "."), 1))
full = bstune.Supervised(net, hundred, hundred, training_step=moody(os.environ.get("MARKS", "."), 1000))
few = TensorDataset(torch.zeros(20, 16))
texts = bstune.Supervised(net, Texts(), Texts(), training_step=loss, collate_fn=pad, worst_batch=longest)
twenty = bstune.Supervised(net, few, few, training_step=lambda model, batch: loss(model, batch[0]))
nine = TensorDataset(torch.ones(9, 4), torch.zeros(9, dtype=torch.long))

def collate(batch):
    return batch if isinstance(batch, tuple) else torch.utils.data.default_collate(batch)

rows = bstune.Supervised(lambda: nn.Linear(4, 2), Rows(), nine, collate_fn=collate)
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
    """Batches of ordinary texts would allow many more; the worst batch is probed, so any order of the data survives."""
    # With malloc's own threshold, what it keeps scatters by more than a sample.
    with Host(bstune.load(f"{path}:texts"), device="cpu", memory_bytes=700 * MIB, environment=STABLE_MALLOC) as host:
        result = run_probe(host)

    assert result.limited_by == "memory"
    # One worst sample holds 4096 x (64 + 64 + ...) floats: more than 2 MiB of activations, against 32 KiB for an
    # ordinary one.
    assert result.memory_line is not None
    assert result.memory_line.bytes_per_sample > 2 * MIB
    assert result.micro_batch_size < 300


def test_a_model_that_never_runs_out_of_memory_comes_to_an_end(path: Path) -> None:
    """A linear layer on ten million rows: the probe ends by itself, or by its time limit, and says which."""
    with Host(bstune.load(f"{path}:rows"), device="cpu") as host:
        result = run_probe(host, timeout=5)

    assert result.limited_by in ("plateau", "timeout", "dataset", "memory")
    assert result.seconds < 45
    assert any(attempt.size == result.micro_batch_size and attempt.outcome == "ok" for attempt in result.attempts)


@pytest.mark.parametrize(("name", "size"), [("flaky", 100), ("full", 60)])
def test_an_error_that_may_or_may_not_be_memory_is_seen_twice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """The size runs once more in a fresh process: what happened once is said, what happens again means too large."""
    monkeypatch.setenv("MARKS", str(tmp_path))
    with Host(bstune.load(f"{path}:{name}"), device="cpu") as host:
        result = run_probe(host)

    assert result.micro_batch_size == size
    assert any("CUBLAS_STATUS_NOT_INITIALIZED" in warning for warning in result.warnings) is (name == "flaky")


@pytest.mark.parametrize("memory", [None, "1MiB"])
def test_training_goes_on_after_a_probe_as_if_there_had_been_none(memory: str | None) -> None:
    """Train, probe, train: the same losses to the bit, with dropout, batch norm, moments, a schedule and shuffling."""

    def losses(*, probed: bool) -> list[float]:
        torch.manual_seed(3)
        inputs = torch.randn(64, 8)
        data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        seen = []
        for epoch in range(4):
            for x, y in loader:
                loss = torch.nn.functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen.append(loss.item())
            schedule.step()
            if probed and epoch == 1:
                objective = bstune.Supervised(
                    lambda: model, data, data, training_step=squared_error, validation_step=squared_error
                )
                probe_or_not(objective)
        return seen

    def squared_error(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    def probe_or_not(objective: bstune.Supervised) -> None:
        if memory is None:
            assert bstune.probe(objective, device="cpu", storage="sqlite:///:memory:").micro_batch_size == 64
            return
        with pytest.raises(bstune.NothingFitsError):
            bstune.probe(objective, device="cpu", memory=memory, storage="sqlite:///:memory:")

    assert losses(probed=True) == losses(probed=False)
