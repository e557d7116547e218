"""Handwritten digits with Lightning: the module and the data module are as they always were.

Run `bstune search examples/lightning_mnist.py`; it needs `pip install 'bstune[lightning,examples]'`.
"""

import lightning
import torch
from bstune.objectives.lightning import from_module
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

N_TRAIN = 1024


class Digits(lightning.LightningDataModule):
    """Images of 8 x 8 pixels; `batch_size` is an attribute, as Lightning's own tuner expects it."""

    def __init__(self, batch_size: int = 32) -> None:
        """Remember the batch size until a loader is made."""
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Split the images, in an order that is always the same."""
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        x, y = images[order], torch.tensor(labels)[order]
        self.train_data, self.val_data = (
            TensorDataset(x[:N_TRAIN], y[:N_TRAIN]),
            TensorDataset(x[N_TRAIN:], y[N_TRAIN:]),
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches."""
        return DataLoader(self.train_data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return all that was held back."""
        return DataLoader(self.val_data, batch_size=256)


class Net(lightning.LightningModule):
    """A small CNN."""

    def __init__(self, lr: float = 0.05) -> None:
        """Keep the learning rate in `hparams`."""
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32 * 4 * 4, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log loss and accuracy."""
        x, y = batch
        logits = self.layers(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD at the learning rate in `hparams`."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


objective = from_module(Net, Digits, max_epochs=20)

if __name__ == "__main__":
    import bstune

    result = bstune.search(__file__, budget=4)
    module, data = Net(), Digits()
    trainer = lightning.Trainer(
        max_epochs=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **result.recommendation.apply(module, data),
    )
    trainer.fit(module, data)
    print(f"validation accuracy {trainer.callback_metrics['val_accuracy']:.1%}")
