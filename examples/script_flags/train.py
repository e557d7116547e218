"""Trains a small network on scikit-learn's digits. A plain script: it knows nothing of bstune.

python train.py --batch-size 32 --lr 0.05 --epochs 10
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="A network for handwritten digits")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="batch size for training")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="number of epochs to train")
    parser.add_argument("--lr", type=float, default=0.1, metavar="LR", help="learning rate")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="random seed")
    parser.add_argument("--save-model", help="file for the weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    train = TensorDataset(x[:1500], y[:1500])
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

    for epoch in range(1, args.epochs + 1):
        model.train()
        for data, target in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            output = model(x[1500:])
            test_loss = nn.functional.cross_entropy(output, y[1500:]).item()
            correct = (output.argmax(1) == y[1500:]).float().mean().item()
        print(f"Epoch {epoch}: test loss: {test_loss:.4f}, accuracy: {100 * correct:.1f}%", flush=True)

    if args.save_model:
        torch.save(model.state_dict(), args.save_model)


if __name__ == "__main__":
    main()
