"""Digits by a plain Accelerate loop with flags: searched as a command, and the same file trains with the answer.

bstune search --samples-per-epoch 1024 --epochs 10 -- python examples/accelerate_loop.py \
    --batch-size {micro_batch_size} --accumulate {accumulation_steps} --lr {learning_rate} --epochs {max_epochs} \
    --seed {seed}

With two processes put `torchrun --nproc-per-node 2` in place of `python`.
"""

import argparse

import bstune
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train, and report the validation loss after each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=args.accumulate)

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train, validation = TensorDataset(x[:1024], y[:1024]), TensorDataset(x[1024:], y[1024:])
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer, loader, val_loader = accelerator.prepare(
        network,
        torch.optim.AdamW(network.parameters(), lr=args.lr),
        DataLoader(train, batch_size=args.batch_size, shuffle=True),
        DataLoader(validation, batch_size=256),
    )

    for epoch in range(1, args.epochs + 1):
        model.train()
        for data, target in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(data), target))
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(model(data), target, reduction="none") for data, target in val_loader]
        val_loss = accelerator.gather_for_metrics(torch.cat(losses)).mean()
        accelerator.print(f"epoch {epoch}: validation loss {val_loss:.4f}")
        if accelerator.is_main_process:
            bstune.report(val_loss=val_loss, samples=epoch * len(train))  # Outside of a search it does nothing.
    accelerator.end_training()


if __name__ == "__main__":
    main()
