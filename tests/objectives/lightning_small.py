"""The small data set and its classifier as Lightning takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bstune.tests.objectives.small import DATA, net
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning", reason="needs the extra: pip install 'bstune[lightning]'")
made: list[Any] = []
"""The modules that were built, to see what became of them."""


class Data(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
    """The small data set, with the batch size as an attribute."""

    def __init__(self) -> None:
        """Have sizes that a trial replaces."""
        super().__init__()
        self.batch_size = 1
        self.val_batch_size = 1

    def train_dataloader(self) -> Any:
        """Return batches of the size in the attribute."""
        return DataLoader(DATA, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        """Return batches of their own size."""
        return DataLoader(DATA, batch_size=self.val_batch_size)


class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """The small classifier, with the learning rate in `hparams`."""

    def __init__(self, lr: float = 0.1) -> None:
        """Build it, and note that it was."""
        super().__init__()
        self.save_hyperparameters()
        self.net = net()
        self.sizes: list[int] = []
        self.val_sizes: list[int] = []
        made.append(self)

    def training_step(self, batch: Any, index: int) -> Any:
        """Return the loss."""
        self.sizes.append(len(batch[0]))
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the loss."""
        self.val_sizes.append(len(batch[0]))
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
