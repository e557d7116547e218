"""Four small real tasks as objectives.

Digits with batch normalisation, MNIST-10k, a tabular set, and a character model.

Each is named in the file, as `bstune search benchmarks/live_tasks.py:digits_bn` expects it. The digits come with
scikit-learn; the others are read from BSTUNE_DATA (default: ../shared/data beside the checkout).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bstune
import numpy
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

DATA = Path(os.environ.get("BSTUNE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "train"
ADULT_COLUMNS = 108
"""Numbers as they are, and one column for each word."""
LENGTH = 16
"""Characters of one sample of text."""
MOST_VALIDATED = 2048
EVALS = 24
"""The target is looked for on this many points of a curve."""

Split = tuple[TensorDataset, TensorDataset]


def _split(inputs: torch.Tensor, labels: torch.Tensor, n_train: int) -> Split:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, val = order[:n_train], order[n_train : n_train + MOST_VALIDATED]
    return TensorDataset(inputs[train], labels[train]), TensorDataset(inputs[val], labels[val])


def _digits() -> Split:
    pixels, labels = load_digits(return_X_y=True)
    return _split(torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels), 1024)


def _mnist() -> Split:
    with numpy.load(DATA / "mnist10k.npz") as archive:
        pixels, labels = archive["x"], archive["y"]
    return _split(
        torch.tensor(pixels, dtype=torch.float32).flatten(1) / 255, torch.tensor(labels, dtype=torch.long), 8000
    )


def _adult() -> Split:
    frame = pd.read_csv(DATA / "adult.csv.gz").drop(columns="split")
    labels = torch.tensor(frame.pop(frame.columns[-1]).astype(str).str.contains(">50K").to_numpy(), dtype=torch.long)
    numbers = frame.select_dtypes("number")
    numbers = (numbers - numbers.mean()) / numbers.std()
    words = pd.get_dummies(frame.select_dtypes(exclude="number"))
    columns = numpy.concatenate([numbers.to_numpy("float32"), words.to_numpy("float32")], axis=1)
    return _split(torch.tensor(columns), labels, 16_384)


def _text() -> Split:
    text = (DATA / "tinyshakespeare.txt").read_text()[:150_000]
    codes = {character: code for code, character in enumerate(sorted(set(text)))}
    stream = torch.tensor([codes[character] for character in text])
    n_samples = (len(stream) - 1) // LENGTH
    pieces = torch.stack(
        [stream[: n_samples * LENGTH].view(-1, LENGTH), stream[1 : n_samples * LENGTH + 1].view(-1, LENGTH)], dim=1
    )
    return _split(pieces, torch.zeros(n_samples, dtype=torch.long), 4_096)


class Characters(nn.Module):
    """A recurrent character model."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(128, 32), nn.GRU(32, 64, batch_first=True), nn.Linear(64, 128)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return logits for the next character at each place."""
        logits: torch.Tensor = self.head(self.rnn(self.embed(codes))[0])
        return logits


def next_character(model: Any, batch: Any) -> torch.Tensor:
    """Return the loss of a batch of pieces: (n, 2, LENGTH) codes of what is read and what comes next."""
    pieces = batch[0]
    return functional.cross_entropy(model(pieces[:, 0]).flatten(0, 1), pieces[:, 1].flatten())


def digits_cnn() -> nn.Module:
    """Return a small CNN with batch normalisation."""
    convolutions = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
    ]
    return nn.Sequential(*convolutions, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 10))


def mnist_mlp() -> nn.Module:
    """Return a perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def adult_mlp() -> nn.Module:
    """Return a perceptron with two hidden layers."""
    return nn.Sequential(nn.Linear(ADULT_COLUMNS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return SGD with momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _objective(name: str, data: Any, model: Any, epochs: float, **options: Any) -> bstune.Supervised:
    return bstune.Supervised(
        model=model,
        train_data=lambda: data()[0],
        val_data=lambda: data()[1],
        epochs=epochs,
        evals=EVALS,
        name=name,
        **options,
    )


digits_bn = _objective("digits_bn", _digits, digits_cnn, 12, optimizer=sgd)
mnist = _objective("mnist", _mnist, mnist_mlp, 6, optimizer=sgd)
adult = _objective("adult", _adult, adult_mlp, 4)
characters = _objective("characters", _text, Characters, 3, training_step=next_character)
TASKS = ("digits_bn", "mnist", "adult", "characters")
