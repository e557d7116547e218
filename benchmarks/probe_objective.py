"""The model kind that `$BENCHMARK_KIND` describes, as an objective for `bstune probe`."""

from __future__ import annotations

import json
import os
from typing import Any

import bstune
import torch
from model_kinds import Kind

N_SAMPLES, N_VAL_SAMPLES = 2048, 256
kind = Kind(**json.loads(os.environ["BENCHMARK_KIND"]))


class Indices(torch.utils.data.Dataset[Any]):
    """Hands out indices: a batch is made whole, as in the other finders' runs."""

    def __init__(self, n_samples: int) -> None:
        """Make nothing."""
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> Any:
        return index


objective = bstune.Supervised(
    model=kind.model,
    train_data=Indices(N_SAMPLES),
    val_data=Indices(N_VAL_SAMPLES),
    collate_fn=lambda items: kind.batch(len(items)),
    name=kind.name,
)
