"""An Optuna study as people have it today; the two arguments of `create_study` are all that is bstune's.

Run `python examples/optuna_study.py`, with the number of trials if it is not to be 20.
"""

import sys

import bstune
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

EPOCHS = 10

pixels, digits = load_digits(return_X_y=True)
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
images = torch.tensor(pixels, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits)[order]
train_x, train_y, val_x, val_y = images[:1024], labels[:1024], images[1024:], labels[1024:]


def objective(trial: optuna.Trial) -> float:
    """Train one network, report at each epoch, and return the validation loss."""
    batch_size = trial.suggest_categorical("batch_size", [8, 16, 32, 64, 128, 256])
    lr = trial.suggest_float("lr", 1e-3, 3.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.95)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    val_loss, step = float("nan"), 0
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_x)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
            optimizer.step()
            step += 1
        with torch.no_grad():
            val_loss = nn.functional.cross_entropy(model(val_x), val_y).item()
        trial.report(val_loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return val_loss


study = optuna.create_study(
    sampler=bstune.Sampler(batch="batch_size", lr="lr", optimizer="sgd", seed=0),
    pruner=bstune.Pruner(batch="batch_size"),
)
study.optimize(objective, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 20)
print(f"{study.best_value:.4f} with {study.best_params}")
