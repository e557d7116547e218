"""A model of CUDA's caching allocator: what a sequence of requests makes it reserve, and where it fails or thrashes.

It follows the rules of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch 2.13) for one stream,
with the default configuration: no expandable segments, no `max_split_size_mb`, no roundup, no garbage collection
threshold, no CUDA graphs. Within these it is meant to be exact. Capacity limits what is *reserved*; what is allocated
says little: the rest is cached blocks and fragments, which come and go with the batch size, so "fits" is not monotone
in it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trace import TraceModel

MIN_BLOCK_BYTES = 512
SMALL_BYTES = 1 << 20
"""The largest request that is served from the pool of small blocks."""
SMALL_SEGMENT_BYTES = 2 << 20
LARGE_SEGMENT_BYTES = 20 << 20
"""What is reserved for a request above `SMALL_BYTES` and below `MIN_LARGE_BYTES`."""
MIN_LARGE_BYTES = 10 << 20
ROUND_LARGE_BYTES = 2 << 20


class OutOfReserveError(Exception):
    """The request does not fit even after all free segments were given back.

    Attributes:
        requested_bytes: The request.
        reserved_bytes: What was reserved when it failed.
    """

    def __init__(self, requested_bytes: int, reserved_bytes: int) -> None:
        """Keep both numbers."""
        super().__init__(f"{requested_bytes} bytes requested with {reserved_bytes} reserved")
        self.requested_bytes = requested_bytes
        self.reserved_bytes = reserved_bytes


class _Block:
    """A piece of a segment, linked to its neighbours."""

    __slots__ = ("address", "following", "free", "nbytes", "preceding", "small")

    def __init__(self, address: int, nbytes: int, small: bool) -> None:
        self.address = address
        self.nbytes = nbytes
        self.small = small
        self.free = False
        self.preceding: _Block | None = None
        self.following: _Block | None = None

    @property
    def is_split(self) -> bool:
        return self.preceding is not None or self.following is not None


class CachingAllocator:
    """Serves requests as CUDA's caching allocator does, within a capacity.

    Attributes:
        allocated_bytes: In blocks that are in use, rounded up as the allocator does.
        reserved_bytes: In segments taken from the device.
        peak_allocated_bytes: Most of it at once.
        peak_reserved_bytes: Most of it at once.
        retries: How often a request was served only after free segments were given back; torch's `num_alloc_retries`.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        """Begin empty; without a capacity nothing ever fails."""
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.retries = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # Per pool, (bytes, address), sorted.
        self._blocks: dict[int, _Block] = {}
        self._next_address = 1 << 20

    def allocate(self, nbytes: int) -> int:
        """Return the address of a block for a request.

        Raises:
            OutOfReserveError: The capacity does not suffice, also after free segments were given back.
        """
        if nbytes <= 0:
            return 0  # Takes no block; nor does torch's.
        rounded = max(MIN_BLOCK_BYTES, -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES)
        small = rounded <= SMALL_BYTES
        block = self._best_fit(rounded, small) or self._new_segment(rounded, small)
        if block is None:
            self.release_cached()
            block = self._new_segment(rounded, small)
            if block is None:
                raise OutOfReserveError(nbytes, self.reserved_bytes)
            self.retries += 1
        rest = block.nbytes - rounded
        if rest >= MIN_BLOCK_BYTES if small else rest > SMALL_BYTES:
            self._split(block, rounded)
        block.free = False
        self.allocated_bytes += block.nbytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block.address

    def free(self, address: int) -> None:
        """Take a block back into the cache, merged with its free neighbours."""
        if address == 0:
            return
        block = self._blocks[address]
        self.allocated_bytes -= block.nbytes
        before, after = block.preceding, block.following
        if before is not None and before.free:
            self._forget(before)
            before.nbytes += block.nbytes
            self._link(before, after)
            del self._blocks[block.address]
            block = before
        if after is not None and after.free:
            self._forget(after)
            block.nbytes += after.nbytes
            self._link(block, after.following)
            del self._blocks[after.address]
        self._keep(block)

    def release_cached(self) -> None:
        """Give back every segment that is wholly free, as `torch.cuda.empty_cache` does."""
        for pool in self._free.values():
            for _, address in list(pool):
                block = self._blocks[address]
                if not block.is_split:
                    self._forget(block)
                    del self._blocks[address]
                    self.reserved_bytes -= block.nbytes

    def _best_fit(self, nbytes: int, small: bool) -> _Block | None:
        pool = self._free[small]
        at = bisect.bisect_left(pool, (nbytes, 0))
        if at == len(pool):
            return None
        _, address = pool.pop(at)
        return self._blocks[address]

    def _new_segment(self, nbytes: int, small: bool) -> _Block | None:
        if small:
            segment = SMALL_SEGMENT_BYTES
        elif nbytes < MIN_LARGE_BYTES:
            segment = LARGE_SEGMENT_BYTES
        else:
            segment = -(-nbytes // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES
        if self.capacity_bytes is not None and self.reserved_bytes + segment > self.capacity_bytes:
            return None
        self.reserved_bytes += segment
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        block = _Block(self._next_address, segment, small)
        self._next_address += segment + ROUND_LARGE_BYTES  # Segments are never neighbours.
        self._blocks[block.address] = block
        return block

    def _split(self, block: _Block, nbytes: int) -> None:
        rest = _Block(block.address + nbytes, block.nbytes - nbytes, block.small)
        self._link(rest, block.following)
        self._link(block, rest)
        block.nbytes = nbytes
        self._blocks[rest.address] = rest
        self._keep(rest)

    def _link(self, before: _Block, after: _Block | None) -> None:
        before.following = after
        if after is not None:
            after.preceding = before

    def _keep(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], (block.nbytes, block.address))

    def _forget(self, block: _Block) -> None:
        pool = self._free[block.small]
        pool.pop(bisect.bisect_left(pool, (block.nbytes, block.address)))
        block.free = False


