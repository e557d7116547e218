"""The model of CUDA's caching allocator: its rules one by one, its invariants, and what follows for a search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bstune.tuner.memory.caching_allocator import CachingAllocator, OutOfReserveError, ReservedPeak, replay, reserved_at
from bstune.tuner.memory.trace import Trace, TraceModel
from bstune.tuner.probing.memory_fit import SizeTried
from bstune.tuner.probing.size_search import Bounds, Growth
from hypothesis import given, settings
from hypothesis import strategies as st

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("request_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_what_one_request_reserves(request_bytes: int, allocated: int, reserved: int) -> None:
    """Blocks of 512 bytes; segments of 2 MiB, 20 MiB, and multiples of 2 MiB from 10 MiB on."""
    allocator = CachingAllocator()
    allocator.allocate(request_bytes)

    assert allocator.reserved_bytes == reserved
    # What is left of a large segment is split off only where it is more than 1 MiB.
    assert allocator.allocated_bytes == (reserved if 0 < reserved - allocated <= MIB and allocated > MIB else allocated)


def test_a_small_remainder_of_a_large_block_stays_with_it() -> None:
    """19.5 MiB from a 20 MiB block leaves 0.5 MiB, which is not split off."""
    allocator = CachingAllocator()
    block = allocator.allocate(20 * MIB)
    allocator.free(block)
    allocator.allocate(20 * MIB - 512 * KIB)

    assert allocator.allocated_bytes == 20 * MIB


def test_a_freed_block_is_used_again_best_fit_first() -> None:
    """Of two free segments the smaller one that suffices."""
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(24 * MIB)
    allocator.free(large)
    allocator.free(small)

    assert allocator.allocate(22 * MIB) == small
    assert allocator.reserved_bytes == 64 * MIB


def test_neighbours_merge_when_they_are_free() -> None:
    """Three parts of one segment become one block again, in whatever order they are freed."""
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)):
        allocator = CachingAllocator()
        parts = [allocator.allocate(4 * MIB) for _ in range(3)]
        for index in order:
            allocator.free(parts[index])
        assert allocator.allocate(19 * MIB + 512) == parts[0]
        assert allocator.reserved_bytes == 20 * MIB


def test_free_parts_of_a_segment_in_use_are_fragmentation() -> None:
    """12 MiB are free beside 8 MiB in use, and no request of 20 MiB can have them."""
    allocator = CachingAllocator()
    allocator.allocate(8 * MIB)

    allocator.allocate(13 * MIB)
    assert allocator.reserved_bytes == 34 * MIB


def test_free_segments_are_given_back_before_a_request_fails() -> None:
    """That is a retry, and it is counted: training goes on, but slowly if it happens in every step."""
    allocator = CachingAllocator(capacity_bytes=64 * MIB)
    allocator.free(allocator.allocate(40 * MIB))
    allocator.allocate(60 * MIB)

    assert allocator.retries == 1
    assert allocator.reserved_bytes == 60 * MIB
    assert allocator.peak_reserved_bytes == 60 * MIB


def test_a_request_beyond_the_capacity_fails_and_leaves_the_state_usable() -> None:
    """The error tells the request and what was reserved."""
    allocator = CachingAllocator(capacity_bytes=64 * MIB)
    kept = allocator.allocate(40 * MIB)
    with pytest.raises(OutOfReserveError) as error:
        allocator.allocate(30 * MIB)

    assert error.value.requested_bytes == 30 * MIB
    assert error.value.reserved_bytes == 40 * MIB
    allocator.free(kept)
    allocator.allocate(60 * MIB)


def test_nothing_is_reserved_for_nothing() -> None:
    """A tensor of no elements takes no block."""
    allocator = CachingAllocator(0)
    allocator.free(allocator.allocate(0))

    assert allocator.reserved_bytes == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 60 * MIB) | st.integers(1, 3 * MIB), st.integers(0, 10**6)), max_size=60
    ),
    st.integers(20, 300),
)
def test_blocks_never_overlap_and_the_books_balance(requests: list[tuple[bool, int, int]], capacity_mib: int) -> None:
    """Against a plain list of what is in use, for random requests within a capacity."""
    allocator = CachingAllocator(capacity_mib * MIB)
    used: dict[int, int] = {}
    for allocate, nbytes, pick in requests:
        if allocate or not used:
            try:
                address = allocator.allocate(nbytes)
            except OutOfReserveError:
                continue
            assert all(address + nbytes <= other or other + size <= address for other, size in used.items())
            used[address] = nbytes
        else:
            address = sorted(used)[pick % len(used)]
            del used[address]
            allocator.free(address)
        assert sum(used.values()) <= allocator.allocated_bytes <= allocator.reserved_bytes <= capacity_mib * MIB
    for address in used:
        allocator.free(address)
    assert allocator.allocated_bytes == 0
    allocator.release_cached()
    assert allocator.reserved_bytes == 0


def step(n: int) -> Trace:
    """Return a step made by hand: 30 MiB of weights, activations of 1, 3 and 0.5 MiB a sample that live and die."""
    events = [(1, 0), (1, 1), (1, 2), (-1, 1), (1, 3), (1, 4), (-1, 2), (-1, 3), (-1, 4)]
    nbytes = [30 * MIB, n * MIB, 3 * n * MIB, n * MIB // 2, 2 * n * MIB]
    return Trace(
        batch=n,
        signs=np.array([sign for sign, _ in events], dtype=np.int8),
        storages=np.array([storage for _, storage in events], dtype=np.int32),
        nbytes=np.array(nbytes, dtype=np.int64),
        born_in=np.zeros(5, dtype=np.int16),
    )


def test_a_replay_reserves_at_least_what_is_live() -> None:
    """And follows the rules: 32 MiB of weights' segment need no more than 30; the rest is what the activations take."""
    model = TraceModel.fit([step(2), step(4)])
    result = reserved_at(model, 16)

    assert result.fits
    assert result.reserved_bytes == (30 + 16 + 48 + 32) * MIB
    assert result.reserved_bytes >= result.allocated_bytes >= model.peak_at(16)
    assert result.retries == 0


