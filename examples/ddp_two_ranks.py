"""Digits by two processes (DistributedDataParallel over gloo, on CPU): searched as a command, as it stands.

bstune search --samples-per-epoch 1024 --epochs 6 -- torchrun --standalone --nproc-per-node 2 \
    examples/ddp_two_ranks.py --global-batch-size {global_batch_size} --lr {learning_rate} --epochs {max_epochs}
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    """Train, and print the validation loss after each epoch, from rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--global-batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    train = TensorDataset(x[:1024], y[:1024])
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(train)
    # Each rank has its part of the global batch; gradients are averaged over the ranks.
    loader = DataLoader(train, batch_size=max(1, args.global_batch_size // world), sampler=sampler)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

    for epoch in range(1, args.epochs + 1):
        sampler.set_epoch(epoch)
        for data, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data), target).backward()
            optimizer.step()
        with torch.no_grad():
            val_loss = nn.functional.cross_entropy(model.module(x[1024:]), y[1024:])
        dist.all_reduce(val_loss)  # No rank runs ahead.
        if rank == 0:
            print(f"Epoch {epoch}: val_loss={float(val_loss) / world:.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
