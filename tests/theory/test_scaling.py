"""Batch splits and learning-rate rules are exact arithmetic."""

from __future__ import annotations

from typing import Any

import bstune
import pytest
from bstune import split
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 4096), st.integers(1, 512), st.sampled_from([1, 2, 4]))
def test_a_split_is_exact_and_fits(batch: int, micro_max: int, world_size: int) -> None:
    """Micro-batch, accumulation and processes multiply to the global batch; no larger micro-batch would have fit."""
    batch *= world_size

    micro, accumulation = split(batch, micro_max, world_size)

    assert micro * accumulation * world_size == batch
    assert micro <= micro_max
    assert not any((batch // world_size) % m == 0 for m in range(micro + 1, min(micro_max, batch // world_size) + 1))


@pytest.mark.parametrize(
    ("batch", "micro_max", "world_size"), [(0, 8, 1), (8, 0, 1), (9, 8, 2), (8.5, 2, 1), ("8", 2, 1)]
)
def test_an_impossible_split_is_refused(batch: Any, micro_max: int, world_size: int) -> None:
    """A batch that does not divide by the processes is refused, never rounded."""
    with pytest.raises(bstune.ArgumentError):
        split(batch, micro_max, world_size)
