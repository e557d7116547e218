"""The digits of `digits.py` with a training loop of your own: bstune gives the numbers, the loop does as it always did.

Run `bstune search examples/own_loop.py`.
"""

from collections.abc import Iterator

import bstune
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

N_TRAIN = 1024
EPOCHS = 20


def load_data() -> tuple[Tensor, Tensor]:
    """Return all images and their labels, in an order that is always the same."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(labels)[order]


IMAGES, LABELS = load_data()  # Here it happens once per search; inside `train` it would once per trial.


def build_model() -> nn.Module:
    """Return a small CNN with random weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 4 * 4, 10),
    )


def micro_batches(size: int, seed: int) -> Iterator[Tensor]:
    """Yield indices of the training images, `size` at a time, shuffled again in each epoch, without end."""
    shuffle = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        waiting = torch.cat([waiting, torch.randperm(N_TRAIN, generator=shuffle)])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


@torch.no_grad()
def validate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[float, float]:
    """Return the mean loss and the accuracy over all validation images."""
    model.eval()
    loss, n_right = 0.0, 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(x)
        loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
        n_right += int((logits.argmax(1) == y).sum())
    model.train()
    return loss / len(images), n_right / len(images)


@bstune.objective(n_samples=N_TRAIN, epochs=EPOCHS)
def train(trial: bstune.Trial) -> None:
    """Train with the batch size and learning rate of this trial, and report how it goes."""
    torch.manual_seed(trial.seed)  # The same seed, the same run: settings are compared on equal terms.
    x, y = IMAGES.to(trial.device), LABELS.to(trial.device)
    model = build_model().to(trial.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate, momentum=0.9)

    batches = micro_batches(trial.micro_batch_size, trial.seed)
    samples = 0
    while samples < trial.max_samples:
        optimizer.zero_grad()
        for _ in range(trial.accumulation_steps):
            batch = next(batches)
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            (
                loss / trial.accumulation_steps
            ).backward()  # So that the sum of the gradients is their mean over the global batch.
        optimizer.step()
        samples += trial.global_batch_size

        if samples >= trial.next_report:
            val_loss, accuracy = validate(model, x[N_TRAIN:], y[N_TRAIN:], trial.eval_batch_size)
            # To stop this trial, report raises bstune.TrialPruned. Let it pass, or clean up and return.
            trial.report(val_loss=val_loss, samples=samples, accuracy=accuracy)


objective = train
