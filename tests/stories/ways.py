"""One model and data set by every way in, as objectives: for the test that they agree, and for the benchmark of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import bstune
import optuna
import pytest
import torch
from bstune.tests.objectives.small import run, spec_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, RATE, EPOCHS, SEEDS = 32, 2.0**-4, 4, (0, 1, 2)


@contextmanager
def the_problem(folder: Path) -> Iterator[ModuleType]:
    """Yield the problem, with its digits in a file: to read that takes less time than to import scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    path = folder / "digits.pt"
    torch.save((torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]), path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITS", str(path))
        from bstune.tests.stories import one_problem

        yield one_problem
    torch.set_num_threads(threads)


def supervised(problem: ModuleType) -> Any:
    """The short form."""
    return bstune.Supervised(
        model=problem.net,
        train_data=TensorDataset(problem.train_x, problem.train_y),
        val_data=TensorDataset(problem.val_x, problem.val_y),
        optimizer=problem.sgd,
        epochs=EPOCHS,
    )


def own_loop(problem: ModuleType) -> Any:
    """The loop of the script, with its numbers from a trial."""

    @bstune.objective(n_samples=problem.N, epochs=EPOCHS)
    def loop(trial: bstune.Trial) -> None:
        split = trial.micro_batch_size, trial.accumulation_steps
        for samples, model in problem.steps(*split, trial.learning_rate, trial.seed):
            if samples >= trial.next_report:
                trial.report(problem.validation_loss(model, trial.eval_batch_size), samples=samples)
            if samples >= trial.max_samples:
                return

    return loop


def script(problem: ModuleType) -> Any:
    """The script as it is."""
    return bstune.Command(
        [
            *(sys.executable, str(problem.__file__), "--batch-size", "{micro_batch_size}", "--lr", "{learning_rate}"),
            *("--accumulate", "{accumulation_steps}", "--max-samples", "{max_samples}", "--seed", "{seed}"),
        ],
        samples_per_epoch=problem.N,
        epochs=EPOCHS,
        metric=r"samples (?P<samples>\d+) val_loss=(?P<value>[\d.]+)",
    )


def in_lightning(problem: ModuleType) -> Any:
    """A LightningModule with its data module."""
    lightning: Any = pytest.importorskip("lightning", reason="needs the extra: pip install 'bstune[lightning]'")
    from bstune.objectives.lightning import from_module

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, lr: float) -> None:
            super().__init__()
            self.lr, self.net = lr, problem.net()

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return problem.sgd(self.parameters(), self.lr)

    class Data(lightning.LightningDataModule):  # type: ignore[misc]
        def __init__(self, batch_size: int, eval_batch_size: int) -> None:
            super().__init__()
            self.batch_size, self.eval_batch_size = batch_size, eval_batch_size

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(problem.train_x, problem.train_y), self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(TensorDataset(problem.val_x, problem.val_y), self.eval_batch_size)

    return from_module(Net, Data, max_epochs=EPOCHS)


def in_trainer(problem: ModuleType) -> Any:
    """A Trainer of Transformers."""
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'bstune[transformers]'")
    transformers: Any = pytest.importorskip(
        "transformers", reason="needs the extra: pip install 'bstune[transformers]'"
    )
    from bstune.objectives.transformers import from_trainer

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = problem.net()

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class WithSgd(transformers.Trainer):  # type: ignore[misc]
        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = problem.sgd(self.model.parameters(), self.args.learning_rate)
            return self.optimizer

    def rows(x: Any, y: Any) -> list[dict[str, Any]]:
        return [{"x": each, "labels": label} for each, label in zip(x, y, strict=True)]

    def make_trainer() -> Any:
        args = transformers.TrainingArguments(
            "out", num_train_epochs=EPOCHS, lr_scheduler_type="constant", max_grad_norm=0
        )
        train, validation = rows(problem.train_x, problem.train_y), rows(problem.val_x, problem.val_y)
        return WithSgd(Net(), args, train_dataset=train, eval_dataset=validation)

    return from_trainer(make_trainer)


def losses(objective: Any, n_samples: int, seeds: Sequence[int] = SEEDS) -> list[float]:
    """Return the loss at the end of a full run, with each seed."""
    objective.prepare()
    end = EPOCHS * n_samples
    setting = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "learning_rate": RATE, "eval_batch_size": 128}
    return [
        run(objective, spec_of(**setting, seed=seed, end_samples=end, points=(end,)))[-1].val_loss for seed in seeds
    ]


def in_optuna(problem: ModuleType) -> list[float]:
    """Return the losses of a study with our sampler and pruner, of this setting."""

    def objective(trial: optuna.Trial) -> float:
        batch_size = trial.suggest_categorical("batch_size", [BATCH])
        rate = trial.suggest_float("lr", RATE, RATE)
        val_loss = float("nan")
        for samples, val_loss in problem.training(batch_size, rate, EPOCHS * problem.N, seed=SEEDS[trial.number]):
            trial.report(val_loss, samples)
            if trial.should_prune():
                raise optuna.TrialPruned
        return val_loss

    study = optuna.create_study(
        sampler=bstune.Sampler(batch="batch_size", lr="lr", steps="samples"),
        pruner=bstune.Pruner(batch="batch_size", steps="samples"),
    )
    study.optimize(objective, n_trials=len(SEEDS))
    return [trial.value for trial in study.trials if trial.value is not None]
