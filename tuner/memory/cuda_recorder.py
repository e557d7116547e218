"""Sees what CUDA's caching allocator was asked for during real training steps, from the history that it keeps.

Below everything else, so it also sees the workspaces of cuDNN and cuBLAS and what a compiled module allocates, which a
dispatch mode cannot. It costs about 2 µs an event. The interface is private to torch: where a release has another one,
`history` returns None and the caller goes back to `dispatch_recorder.recording`.

Not run on a card by this project so far: `trace_of` is tested on snapshots written by hand after torch's own
description (`torch.cuda.memory._snapshot`), and `benchmarks/gpu.py` compares the rest with a card.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import BstuneError
from .trace import ALLOCATE, FREE, Trace

ENTRY_KEYS = ("action", "addr", "size", "stream")
BLOCK_KEYS = ("address", "size", "requested_size", "state")
KNOWN_ACTIONS = frozenset(
    [
        "alloc",
        "free_requested",
        "free_completed",
        "segment_alloc",
        "segment_free",
        "segment_map",
        "segment_unmap",
        "snapshot",
        "oom",
    ]
)
OUTSIDE = "before the history"
INSIDE = "the caching allocator"


class UnknownHistoryError(BstuneError):
    """The snapshot is not of the form that this module knows."""


class HistoryRecorder:
    """Records the allocations on one CUDA device while `history` is entered.

    It has the `mark` and `trace` of `dispatch_recorder.Recorder`.
    """

    def __init__(self, batch: int, device: str) -> None:
        """Begin without a snapshot."""
        import torch

        self.snapshot: Mapping[str, Any] | None = None
        """What torch knew at the end, less what `trace_of` does not read; None before the end, and after an error."""
        self.device_index: int = torch.device(device).index or 0
        self._batch = batch
        self._marks: list[tuple[str, int]] = []
        self._events_before = self._events_so_far()

    def mark(self, name: str) -> None:
        """Remember that a phase begins, or a step ended, after the events so far."""
        self._marks.append((name, self._events_so_far() - self._events_before))

    def trace(self, *, eval_batch: int | None = None) -> Trace | None:
        """Return what was seen, or None where this release of torch tells it in an unknown form."""
        if self.snapshot is None:
            return None
        try:
            return trace_of(
                self.snapshot, self.device_index, batch=self._batch, marks=self._marks, eval_batch=eval_batch
            )
        except UnknownHistoryError:
            return None

    def close(self) -> None:
        """Take the snapshot that `trace` is read from."""
        import torch

        self.snapshot = slim(torch.cuda.memory._snapshot(), self.device_index)

    def _events_so_far(self) -> int:
        """Return how many blocks were handed out and taken back: exact, and far cheaper than a snapshot."""
        import torch

        stats = torch.cuda.memory_stats(self.device_index)
        return int(stats["allocation.all.allocated"]) + int(stats["allocation.all.freed"])


def history(batch: int, device: str) -> contextlib.AbstractContextManager[HistoryRecorder] | None:
    """Return a context in which the allocator keeps its history.

    None where it cannot: there is no CUDA device, or the interface is another one.
    """
    if not device.startswith("cuda") or not _record_arguments():
        return None
    return _recording(batch, device)


@contextlib.contextmanager
def _recording(batch: int, device: str) -> Iterator[HistoryRecorder]:
    import torch

    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # The collector of reference cycles would free tensors at another event each time.
    torch.cuda.memory._record_memory_history(**_record_arguments())
    try:
        recorder = HistoryRecorder(batch, device)
        yield recorder
        recorder.close()
    finally:
        if was_enabled:
            gc.enable()
        with contextlib.suppress(
            RuntimeError
        ):  # After an error that destroyed the context there is nothing to switch off.
            torch.cuda.memory._record_memory_history(enabled=None)


def _record_arguments() -> dict[str, Any]:
    """Return the arguments to record with, without stack traces; empty where this release takes others."""
    import torch

    known = inspect.signature(getattr(torch.cuda.memory, "_record_memory_history", lambda: None)).parameters
    if not {"enabled", "context", "max_entries"} <= set(known) or not hasattr(torch.cuda.memory, "_snapshot"):
        return {}
    return {"enabled": "all", "context": None} | ({"clear_history": True} if "clear_history" in known else {})


def slim(snapshot: Mapping[str, Any], device_index: int) -> dict[str, Any]:
    """Return what `trace_of` reads of a snapshot, for one device at the same index: a fraction of the whole."""
    traces = [
        [{key: entry[key] for key in ENTRY_KEYS if key in entry} for entry in entries] if index == device_index else []
        for index, entries in enumerate(snapshot["device_traces"])
    ]
    segments = [
        {
            "device": device_index,
            "blocks": [{key: block[key] for key in BLOCK_KEYS if key in block} for block in segment["blocks"]],
        }
        for segment in snapshot["segments"]
        if segment.get("device", device_index) == device_index
    ]
    return {"device_traces": traces, "segments": segments}


def trace_of(
    snapshot: Mapping[str, Any],
    device_index: int = 0,
    *,
    batch: int,
    marks: Sequence[tuple[str, int]] = (),
    eval_batch: int | None = None,
) -> Trace:
    """Return the allocation events in a snapshot of `torch.cuda.memory._snapshot()`.

    Sizes are those that were asked for, before the allocator rounded them: torch records `orig_size` and
    `requested_size` (c10/cuda/CUDACachingAllocator.cpp). A block counts as released when it may be used again
    (`free_completed`). Blocks that were handed out before the history began stand at the beginning.

    Args:
        snapshot: Whole, or made by `slim`.
        device_index: Of the device in the snapshot.
        batch: Micro-batch size, in samples.
        marks: (name, number of events since the history began).
        eval_batch: Validation batch size, where that phase is marked.

    Raises:
        UnknownHistoryError: It has another form.
    """
    try:
        entries = snapshot["device_traces"][device_index]
        blocks = [
            block
            for segment in snapshot["segments"]
            if segment.get("device", device_index) == device_index
            for block in segment["blocks"]
        ]
        active = {block["address"]: block["requested_size"] for block in blocks if block["state"].startswith("active")}
        events, inside, older, alive = _events(entries)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnknownHistoryError(
            f"The allocator's history has another form than expected: {type(error).__name__}: {error}."
        ) from error
    older += [size for address, size in sorted(active.items()) if address not in alive]
    before = [(ALLOCATE, -1 - number) for number in range(len(older))]
    numbered = [(sign, len(older) + number if number >= 0 else -1 - number) for sign, number in before + events]
    return Trace(
        batch=batch,
        signs=np.array([sign for sign, _ in numbered], dtype=np.int8),
        storages=np.array([number for _, number in numbered], dtype=np.int32),
        nbytes=np.array(older + inside, dtype=np.int64),
        born_in=np.array([0] * len(older) + [1] * len(inside), dtype=np.int16),
        op_names=(OUTSIDE, INSIDE),
        marks=tuple((name, len(older) + min(count, len(events))) for name, count in marks),
        eval_batch=eval_batch,
    )


def _events(entries: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, int]], list[int], list[int], set[int]]:
    """Return what a history says of storages.

    Returns:
        (sign, number) of each event, the bytes of storages from within the history by number, the bytes of those from
        before it that were freed, and the addresses of those from within that are alive at the end. A storage from
        before has the number -1, -2, ... for now.
    """
    inside: list[int] = []
    older: list[int] = []
    alive: dict[int, int] = {}
    events: list[tuple[int, int]] = []
    for entry in entries:
        action = entry["action"]
        if action not in KNOWN_ACTIONS:
            raise UnknownHistoryError(f"The allocator's history has an unknown action, {action!r}.")
        if action == "alloc":
            alive[entry["addr"]] = len(inside)
            events.append((ALLOCATE, len(inside)))
            inside.append(entry["size"])
        elif action == "free_completed":
            number = alive.pop(entry["addr"], None)
            if number is None:
                older.append(entry["size"])
                number = -len(older)
            events.append((FREE, number))
    return events, inside, older, set(alive)
