"""A small transformer that reads lists of letters and writes them down sorted: samples of varying length.

Run `bstune search examples/char_transformer.py`; `python examples/char_transformer.py` trains with the answer.
All sizes count tokens: a batch has as many samples as so many tokens hold. The probe measures with the longest samples,
so its answer holds in whatever order they come.
"""

import random
from typing import Any

import bstune
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

LETTERS = "abcdefghij"
START, END, PAD = len(LETTERS), len(LETTERS) + 1, len(LETTERS) + 2
LONGEST = 40


class Lists(Dataset[torch.Tensor]):
    """Generated lists, most of them short: the letters, a mark, the same sorted, and a mark for the end."""

    def __init__(self, n: int, seed: int) -> None:
        """Draw them."""
        draw = random.Random(seed)
        sizes = [min(LONGEST, 1 + int(draw.expovariate(0.2))) for _ in range(n)]
        drawn = [[draw.randrange(len(LETTERS)) for _ in range(size)] for size in sizes]
        self.texts = [torch.tensor([*letters, START, *sorted(letters), END]) for letters in drawn]
        self.lengths = [len(text) for text in self.texts]  # By these, batches are filled.

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.texts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one, as a tensor of its own length."""
        return self.texts[index]


class Reader(nn.Module):
    """A decoder of two layers."""

    def __init__(self, width: int = 64) -> None:
        """Build it."""
        super().__init__()
        self.letters = nn.Embedding(PAD + 1, width)
        self.places = nn.Embedding(2 * LONGEST + 2, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, PAD)

    def forward(self, text: torch.Tensor) -> Any:
        """Return the scores of each next character."""
        n = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=text.device)
        places = self.places(torch.arange(n, device=text.device))
        return self.head(self.layers(self.letters(text) + places, mask=mask, is_causal=True))


def padded(texts: list[torch.Tensor]) -> torch.Tensor:
    """Return a batch: as long as its longest."""
    return pad_sequence(texts, batch_first=True, padding_value=PAD)


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of what comes after the mark: the sorted letters can be known, the others cannot."""
    text, following = batch[:, :-1], batch[:, 1:]
    told = ((text == START).cumsum(1) > 0) & (following != PAD)
    return nn.functional.cross_entropy(model(text)[told], following[told])


objective = bstune.Supervised(
    model=Reader,
    train_data=lambda: Lists(4096, seed=1),
    val_data=lambda: Lists(512, seed=2),
    training_step=loss_of,
    collate_fn=padded,
    size_unit="tokens",
    epochs=10,
)

if __name__ == "__main__":
    best = bstune.search(__file__).recommendation
    print(f"{best.global_batch_size} tokens, learning rate {best.learning_rate:.3g}: loss {best.val_loss.mean:.3f}")
    trained = bstune.train(__file__)
    model = Reader()
    model.load_state_dict(torch.load(trained.path, weights_only=True)["model"])
    text = [*(LETTERS.index(letter) for letter in "hfbdjace"), START]
    with torch.no_grad():
        while text[-1] != END and len(text) < 2 * LONGEST + 2:
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    print("hfbdjace sorted:", "".join(LETTERS[letter] for letter in text[9:] if letter < len(LETTERS)))
