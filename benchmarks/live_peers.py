"""The recipe that Lightning documents, on one of the live tasks: scale the batch size, then find the learning rate.

    python benchmarks/live_peers.py TASK SEED

It runs in an environment of its own that has Lightning, and prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".typing"))

import lightning.pytorch as pl
import live_tasks
import torch
from lightning.pytorch.tuner.tuning import Tuner


class Module(pl.LightningModule):
    """An objective as Lightning wants it, starting from the batch size and the rate of its examples."""

    def __init__(self, objective: Any) -> None:
        """Build the model."""
        super().__init__()
        self.objective, self.model = objective, objective.build_model()
        self.batch_size, self.learning_rate = 32, 1e-3

    def training_step(self, batch: Any, index: int) -> Any:
        """Return the loss."""
        return self.objective.training_step(self.model, batch)

    def configure_optimizers(self) -> Any:
        """Return the task's optimizer."""
        return self.objective.build_optimizer(self.model, self.learning_rate)

    def train_dataloader(self) -> Any:
        """Return batches in random order."""
        return torch.utils.data.DataLoader(self.objective.train_data, batch_size=self.batch_size, shuffle=True)


def main() -> None:
    """Follow the recipe at its defaults."""
    name, seed = sys.argv[1], int(sys.argv[2])
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start_s = time.perf_counter()
    objective = getattr(live_tasks, name)
    objective.prepare()
    module = Module(objective)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
    )
    tuner = Tuner(trainer)
    tuner.scale_batch_size(module)
    tuner.lr_find(module)
    n_samples = len(objective.train_data)
    answer = {"batch_size": min(module.batch_size, n_samples), "learning_rate": module.learning_rate}
    print(json.dumps(answer | {"seconds": time.perf_counter() - start_s}))


if __name__ == "__main__":
    main()
