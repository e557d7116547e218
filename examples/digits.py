"""Handwritten digits and a small CNN: which batch size, and which learning rate?

Run `bstune search examples/digits.py`; it needs no GPU.
"""

import bstune
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return 1,024 images to train on and 773 to validate on, always the same ones."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    digits = torch.tensor(labels)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    train, val = order[:1024], order[1024:]
    return TensorDataset(images[train], digits[train]), TensorDataset(images[val], digits[val])


class Net(nn.Sequential):
    """Two convolutions and a linear layer, for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32 * 4 * 4, 10),
        )


def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that is tuned: its learning rate comes from bstune."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


train_data, val_data = load_data()

objective = bstune.Supervised(model=Net, train_data=train_data, val_data=val_data, optimizer=sgd, epochs=10)
