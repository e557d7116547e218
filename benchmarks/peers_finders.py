"""One model by Lightning and by the Trainer of Transformers: their own finders beside bstune.

python benchmarks/peers_finders.py          # a few minutes; writes benchmarks/results/peers_finders.md
Lightning: `Tuner.scale_batch_size` (power), then `Tuner.lr_find`. The Trainer: `auto_find_batch_size=True`. All are at
their defaults, on the same digits, model and first setting. Then each answer is trained anew for a full run on three
seeds, by the framework alone. What the finders do about memory is in results/probe.md.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bstune
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

RESULT = Path(__file__).resolve().parent / "results" / "peers_finders.md"
EPOCHS, BUDGET, SEEDS = 10, 4, (101, 102, 103)
BATCH, RATE = 32, 1e-3
"""What the user's code has before anybody searches."""
FINDERS = {
    "lightning": ("as written", "scale_batch_size + lr_find", "bstune"),
    "transformers": ("as written", "auto_find_batch_size", "bstune"),
}
Row = dict[str, Any]

warnings.filterwarnings("ignore")
for _name in ("lightning.pytorch", "lightning.fabric", "transformers"):
    logging.getLogger(_name).setLevel(logging.ERROR)
torch.set_num_threads(1)
_pixels, _labels = load_digits(return_X_y=True)
X, Y = torch.tensor(_pixels, dtype=torch.float32) / 16, torch.tensor(_labels)
TRAIN, VAL = TensorDataset(X[:1347], Y[:1347]), TensorDataset(X[1347:], Y[1347:])


def net() -> nn.Module:
    """Return the model of both."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


# --- Lightning ---


def lightning_parts() -> tuple[Any, Any]:
    """Return the module's class and the data's."""
    pl: Any = importlib.import_module("lightning.pytorch")

    class Net(pl.LightningModule):
        def __init__(self, learning_rate: float = RATE) -> None:
            super().__init__()
            self.learning_rate = learning_rate
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    class Data(pl.LightningDataModule):
        def __init__(self, batch_size: int = BATCH) -> None:
            super().__init__()
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return DataLoader(TRAIN, self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(VAL, len(VAL))

    return Net, Data


def lightning_trainer(**options: Any) -> Any:
    """Return a Trainer that says and writes nothing."""
    pl: Any = importlib.import_module("lightning.pytorch")

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=EPOCHS, **quiet, **options)


def find_by_lightning() -> Row:
    """Follow Lightning's recipe."""
    from lightning.pytorch.tuner.tuning import Tuner

    net_class, data_class = lightning_parts()
    module, data = net_class(), data_class()
    tuner = Tuner(lightning_trainer())
    tuner.scale_batch_size(module, datamodule=data)
    tuner.lr_find(module, datamodule=data)
    return {"batch_size": min(data.batch_size, len(TRAIN)), "learning_rate": module.learning_rate}


def train_by_lightning(row: Row, seed: int) -> Row:
    """Train a full run, and return its loss and seconds."""
    torch.manual_seed(seed)
    net_class, data_class = lightning_parts()
    module, data = net_class(row["learning_rate"]), data_class(row["batch_size"])
    trainer = lightning_trainer(num_sanity_val_steps=0)
    start_s = time.process_time()
    trainer.fit(module, datamodule=data)
    return {"loss": float(trainer.callback_metrics["val_loss"]), "seconds": time.process_time() - start_s}


# --- Transformers ---


class Rows(Dataset[Any]):
    """A data set as the Trainer wants it."""

    def __init__(self, data: TensorDataset) -> None:
        """Take one of pairs."""
        self.data = data

    def __len__(self) -> int:
        """Return its size."""
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        """Return a sample by names."""
        x, y = self.data[index]
        return {"x": x, "labels": y}


class Classifier(nn.Module):
    """The model as the Trainer wants it."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Row:
        """Return the loss and the scores."""
        scores = self.net(x)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def make_trainer(**changed: Any) -> Any:
    """Return a Trainer of the user's."""
    import transformers

    fields: Row = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": len(VAL),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = transformers.TrainingArguments(tempfile.gettempdir(), **fields | changed)
    trainer = transformers.Trainer(Classifier(), args, train_dataset=Rows(TRAIN), eval_dataset=Rows(VAL))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def find_by_trainer() -> Row:
    """Have the Trainer find a batch size: it does so while it trains, and leaves the learning rate."""
    trainer = make_trainer(auto_find_batch_size=True)
    trainer.train()
    return {"batch_size": trainer._train_batch_size, "learning_rate": RATE}


