"""bstune inside a plain training script: ask once, then train with the answer.

Run `python examples/from_script.py`. Nothing needs to be guarded by `if __name__ == "__main__"`: trials run in
processes of their own, and this one is left as it was. Running it again finds the finished search in `bstune.db` and
trains at once.
"""

import bstune
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 20

pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 64) / 16
data = TensorDataset(images, torch.tensor(labels))
train_data, val_data = torch.utils.data.random_split(data, [1024, 773], generator=torch.Generator().manual_seed(0))


def build_model() -> nn.Module:
    """Return a fresh model."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


# 1. Ask: which batch size, and which learning rate?
objective = bstune.Supervised(build_model, train_data, val_data, epochs=EPOCHS)
best = bstune.search(objective, budget=8).recommendation
print(f"batch size {best.global_batch_size}, learning rate {best.learning_rate:.3g}: {best.reason}")

# 2. Train with the answer, in the loop that the script has always had.
torch.manual_seed(1)
model = build_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=best.learning_rate)
loader = DataLoader(train_data, batch_size=best.micro_batch_size, shuffle=True, drop_last=True)
n_backward = 0
for _ in range(EPOCHS):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y) / best.accumulation_steps
        loss.backward()
        n_backward += 1
        if n_backward % best.accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()

# 3. How good is it?
model.eval()
with torch.no_grad():
    x, y = next(iter(DataLoader(val_data, batch_size=len(val_data))))
    accuracy = (model(x).argmax(1) == y).double().mean()
print(f"validation accuracy {accuracy:.1%}")
