"""Batches of samples of varying length, each filled up to a number of tokens: a batch sampler for any loader."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..tuner.core.errors import ArgumentError

POOL_BATCHES = 50
"""Samples of about so many batches are sorted by length together: that leaves little padding, and much to chance."""

_largest_only = False


@contextmanager
def largest_only() -> Iterator[None]:
    """Have all TokenBatches yield nothing but their largest batches while the block runs: what a probe measures."""
    global _largest_only
    _largest_only = True
    try:
        yield
    finally:
        _largest_only = False


class TokenBatches:
    """Lists of indices, for `DataLoader(batch_sampler=...)`: samples of like lengths, as many as a token budget holds.

    A batch that is padded to its longest sample has `len(batch) * longest` tokens; that is at most `max_tokens`. Each
    pass over it is an epoch: every sample comes once, in batches that are drawn anew. When bstune probes a loop, the
    batches are the largest that there can be: the longest samples, and the most tokens.

    Args:
        lengths: Tokens of each sample of the data set.
        max_tokens: Tokens of a batch, padding included. A sample that is longer is a batch of its own.
        max_samples: Samples of a batch, or None.
        seed: Of the order; with the number of the epoch it decides it.
        longest_first: So many batches begin the first epoch, that with most tokens and those with the longest samples:
            what does not fit fails at once.
        rank: Place of this process among those that train together, for its part of the batches.
        world_size: How many these are. Each gets as many batches; what is left of an epoch is left out.

    Raises:
        ArgumentError: A number is wrong on its face.

    Example:
        >>> sorted(map(sorted, TokenBatches([5, 1, 4, 2, 2], max_tokens=8)))
        [[0], [1, 3, 4], [2]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        max_samples: int | None = None,
        seed: int = 0,
        longest_first: int = 8,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Keep the lengths; nothing is drawn before an epoch begins."""
        self.lengths = [int(length) for length in lengths]
        self.max_tokens, self.max_samples = operator.index(max_tokens), max_samples
        wrong = []
        if not self.lengths or min(self.lengths) < 1:
            wrong.append("lengths: expected the tokens of each sample, 1 or more")
        if self.max_tokens < 1:
            wrong.append(f"max_tokens={max_tokens!r}: expected 1 or more")
        if max_samples is not None and max_samples < 1:
            wrong.append(f"max_samples={max_samples!r}: expected 1 or more, or None")
        if not 0 <= rank < world_size:
            wrong.append(f"rank={rank!r}, world_size={world_size!r}: expected a rank from 0 to world_size - 1")
        if wrong:
            raise ArgumentError("TokenBatches: " + "; ".join(wrong) + ".")
        self.seed, self.longest_first = seed, longest_first
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; without it each pass is the next one."""
        self.epoch = epoch

    def tokens(self, batch: Sequence[int]) -> int:
        """Return the tokens of the samples in a batch, without padding."""
        return sum(self.lengths[index] for index in batch)

    def __len__(self) -> int:
        """Return the batches of the epoch that comes next; other epochs may have a few more or less."""
        return len(self._planned(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of an epoch."""
        planned = self._planned(self.epoch)
        self.epoch += 1
        return itertools.islice(itertools.cycle(self.largest), len(planned)) if _largest_only else iter(planned)

    @property
    def largest(self) -> tuple[list[int], list[int]]:
        """The longest samples, as many as may be in a batch, and the batch with most tokens, padding included.

        The first has the longest sequences, the second may have more of everything else: 1 sample of 700 and 2 of 512,
        where 1,024 tokens are allowed.
        """
        order = sorted(range(len(self.lengths)), key=lambda index: -self.lengths[index])
        most = self.max_samples or len(order)

        def n_beginning_at(place: int) -> int:
            return min(max(1, min(self.max_tokens // self.lengths[order[place]], most)), len(order) - place)

        fullest = max(range(len(order)), key=lambda place: self.lengths[order[place]] * n_beginning_at(place))
        return order[: n_beginning_at(0)], order[fullest : fullest + n_beginning_at(fullest)]

    def _planned(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        draw.shuffle(order)
        mean = sum(self.lengths) / len(self.lengths)
        pool = max(1, int(POOL_BATCHES * self.max_tokens / mean))
        batches = []
        for start in range(0, len(order), pool):
            batches += self._packed(sorted(order[start : start + pool], key=self.lengths.__getitem__))
        draw.shuffle(batches)
        if epoch == 0 and self.longest_first:
            # It is sorted within a batch, so its last sample is its longest.
            place = {self._rank_of(batch): batch for batch in batches}
            fullest = max(place, key=lambda key: key[1])
            longest = [key for key in sorted(place, reverse=True) if key != fullest]
            first = [fullest, *longest][: self.longest_first]
            batches = [place[key] for key in first] + [each for each in batches if self._rank_of(each) not in first]
        share = len(batches) // self.world_size
        return batches[self.rank :: self.world_size][:share]

    def _rank_of(self, batch: list[int]) -> tuple[int, int, int]:
        longest = self.lengths[batch[-1]]
        return longest, longest * len(batch), batch[-1]

    def _packed(self, ascending: list[int]) -> list[list[int]]:
        """Cut samples in the order of their lengths into batches that are as full as may be."""
        most = len(ascending) if self.max_samples is None else self.max_samples
        batches: list[list[int]] = []
        batch: list[int] = []
        for index in ascending:
            if batch and (len(batch) >= most or (len(batch) + 1) * self.lengths[index] > self.max_tokens):
                batches.append(batch)
                batch = []
            batch.append(index)
        return [*batches, batch] if batch else batches


class TokenStream:
    """The indices of micro-batches by tokens, without end: one epoch after the other, each drawn anew.

    A micro-batch counts as `max_tokens`, whatever is in it, so the stream can be entered at any number of them.
    """

    def __init__(
        self, lengths: Sequence[int], max_tokens: int, *, seed: int, start: int = 0, rank: int = 0, n_ranks: int = 1
    ) -> None:
        """Enter the stream after `start` tokens; its micro-batches are dealt out in turn, and these are of `rank`."""
        self._batches = TokenBatches(lengths, max_tokens, seed=seed, longest_first=0)
        self._ahead = start // max_tokens
        self._rank, self._n_ranks = rank, n_ranks

    def __iter__(self) -> Iterator[list[int]]:
        """Yield them."""
        self._batches.set_epoch(0)
        ahead, turn = self._ahead, 0
        while True:
            epoch = list(self._batches)
            for batch in epoch[ahead:]:
                if turn == self._rank:
                    yield batch
                turn = (turn + 1) % self._n_ranks
            ahead = max(0, ahead - len(epoch))


def longest_to_shortest(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the batches of a validation: always the same, the longest samples first, then the batch with most tokens.

    Example:
        >>> longest_to_shortest([5, 700, 500, 512, 300, 3], 1024)
        [[1], [3, 2], [4, 0, 5]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        end = start + max(1, max_tokens // lengths[order[start]])
        batches.append(order[start:end])
        start = end
    rest = batches[1:]
    fullest = max(rest, key=lambda batch: len(batch) * lengths[batch[0]], default=None)
    return batches[:1] if fullest is None else [batches[0], fullest, *(batch for batch in rest if batch is not fullest)]
