"""Two well-known models for the searches on emulated cards; neither torchvision nor transformers is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from model_kinds import GPT
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """The block of ResNet-50: 1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Build the layers."""
        super().__init__()
        out = 4 * width
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch."""
        return functional.relu(self.main(x) + self.shortcut(x), inplace=True)


def resnet50() -> nn.Module:
    """Build it as in He et al. 2015, arXiv:1512.03385, with the stride in the 3 x 3 convolution."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for index in range(depth):
            blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
            channels = 4 * width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def gpt2() -> nn.Module:
    """Build a model of the width, depth and vocabulary of GPT-2 124M, with 4 heads and 512 tokens.

    Its output layer has weights of its own.
    """
    return GPT(width=768, layers=12, length=512, vocabulary=50257, checkpointing=False)


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 224, 224), torch.randint(1000, (n,))


def tokens(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(50257, (n, 512)), torch.randint(50257, (n * 512,))


@dataclass(frozen=True)
class KnownModel:
    """How to build it, and what one batch of its data looks like."""

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[int], tuple[torch.Tensor, torch.Tensor]]

    def model(self) -> nn.Module:
        """Return a fresh model."""
        return self.make()

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return n samples and their labels."""
        return self.data(n)


RESNET50 = KnownModel("resnet50", resnet50, images)
GPT2 = KnownModel("gpt2", gpt2, tokens)
