"""What goes wrong within a framework's loop is told as it is: out of memory and in which phase, or a mistake."""

from __future__ import annotations

from collections.abc import Iterator

import bstune
import pytest
from bstune.tests.objectives.small import spec_of
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

COMMON = """
import torch
from torch import nn

N = 96
x, y = torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3
held = []

def fail(does, at):
    what, _, when = does.partition(" in ")
    if when != str(at):
        return
    held.append(torch.zeros(1000))  # As user code does; it is gone with its process.
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise KeyError("my own mistake")
"""
IN_LIGHTNING = """
import lightning
from torch.utils.data import DataLoader, TensorDataset
from bstune.objectives.lightning import from_module

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.lr, self.batch_size, self.run_name, self.steps = nn.Linear(4, 3), 0.1, 4, "none", 0

    def training_step(self, batch, index):
        self.steps += 1
        fail(self.run_name, self.steps)
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, index):
        fail(self.run_name, "validation")
        self.log("val_loss", nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(TensorDataset(x, y), self.batch_size)

    val_dataloader = train_dataloader

objective = from_module(Net, max_epochs=4)
"""
IN_TRAINER = """
import transformers
from bstune.objectives.transformers import from_trainer

rows = [{"x": each, "labels": label} for each, label in zip(x, y)]

class Net(nn.Module):
    def __init__(self, does):
        super().__init__()
        self.layer, self.does, self.steps = nn.Linear(4, 3), does, 0

    def forward(self, x, labels):
        self.steps += self.training
        fail(self.does, self.steps if self.training else "validation")
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

def make_trainer():
    args = transformers.TrainingArguments("never_made", num_train_epochs=4)
    return transformers.Trainer(Net(args.run_name or "none"), args, train_dataset=rows, eval_dataset=rows)

objective = from_trainer(make_trainer)
"""


@pytest.fixture(scope="module", params=["lightning", "accelerate"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The worker processes of an objective in a framework, which does what a parameter says."""
    pytest.importorskip(request.param, reason="needs the extras: pip install 'bstune[lightning,transformers]'")
    path = tmp_path_factory.mktemp(request.param) / "model.py"
    path.write_text(COMMON + (IN_LIGHTNING if request.param == "lightning" else IN_TRAINER))
    with Host(bstune.load(path), device="cpu") as host:
        yield host


@pytest.mark.parametrize(
    ("does", "outcome", "phase"),
    [
        ("memory in 1", "oom", "train"),
        ("memory in 3", "oom", "train"),
        ("memory in validation", "oom", "validation"),
        ("mistake in 3", "error", "train"),
    ],
)
def test_a_failure_is_told_as_what_it_is(host: Host, does: str, outcome: str, phase: str) -> None:
    """In a probe with its phase, so that only what failed is lowered; in a trial it ends the trial, and no other."""
    params = {"run_name": does}
    for work in (
        messages.Measure(MeasureSpec(4, 4, 1, 3, seed=0, params=params), False),
        messages.Train(spec_of(micro_batch_size=16, params=params)),
    ):
        worker = host.start(work)
        try:
            said = host.answer(worker, 120)
        finally:
            worker.end()

        assert isinstance(said, messages.Failure)
        assert said.outcome == outcome
        assert ("out of memory" if outcome == "oom" else "my own mistake") in said.message
        if isinstance(work, messages.Measure):
            assert said.reading is not None
            assert said.reading.phase == phase
    well = host.run(messages.Measure(MeasureSpec(4, 4, 1, 3, seed=0), False))
    assert well.reading.steps == 3
