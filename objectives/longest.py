"""Which samples are the longest: a probe measures with them, so that its answer holds in whatever order they come."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from ..tuner.core.errors import ObjectiveError
from .token_batches import TokenBatches

MOST_LOADED = 100_000
"""Samples that are looked at to know their lengths; of more, as many that are evenly spread."""
SAMPLED = 256
"""The same where nobody has said that they differ in length."""
MOST_S, LEAST_LOADED = 20.0, 16
"""No more are looked at after so many seconds, but so many at least: to load a sample may take long."""


Objective = TypeVar("Objective")


class LongestFirst:
    """The order of an objective's samples by their length; looked up once, before any process is made for a trial."""

    def __init__(self) -> None:
        """Nothing was looked at."""
        self._orders: dict[str, list[int] | None] | None = None

    def look_at(self, objective: Any) -> dict[str, list[int] | None]:
        """Return the order of `train_data` and of `val_data`; None where the samples of one are all alike."""
        if self._orders is None:
            may_vary = objective.collate_fn is not None and objective.worst_batch is None
            self._orders = {
                role: longest_first(getattr(objective, role), objective.length, may_vary=may_vary)
                for role in ("train_data", "val_data")
            }
        return self._orders

    def of(self, objective: Objective) -> Objective:
        """Return the objective with the longest samples in its first batches, for the probe."""
        from torch.utils.data import Subset, default_collate

        own: Any = objective
        worst: Any = copy.copy(objective)
        collate = own.collate_fn or default_collate
        if own.train_tokens is not None:  # Validation begins with the longest samples anyway.
            worst.worst_batch = own.worst_batch or largest_batches(own.train_data, own.train_tokens, collate)
            return worst  # type: ignore[no-any-return]
        orders = self.look_at(objective)
        train, val = orders["train_data"], orders["val_data"]
        if train is not None and own.worst_batch is None:
            worst.worst_batch = lambda n: collate([own.train_data[index] for index in train[:n]])
        if val is not None:
            worst.val_data = Subset(own.val_data, val)
        return worst  # type: ignore[no-any-return]


def largest_batches(data: Any, tokens: Sequence[int], collate: Callable[[list[Any]], Any]) -> Callable[[int], Any]:
    """Return a function that gives, for a number of tokens, the two largest batches in turn."""
    turns = itertools.count()

    @cache
    def largest(max_tokens: int) -> tuple[list[int], list[int]]:
        return TokenBatches(tokens, max_tokens).largest

    return lambda max_tokens: collate([data[index] for index in largest(max_tokens)[next(turns) % 2]])


def tokens_of(data: Any, length: Callable[[Any], float] | None, role: str) -> list[int]:
    """Return the tokens of each sample of a data set, as `length(sample)` or the data set itself says.

    Raises:
        ObjectiveError: Neither says so, or not in whole numbers of 1 or more.
    """
    found = _stated(data) if length is None else [length(data[index]) for index in range(len(data))]
    if found is None:
        raise ObjectiveError(
            f"size_unit='tokens' needs the tokens of each sample of {role}: expected length=(sample) -> number, or a "
            "data set with `lengths`, or with a column `length`."
        )
    tokens = [int(one) for one in found]
    if min(tokens) < 1 or tokens != list(found):
        raise ObjectiveError(f"{role} has lengths from {min(found)} on: expected whole numbers of tokens, 1 or more.")
    return tokens


