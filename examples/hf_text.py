"""A small text classifier with Transformers' Trainer; nothing is downloaded: the model is made from a config.

Run `bstune search examples/hf_text.py`; it needs `pip install 'bstune[transformers]'`.
"""

from typing import Any

import torch
from bstune.objectives.transformers import from_trainer
from torch.utils.data import Dataset
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer, TrainingArguments

N_WORDS, LENGTH, LABELS = 64, 12, 4
EPOCHS = 10


class Texts(Dataset[dict[str, torch.Tensor]]):
    """Made-up texts of a few words; the label says which of four words is in it, and is wrong for some."""

    def __init__(self, n: int, seed: int) -> None:
        """Make `n` of them."""
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(LABELS, (n,), generator=draw)
        self.words = torch.randint(LABELS, N_WORDS, (n, LENGTH), generator=draw)
        self.words[torch.arange(n), torch.randint(LENGTH, (n,), generator=draw)] = self.labels
        wrong = torch.rand(n, generator=draw) < 0.1
        self.labels[wrong] = torch.randint(LABELS, (int(wrong.sum()),), generator=draw)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one, as the model takes it."""
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def make_model() -> DistilBertForSequenceClassification:
    """Return one layer of DistilBERT with random weights."""
    config = DistilBertConfig(
        vocab_size=N_WORDS, dim=32, hidden_dim=64, n_layers=1, n_heads=2, max_position_embeddings=16, num_labels=LABELS
    )
    return DistilBertForSequenceClassification(config)


def make_trainer(**changed: Any) -> Trainer:
    """Return the Trainer, as it would be without bstune."""
    arguments: dict[str, Any] = {"num_train_epochs": EPOCHS, "save_strategy": "no", "report_to": "none"}
    return Trainer(
        make_model(),
        TrainingArguments("hf_text", **{**arguments, **changed}),
        train_dataset=Texts(1024, seed=1),
        eval_dataset=Texts(512, seed=2),
    )


objective = from_trainer(make_trainer)

if __name__ == "__main__":
    import bstune

    best = bstune.search(__file__, budget=4).recommendation
    trainer = make_trainer(**best.to_training_arguments())
    trainer.train()
    print(f"batch {best.global_batch_size}: validation loss {trainer.evaluate()['eval_loss']:.3f}")