def test_a_replay_that_fails_says_what_was_reserved_then() -> None:
    """The capacity ends between the second and the third activation."""
    result = replay([1, 1, 1], [0, 1, 2], [30 * MIB, 40 * MIB, 50 * MIB], capacity_bytes=100 * MIB)

    assert not result.fits
    assert result.reserved_bytes == 70 * MIB


def test_reserved_memory_is_not_monotone_in_the_batch_size() -> None:
    """A larger batch may reserve less: a freed block suffices for it that was split for a smaller one."""
    model = TraceModel.fit([step(2), step(4)])
    reserved = [reserved_at(model, n).reserved_bytes for n in range(1, 200)]

    assert any(later < earlier for earlier, later in itertools.pairwise(reserved))


def test_a_search_on_the_allocator_returns_the_largest_size_without_retries() -> None:
    """With the replay as predictor: no failure on the way, and the truth by trying every size."""
    model = TraceModel.fit([step(2), step(4)])
    capacity = 3000 * MIB
    without_retries = [n for n in range(1, 1000) if (r := reserved_at(model, n, capacity)).fits and not r.retries]
    growth = Growth(Bounds(1, 10_000), budget_bytes=capacity, predict=ReservedPeak(model, capacity))
    while (size := growth.next_size()) is not None:
        result = reserved_at(model, size, capacity)
        growth.add(
            SizeTried(size, result.fits and not result.retries, result.reserved_bytes if result.fits else None, "ok")
        )

    assert growth.answer.size == max(without_retries)
    assert all(measured.fits for measured in growth.history)


def test_the_context_counts_beside_the_allocator() -> None:
    """`fixed_bytes` is added to what is predicted, `inf` forbids a size."""
    model = TraceModel.fit([step(2), step(4)])
    predict = ReservedPeak(model, 200 * MIB, fixed_bytes=500 * MIB)

    assert predict(16) == (126 + 500) * MIB
    assert predict(100) == float("inf")
