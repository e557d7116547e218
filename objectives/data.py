"""Data sets as bstune wants them: checked, streamed without end in full batches, and moved to the device.

One epoch's order depends on the seed and the number of the epoch alone, so a run can be entered at any sample.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.plain_text import of_type
from .token_batches import TokenStream, longest_to_shortest

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

EPOCH_SEED_STRIDE = 1_000_003
"""Epoch e of seed s is shuffled with seed s * stride + e; a prime far above any number of epochs keeps them apart."""

AT_ONCE = 1 << 16
"""Indices of an epoch's order that are made numbers of Python at a time."""
NOISE_SEED = 0x5EED << 32
"""Keeps the samples that noise is measured on apart from those of the training stream."""


def check_data(data: Any, name: str) -> None:
    """Raise an ObjectiveError unless `data` is a map-style data set with at least one sample.

    Raises:
        ObjectiveError: Says what was given, what was expected and what to pass instead.
    """
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(data, torch_data.DataLoader):
        raise ObjectiveError(
            f"{name} is a DataLoader: bstune chooses the batch size itself, so it needs the data set behind it. Pass "
            "`loader.dataset`, and `num_workers=` and `collate_fn=` where you use them."
        )
    if torch_data is not None and isinstance(data, torch_data.IterableDataset):
        raise ObjectiveError(
            f"{name} is an IterableDataset: bstune needs a length and random access to compare batch sizes at equal "
            "samples. Pass a map-style Dataset (with __len__ and __getitem__), or write your own loop with "
            "@bstune.objective."
        )
    if isinstance(data, tuple):
        raise ObjectiveError(
            f"{name} is a tuple of {len(data)}: expected a Dataset. Pass `torch.utils.data.TensorDataset(*{name})`."
        )
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ObjectiveError(
            f"{name} is {of_type(data)}: expected a map-style Dataset (with __len__ and __getitem__), or a "
            "function without arguments that returns one."
        )
    if len(data) == 0:
        raise ObjectiveError(f"{name} is empty: expected at least one sample.")


def is_factory(data: Any) -> bool:
    """Tell whether `data` is a function that makes a data set, rather than a data set."""
    return callable(data) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


class MicroBatches:
    """The indices of micro-batches, without end and always full: a partial batch carries into the next epoch."""

    def __init__(
        self, n_samples: int, size: int, *, seed: int, start_samples: int = 0, rank: int = 0, n_ranks: int = 1
    ) -> None:
        """Shuffle `n_samples` each epoch and cut the endless stream, from `start_samples`, into pieces of `size`.

        They are dealt out in turn to `n_ranks`; these are those of `rank`.
        """
        self._rank = rank
        self._n_ranks = n_ranks
        self._n_samples = n_samples
        self._size = size
        self._seed = seed
        self._start_samples = start_samples

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        epoch, offset = divmod(self._start_samples, self._n_samples)
        batch: list[int] = []
        turn = 0
        while True:
            shuffle = torch.Generator().manual_seed(self._seed * EPOCH_SEED_STRIDE + epoch)
            order = torch.randperm(self._n_samples, generator=shuffle)[offset:]
            for part in order.split(AT_ONCE):  # As numbers of Python a hundred million indices take 4 GB.
                for index in part.tolist():
                    batch.append(index)
                    if len(batch) == self._size:
                        if turn == self._rank:
                            yield batch
                        batch, turn = [], (turn + 1) % self._n_ranks
            epoch, offset = epoch + 1, 0


def training_batches(
    data: Any,
    size: int,
    *,
    seed: int,
    start_samples: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    num_workers: int,
    pin_memory: bool,
    rank: int = 0,
    n_ranks: int = 1,
    tokens: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Return the endless stream of training micro-batches, from `start_samples` on, or the part of one rank of it.

    Where the tokens of each sample are given, `size` and `start_samples` are numbers of these.
    """
    import torch

    indices: MicroBatches | TokenStream
    if tokens is None:
        indices = MicroBatches(len(data), size, seed=seed, start_samples=start_samples, rank=rank, n_ranks=n_ranks)
    else:
        indices = TokenStream(tokens, size, seed=seed, start=start_samples, rank=rank, n_ranks=n_ranks)
    loader: DataLoader[Any] = torch.utils.data.DataLoader(
        data,
        batch_sampler=cast(Any, indices),
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # Else the loader draws from the trial's own generator.
    )
    return iter(loader)


class _Made:
    """Makes batches, as a data set whose indices are their sizes."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __getitem__(self, size: int) -> Any:
        return self._make(size)


def made_batches(make: Callable[[int], Any], size: int) -> Iterator[Any]:
    """Return batches of one size without end, each made by a function.

    A loader calls it, as for all other batches: what is traced of a step then holds nothing of how they are made, which
    goes sample by sample.
    """
    import torch

    loader: DataLoader[Any] = torch.utils.data.DataLoader(
        cast(Any, _Made(make)),
        batch_size=None,
        sampler=itertools.repeat(size),
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),
    )
    return iter(loader)


def noise_batches(
    data: Any,
    size: int,
    n_batches: int,
    *,
    seed: int,
    at_samples: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[Any]:
    """Yield micro-batches to measure gradient noise on, or the part of one rank of them; no sample is in two of them.

    They depend on nothing but the seed and the samples trained so far.
    """
    import torch

    shuffle = torch.Generator().manual_seed((seed * EPOCH_SEED_STRIDE + at_samples) ^ NOISE_SEED)
    order = torch.randperm(len(data), generator=shuffle)[: size * n_batches].tolist()
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    yield from torch.utils.data.DataLoader(
        data, batch_sampler=cast(Any, batches[rank::n_ranks]), collate_fn=collate_fn, generator=shuffle
    )


def validation_batches(
    data: Any,
    size: int,
    *,
    collate_fn: Callable[[list[Any]], Any] | None,
    num_workers: int,
    pin_memory: bool,
    tokens: Sequence[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (samples, batch) over the whole validation set, in order; the last batch may be smaller.

    Where the tokens of each sample are given, `size` is a number of these and so is what is yielded; the longest
    samples come first.
    """
    import torch

    by_tokens = None if tokens is None else longest_to_shortest(tokens, size)
    loader: DataLoader[Any] = torch.utils.data.DataLoader(
        data,
        **({"batch_size": size} if by_tokens is None else {"batch_sampler": cast(Any, by_tokens)}),
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
    if tokens is not None and by_tokens is not None:
        yield from zip((sum(tokens[index] for index in batch) for batch in by_tokens), loader, strict=True)
        return
    left = len(data)
    for batch in loader:
        yield min(size, left), batch
        left -= size


def to_device(batch: Any, device: str) -> Any:
    """Return the batch with every tensor in it on `device`, also within mappings, sequences and dataclasses."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(item, device) for item in batch)
    if type(batch) is dict:
        return {key: to_device(item, device) for key, item in batch.items()}
    if hasattr(batch, "to"):  # Batches that know how, such as those of tokenizers and graph libraries.
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(item, device) for key, item in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {
            item.name: to_device(getattr(batch, item.name), device) for item in dataclasses.fields(batch) if item.init
        }
        return dataclasses.replace(batch, **moved)
    return batch
