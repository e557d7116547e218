"""The allocator's own history, on snapshots written by hand after torch's description. No card was used here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bstune.tuner.memory import cuda_recorder
from bstune.tuner.memory.caching_allocator import replay
from bstune.tuner.memory.cuda_recorder import UnknownHistoryError, slim, trace_of
from bstune.tuner.memory.trace import TraceModel

MIB = 1 << 20


def entry(action: str, addr: int, size: int) -> dict[str, Any]:
    """Return one line of a history, as torch writes it."""
    return {"action": action, "addr": addr, "size": size, "stream": 0, "frames": [], "time_us": 1, "pool_id": (0, 0)}


def freed(addr: int, size: int) -> list[dict[str, Any]]:
    """Return the two lines of a release."""
    return [entry("free_requested", addr, size), entry("free_completed", addr, size)]


def segment(device: int, *blocks: tuple[int, int, str]) -> dict[str, Any]:
    """Return a segment of blocks (address, requested size, state)."""
    listed = [
        {"address": a, "size": -(-n // 512) * 512, "requested_size": n, "state": state, "frames": []}
        for a, n, state in blocks
    ]
    return {"device": device, "address": blocks[0][0], "total_size": 20 * MIB, "stream": 0, "blocks": listed}


def a_step(n: int) -> dict[str, Any]:
    """Return the snapshot after a step with n samples.

    Weights from before, activations, a workspace, and a gradient that stays.
    """
    entries = [
        entry("segment_alloc", 0x2000_0000, 20 * MIB),
        entry("alloc", 0x2000_0000, 1000 * n),
        entry("alloc", 0x2010_0000, 8 * MIB),  # A workspace of cuDNN: no tensor.
        *freed(0x2010_0000, 8 * MIB),
        entry("alloc", 0x2010_0000, 5000),
        *freed(0x2000_0000, 1000 * n),
        *freed(0x1000_0200, 300),  # It was there before the history began.
        entry("snapshot", 0, 0),
    ]
    segments = [
        segment(1, (0x1000_0000, 400, "active_allocated"), (0x1000_0200, 300, "inactive")),
        segment(1, (0x2000_0000, 1000 * n, "inactive"), (0x2010_0000, 5000, "active_allocated")),
        segment(0, (0x3000_0000, 77, "active_allocated")),
    ]
    return {"device_traces": [[entry("alloc", 1, 77)], entries], "segments": segments}


def test_a_history_is_read_as_a_trace() -> None:
    """Sizes as asked for, in the order of events; what was there before comes first, other cards are left out."""
    trace = trace_of(a_step(3), 1, batch=3, marks=[("train", 0), ("step_done", 4)])

    assert trace.nbytes.tolist() == [300, 400, 3000, 8 * MIB, 5000]
    assert list(zip(trace.signs.tolist(), trace.storages.tolist(), strict=True)) == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (-1, 3),
        (1, 4),
        (-1, 2),
        (-1, 0),
    ]
    assert trace.marks == (("train", 2), ("step_done", 6))
    assert trace.peak_bytes == 700 + 3000 + 8 * MIB


def test_histories_of_two_sizes_foretell_a_third() -> None:
    """To the byte: live as well as reserved."""
    model = TraceModel.fit([trace_of(a_step(n), 1, batch=n) for n in (3, 5)])
    truth = trace_of(a_step(20_000), 1, batch=20_000)

    assert model.peak_at(20_000) == truth.peak_bytes
    foretold = replay(*(array.tolist() for array in model.events_at(20_000)))
    assert foretold == replay(truth.signs.tolist(), truth.storages.tolist(), truth.nbytes.tolist())


def test_a_slim_snapshot_says_the_same() -> None:
    """What is kept for later is a fraction of the whole, and nothing of it is missing."""
    whole, small = a_step(4), slim(a_step(4), 1)

    assert len(str(small)) < len(str(whole)) / 1.5
    assert trace_of(small, 1, batch=4).nbytes.tolist() == trace_of(whole, 1, batch=4).nbytes.tolist()


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"device_traces": [], "segments": []},
        {"device_traces": [[{"action": "alloc"}]], "segments": []},
        {"device_traces": [[entry("teleport", 1, 2)]], "segments": []},
        {"device_traces": [[]], "segments": [{"blocks": [{"state": "active_allocated", "size": 4}]}]},
    ],
)
def test_another_form_is_not_guessed_at(snapshot: dict[str, Any]) -> None:
    """A release that tells it otherwise is named as such."""
    with pytest.raises(UnknownHistoryError, match="history has a"):
        trace_of(snapshot, 0, batch=1)


class FakeMemory:
    """The allocator behind torch.cuda: hands out what `a_step` shows, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace torch's functions."""
        self.recorded: list[dict[str, Any]] = []
        self.allocated, self.freed = 10, 4

        def record(
            enabled: str | None = "all", context: str | None = "all", max_entries: int = 0, clear_history: bool = False
        ) -> None:
            self.recorded.append({"enabled": enabled, "context": context, "clear_history": clear_history})

        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", record)
        monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: a_step(3))
        monkeypatch.setattr(torch.cuda, "memory_stats", self.stats)

    def stats(self, device: int) -> dict[str, int]:
        """Return what was handed out and taken back so far."""
        assert device == 1
        return {"allocation.all.allocated": self.allocated, "allocation.all.freed": self.freed}


def test_a_recording_marks_phases_by_counting_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks for no stack traces, which would cost more than the step."""
    memory = FakeMemory(monkeypatch)

    context = cuda_recorder.history(3, "cuda:1")
    assert context is not None
    with context as recorder:
        recorder.mark("train")
        memory.allocated, memory.freed = 13, 5
        recorder.mark("step_done")
    trace = recorder.trace(eval_batch=2)

    assert memory.recorded == [
        {"enabled": "all", "context": None, "clear_history": True},
        {"enabled": None, "context": "all", "clear_history": False},
    ]
    assert trace is not None
    assert trace.marks == (("train", 2), ("step_done", 6))
    assert (trace.batch, trace.eval_batch, trace.compiled) == (3, 2, False)


def test_a_step_that_fails_leaves_no_recording_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a trace of half a step."""
    memory = FakeMemory(monkeypatch)
    context = cuda_recorder.history(3, "cuda:1")
    assert context is not None

    with pytest.raises(RuntimeError, match="bug"), context as recorder:
        raise RuntimeError("bug")

    assert memory.recorded[-1]["enabled"] is None
    assert recorder.trace() is None


def test_a_history_in_an_unknown_form_gives_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement beside it is kept, and uses measured peaks."""
    FakeMemory(monkeypatch)
    monkeypatch.setattr(
        torch.cuda.memory, "_snapshot", lambda: {"device_traces": [[], [entry("teleport", 1, 2)]], "segments": []}
    )
    context = cuda_recorder.history(3, "cuda:1")
    assert context is not None

    with context as recorder:
        pass

    assert recorder.trace() is None


def test_where_there_is_no_history_the_other_recorder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU, and in a release with another interface."""
    assert cuda_recorder.history(3, "cpu") is None
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda whatever: None)
    assert cuda_recorder.history(3, "cuda:0") is None


def test_the_installed_torch_has_the_interface() -> None:
    """A release that changes it is noticed here, without a card."""
    assert cuda_recorder.history(3, "cuda:0") is not None