def train_by_trainer(row: Row, seed: int) -> Row:
    """Train a full run, and return its loss and seconds."""
    changed = {"per_device_train_batch_size": row["batch_size"], "learning_rate": row["learning_rate"]}
    torch.manual_seed(seed)
    trainer = make_trainer(**changed, gradient_accumulation_steps=row.get("accumulation_steps", 1), seed=seed)
    start_s = time.process_time()
    trainer.train()
    seconds = time.process_time() - start_s
    return {"loss": float(trainer.evaluate()["eval_loss"]), "seconds": seconds}


# --- bstune ---


def find_by_bstune(framework: str) -> Row:
    """Search by the framework's own loop."""
    if framework == "lightning":
        from bstune.objectives.lightning import from_module

        objective: Any = from_module(*lightning_parts(), max_epochs=EPOCHS)
    else:
        from bstune.objectives.transformers import from_trainer

        objective = from_trainer(make_trainer)
    result = bstune.search(objective, budget=BUDGET, device="cpu", threads=1, storage="sqlite:///:memory:")
    best = result.recommendation
    assert best.accumulation_steps == 1
    return {"batch_size": best.micro_batch_size, "learning_rate": best.learning_rate}


def found(framework: str, finder: str) -> Row:
    """Find a setting, in a process of its own."""
    if finder == "as written":
        return {"batch_size": BATCH, "learning_rate": RATE, "search_s": 0.0, "search_cpu_s": 0.0}
    start_s, before_s = time.perf_counter(), processor_s()
    command = [sys.executable, str(Path(__file__).resolve()), framework, finder]
    with tempfile.TemporaryDirectory() as folder:  # Lightning leaves files where it is.
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=folder)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    answer: Row = json.loads(done.stdout.splitlines()[-1])
    return answer | {"search_s": time.perf_counter() - start_s, "search_cpu_s": processor_s() - before_s}


def processor_s() -> float:
    """Return the processor seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(framework: str) -> list[str]:
    """Return the lines about one framework."""
    lines = [
        "| setting from | batch | rate | search, s | search, cpu s | loss (lowest to highest of 3) | run, cpu s |",
        "|---|---|---|---|---|---|---|",
    ]
    train = train_by_lightning if framework == "lightning" else train_by_trainer
    for finder in FINDERS[framework]:
        row = found(framework, finder)
        runs = [train(row, seed) for seed in SEEDS]
        losses, seconds = ([run[name] for run in runs] for name in ("loss", "seconds"))
        told = f"{statistics.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
        lines.append(
            f"| {finder} | {row['batch_size']} | {row['learning_rate']:.3g} | {row['search_s']:.0f} | "
            f"{row['search_cpu_s']:.0f} | {told} | {statistics.median(seconds):.2f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Find by one finder, or by all, and write the page."""
    if len(sys.argv) == 3:
        framework, finder = sys.argv[1:]
        own = find_by_lightning if framework == "lightning" else find_by_trainer
        print(json.dumps(find_by_bstune(framework) if finder == "bstune" else own()))
        return
    start_s, before = time.perf_counter(), os.getloadavg()[0]
    lines = {framework: "\n".join(table(framework)) for framework in FINDERS}
    minutes = (time.perf_counter() - start_s) / 60
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "accelerate"))
    RESULT.write_text(
        f"""# Finders of Lightning and Transformers beside bstune

{datetime.now(timezone.utc):%Y-%m-%d}, bstune {bstune.__version__}, {packages}, {os.cpu_count()} cores.
Command: `python benchmarks/peers_finders.py`; {minutes:.1f} minutes; load average {before:.1f} before and
{os.getloadavg()[0]:.1f} after, of which about 1 is the benchmark's own.

Digits (1,347 training and 450 validation samples), one hidden layer, AdamW, {EPOCHS} epochs, one thread. bstune has a
budget of {BUDGET} reference runs. Each answer is then trained anew on three seeds by the framework alone, for {EPOCHS}
epochs (the median is shown). Seconds of a search hold its processes and imports; seconds of the processor do not depend
on what else runs on the machine. On CPU nothing runs out of memory, which is all that `auto_find_batch_size` looks at;
`lr_find` has no suggestion for a batch of the whole data set, which leaves it too few steps. What finders do
about memory is in [probe.md](probe.md), and four more tasks, in seconds to a target, in [live.md](live.md).

## Lightning

{lines["lightning"]}

## The Trainer of Transformers

{lines["transformers"]}
"""
    )


if __name__ == "__main__":
    main()
