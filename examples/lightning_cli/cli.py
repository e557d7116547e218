"""A LightningCLI script, which knows nothing of bstune: it is searched as a command, by its own flags.

bstune search --samples-per-epoch 1024 --epochs 10 -- python examples/lightning_cli/cli.py fit \
    --data.batch_size {micro_batch_size} --model.lr {learning_rate} --trainer.max_epochs {max_epochs} \
    --trainer.accumulate_grad_batches {accumulation_steps} --seed_everything {seed} \
    --trainer.enable_checkpointing false --trainer.callbacks TQDMProgressBar
"""

import lightning
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(lightning.LightningDataModule):
    """Images of 8 x 8 pixels."""

    def __init__(self, batch_size: int = 32) -> None:
        """Remember the batch size."""
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Split the images: 1024 to train on, the rest to validate."""
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
        self.train_data, self.val_data = TensorDataset(x[:1024], y[:1024]), TensorDataset(x[1024:], y[1024:])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches."""
        return DataLoader(self.train_data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return all that was held back."""
        return DataLoader(self.val_data, batch_size=256)


class Net(lightning.LightningModule):
    """Two layers."""

    def __init__(self, lr: float = 0.05, width: int = 64) -> None:
        """Build them."""
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss where the progress bar shows it."""
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.layers(x), y), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD at the learning rate in `hparams`."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


if __name__ == "__main__":
    LightningCLI(Net, Digits)
