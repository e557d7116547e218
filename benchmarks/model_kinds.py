"""The six model kinds on which memory is tested: tiny here, in the size of the benchmark there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A transformer block with scaled dot-product attention."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        result: torch.Tensor = x + self.mlp(self.norm2(x))
        return result


class GPT(nn.Module):
    """A small language model, with or without activation checkpointing."""

    def __init__(self, *, width: int, layers: int, length: int, vocabulary: int, checkpointing: bool) -> None:
        """Build the layers."""
        super().__init__()
        self.checkpointing = checkpointing
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch."""
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.checkpointing else block(h)
        logits: torch.Tensor = self.head(self.norm(h)).flatten(0, 1)
        return logits


class LSTM(nn.Module):
    """A recurrent classifier."""

    def __init__(self, width: int, layers: int) -> None:
        """Build the layers."""
        super().__init__()
        self.rnn, self.head = nn.LSTM(32, width, layers, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch."""
        logits: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def cnn(width: int, blocks: int) -> nn.Module:
    """A convolutional classifier with batch normalisation."""
    layers: list[nn.Module] = []
    channels = 3
    for i in range(blocks):
        out = width * 2 ** (i // 2)
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@dataclass(frozen=True)
class Kind:
    """How to build a model, and what one batch of its data looks like."""

    name: str
    width: int
    size: int

    def model(self) -> nn.Module:
        """Return a fresh model."""
        w = self.width
        if self.name == "mlp":
            return nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10))
        if self.name == "cnn":
            return cnn(w, 4)
        if self.name.startswith("gpt"):
            return GPT(
                width=w, layers=2, length=self.size, vocabulary=8 * w, checkpointing=self.name == "gpt_checkpointed"
            )
        if self.name == "lstm":
            return LSTM(w, 2)
        return nn.Sequential(nn.EmbeddingBag(self.size, w), nn.Linear(w, 10))

    def batch(self, n: int) -> tuple[Any, torch.Tensor]:
        """Return n samples and their labels."""
        labels = torch.randint(10, (n,))
        if self.name == "mlp":
            return torch.randn(n, 64), labels
        if self.name == "cnn":
            return torch.randn(n, 3, self.size, self.size), labels
        if self.name.startswith("gpt"):
            tokens = torch.randint(8 * self.width, (n, self.size + 1))
            return tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        if self.name == "lstm":
            return torch.randn(n, self.size, 32), labels
        return torch.randint(self.size, (n, 20)), labels


SMALL = (
    Kind("mlp", width=128, size=0),
    Kind("cnn", width=8, size=16),
    Kind("gpt", width=32, size=16),
    Kind("gpt_checkpointed", width=32, size=16),
    Kind("lstm", width=32, size=8),
    Kind("embedding", width=16, size=2000),
)
"""Each step takes milliseconds."""
