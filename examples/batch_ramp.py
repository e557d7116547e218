"""The digits of `digits.py` with a batch that grows: the loss of a cosine schedule with a third fewer updates.

Run `python examples/batch_ramp.py`. Where the cosine would halve the learning rate of SGD, the batch doubles instead
(`bstune.BatchRamp`); with an optimizer like Adam, the rate would also fall by the square root of 2.
"""

import math
import sys
from collections.abc import Iterator

import bstune
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
BATCH_SIZE, LEARNING_RATE = 32, 2.0**-5  # As `bstune search examples/digits.py` recommends something like them.
N_TRAIN = 1024

pixels, labels = load_digits(return_X_y=True)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
targets = torch.tensor(labels)[order]


def build_model() -> nn.Module:
    """Return a small CNN with random weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32 * 4 * 4, 10)),
    )


def stream(seed: int) -> Iterator[Tensor]:
    """Yield one index of the training images after the other, shuffled again in each epoch, without end."""
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(N_TRAIN, generator=shuffle)


def train(max_batch_size: int, seed: int = 0) -> tuple[int, float]:
    """Train under a cosine schedule whose batch may grow so far; return the updates and the validation loss."""
    torch.manual_seed(seed)
    model, samples = build_model(), stream(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    ramp = bstune.BatchRamp(
        optimizer,
        batch_size=BATCH_SIZE,
        max_batch_size=max_batch_size,
        total_samples=EPOCHS * N_TRAIN,
        schedule="cosine",
        micro_max=256,  # What `bstune probe` found to fit; larger batches are accumulated.
    )
    while ramp.samples < ramp.total_samples:
        for _ in range(ramp.accumulation_steps):
            batch = torch.stack([next(samples) for _ in range(ramp.micro_batch_size)])
            loss = nn.functional.cross_entropy(model(images[batch]), targets[batch])
            (loss / ramp.accumulation_steps).backward()
        optimizer.step()
        optimizer.zero_grad()
        ramp.step()
    model.eval()
    with torch.no_grad():
        val_loss = nn.functional.cross_entropy(model(images[N_TRAIN:]), targets[N_TRAIN:]).item()
    return ramp.updates, val_loss


for name, max_batch_size in (("cosine", BATCH_SIZE), ("ramp", 8 * BATCH_SIZE)):
    updates, val_loss = train(max_batch_size)
    assert math.isfinite(val_loss)
    print(f"{name}: {updates} updates, validation loss {val_loss:.4f}")