def longest_first(data: Any, length: Callable[[Any], float] | None, *, may_vary: bool) -> list[int] | None:
    """Return all indices of a data set, the longest samples first; None where all are alike, as far as is known.

    Lengths are those of `length(sample)`, or stand in `data.lengths` or a column `length`, or are the sizes of some
    samples. Samples that
    were not looked at are taken to be as those that were: then the longest ones come several times.

    Args:
        data: A map-style data set.
        length: The length of a sample, or None.
        may_vary: Samples may differ in length though nobody has said so: look at some.

    Example:
        >>> longest_first(["a", "ccc", "bb"], len, may_vary=False)
        [1, 2, 0]
        >>> longest_first(["a", "b"], None, may_vary=True) is None
        True
    """
    n, stated = len(data), _stated(data)
    if length is not None:
        looked_at, lengths = _measured(data, length, _spread(n, MOST_LOADED))
    elif stated is not None:
        looked_at, lengths = list(range(n)), stated
    elif may_vary:
        try:
            looked_at, lengths = _measured(data, size_of, _spread(n, SAMPLED))
        except Exception:  # Nobody has promised that single samples can be had: the loader may ask for whole batches.
            return None
    else:
        return None
    if len(set(lengths)) < 2:
        return None
    order = [index for _, index in sorted(zip(lengths, looked_at, strict=True), key=lambda pair: -pair[0])]
    return [order[place * len(order) // n] for place in range(n)]


def repeated_longest(data: Any, length: Callable[[Any], float] | None) -> list[int] | None:
    """Return as many indices as a data set has samples, all of its longest one: what a framework's loader is given.

    Whatever order it draws, each batch is then as long as any. None where lengths are alike or not known: they are
    those of `length(sample)`, or the data set states them, or the sizes of some samples that have `input_ids`.

    Example:
        >>> repeated_longest(["a", "ccc", "bb"], len)
        [1, 1, 1]
        >>> repeated_longest(["a", "ccc", "bb"], None) is None
        True
    """
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or len(data) == 0:
        return None
    order = longest_first(data, length, may_vary=_is_tokenized(data))
    return None if order is None else [order[0]] * len(data)


def _is_tokenized(data: Any) -> bool:
    try:
        sample = data[0]
        return isinstance(sample, Mapping) and "input_ids" in sample
    except Exception:  # The user's own data set, which may want other indices: nobody asked for its lengths.
        return False


def _stated(data: Any) -> list[float] | None:
    """Return the lengths that a data set states, as an attribute or as a column of Hugging Face's kind."""
    lengths: Any = data["length"] if "length" in (getattr(data, "column_names", None) or ()) else None
    lengths = getattr(data, "lengths", None) if lengths is None else lengths
    if callable(lengths) or not hasattr(lengths, "__len__") or len(lengths) != len(data):
        return None
    return [float(one) for one in lengths]


def _spread(n: int, most: int) -> list[int]:
    """Return all of n indices, or as many as allowed, evenly spread."""
    return list(range(n)) if n <= most else [place * n // most for place in range(most)]


def _measured(data: Any, length: Callable[[Any], float], indices: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return the indices that there was time for, spread over all of them, and the length of each."""
    n, end_s = len(indices), time.monotonic() + MOST_S
    # Steps of the golden section that meet every place: wherever they end, those before lie evenly.
    step = next(size for size in itertools.count(max(1, round(0.618 * n))) if math.gcd(size, n) == 1)
    found: dict[int, float] = {}
    for turn in range(n):
        if turn >= LEAST_LOADED and time.monotonic() > end_s:
            break
        index = indices[turn * step % n]
        found[index] = float(length(data[index]))
    looked_at = sorted(found)
    return looked_at, [found[index] for index in looked_at]


def size_of(sample: Any) -> int:
    """Return how many numbers or characters are in a sample, whatever its nesting.

    Example:
        >>> size_of({"text": "abc", "label": 1}), size_of(([1, 2], [3]))
        (4, 3)
    """
    if hasattr(sample, "numel"):
        return int(sample.numel())
    if hasattr(sample, "size") and isinstance(sample.size, int):  # NumPy's.
        return sample.size
    if isinstance(sample, (str, bytes)):
        return len(sample)
    if isinstance(sample, Mapping):
        return sum(size_of(value) for value in sample.values())
    if isinstance(sample, (list, tuple)):
        return sum(size_of(value) for value in sample)
    return 1