@dataclass(frozen=True)
class Replay:
    """How a sequence of allocations ended in an allocator of some capacity."""

    fits: bool
    """It ran to its end, if with retries."""
    reserved_bytes: int
    """Peak; where it failed, what was reserved then."""
    allocated_bytes: int
    """Peak."""
    retries: int


def replay(
    signs: Sequence[int], storages: Sequence[int], nbytes: Sequence[int], *, capacity_bytes: int | None = None
) -> Replay:
    """Run allocation events through a fresh allocator.

    Args:
        signs: Per event: 1 for an allocation, -1 for a release.
        storages: Per event: which storage.
        nbytes: Per storage: its size.
        capacity_bytes: What may be reserved; None for no limit.

    Returns:
        Peaks and retries; where a request failed, the state then.
    """
    allocator = CachingAllocator(capacity_bytes)
    addresses: dict[int, int] = {}
    for sign, storage in zip(signs, storages, strict=True):
        if sign < 0:
            allocator.free(addresses.pop(storage))
            continue
        try:
            addresses[storage] = allocator.allocate(nbytes[storage])
        except OutOfReserveError:
            return Replay(False, allocator.reserved_bytes, allocator.peak_allocated_bytes, allocator.retries)
    return Replay(True, allocator.peak_reserved_bytes, allocator.peak_allocated_bytes, allocator.retries)


def reserved_at(
    model: TraceModel, size: int, capacity_bytes: int | None = None, *, eval_size: int | None = None
) -> Replay:
    """Return what a step at `size` reserves in a CUDA caching allocator, and whether it fits without retries.

    The capacity is that of the allocator: without the CUDA context and what other processes use.
    """
    signs, storages, nbytes = model.events_at(size, eval_size)
    return replay(signs.tolist(), storages.tolist(), nbytes.tolist(), capacity_bytes=capacity_bytes)


class ReservedPeak:
    """A predictor for `Growth`: peak reserved bytes at a size, `inf` where the allocator fails or has to retry.

    Args:
        model: The traced steps.
        capacity_bytes: Of the allocator.
        fixed_bytes: Added to every prediction: the CUDA context, and what else is taken beside the allocator.
        eval_size_of: The validation batch size that belongs to a micro-batch size; default: the same.
    """

    def __init__(
        self,
        model: TraceModel,
        capacity_bytes: int | None = None,
        *,
        fixed_bytes: int = 0,
        eval_size_of: Callable[[int], int] = lambda size: size,
    ) -> None:
        """Keep what has been asked, since a search asks often."""
        self._model = model
        self._capacity_bytes = capacity_bytes
        self._fixed_bytes = fixed_bytes
        self._eval_size_of = eval_size_of
        self._known: dict[int, float] = {}

    def __call__(self, size: int) -> float:
        """Return the predicted peak at a size, in bytes."""
        if size not in self._known:
            result = reserved_at(self._model, size, self._capacity_bytes, eval_size=self._eval_size_of(size))
            fits = result.fits and not result.retries
            self._known[size] = float(self._fixed_bytes + result.reserved_bytes) if fits else float("inf")
        return self._known[size]
