"""Traces of real training steps, and what they say of sizes that were not run."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bstune.tuner.memory.dispatch_recorder import MarkingMeter, Recorder, recording
from bstune.tuner.memory.trace import DoesNotPairError, Trace, TraceModel, difference, fitted
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kinds import SMALL, Kind
from torch import nn
from torch.nn import functional

SIZES = (3, 5)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Kernels allocate scratch space per thread; one is enough here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def traced(kind: Kind, n: int, *, eval_n: int | None = None, accumulation_steps: int = 2) -> Trace:
    """Record two optimizer steps and one validation batch, from the building of the model on."""
    torch.manual_seed(0)
    with recording(n, "cpu") as recorder:
        recorder.mark("build")
        model = kind.model()
        optimizer = torch.optim.AdamW(model.parameters())
        recorder.mark("train")
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(accumulation_steps):
                x, y = kind.batch(n)
                (functional.cross_entropy(model(x), y) / accumulation_steps).backward()
            optimizer.step()
            recorder.mark("step_done")
        recorder.mark("validation")
        with torch.no_grad():
            x, y = kind.batch(eval_n or n)
            float(functional.cross_entropy(model.eval()(x), y))
    return recorder.trace(eval_batch=eval_n or n)


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
def test_two_small_traces_give_the_peak_at_any_size(kind: Kind) -> None:
    """To the byte for five kinds; within 1 % for the LSTM, whose kernel pads its workspace (3 % in torch 2.4)."""
    padding = 0.03 if torch.__version__.startswith("2.4.") else 0.01
    model = TraceModel.fit([traced(kind, n) for n in SIZES])

    for n in (37, 64):
        direct = traced(kind, n).peak_bytes
        assert model.peak_at(n) == pytest.approx(direct, rel=padding if kind.name == "lstm" else 0, abs=0)


def test_the_validation_batch_has_a_size_of_its_own() -> None:
    """Traced with one ratio of the two sizes, replayed with another."""
    cnn = SMALL[1]
    model = TraceModel.fit([traced(cnn, 3, eval_n=6), traced(cnn, 5, eval_n=10)])

    assert model.peak_at(4, 300) == traced(cnn, 4, eval_n=300).peak_bytes
    assert model.peak_at(4, 300) > 5 * model.peak_at(4, 4)


def test_the_recorder_agrees_with_torchs_own_tracker() -> None:
    """`MemTracker` is another way to the same number; it is private, so it serves as an oracle only."""
    mem_tracker = pytest.importorskip("torch.distributed._tools.mem_tracker", reason="torch 2.4 has no MemTracker yet")
    kind = SMALL[1]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model = kind.model()
        return model, torch.optim.AdamW(model.parameters()), *kind.batch(8)

    model, optimizer, x, y = parts()
    recorder = Recorder(8)
    recorder.watch(model, optimizer, x, y)
    with recorder:
        step(model, optimizer, x, y)
        step(model, optimizer, x, y)

    model, optimizer, x, y = parts()
    tracker = mem_tracker.MemTracker()
    tracker.track_external(model, optimizer, x, y)
    with tracker:
        step(model, optimizer, x, y)
        tracker.reset_mod_stats()  # It takes one call of a root module only.
        step(model, optimizer, x, y)
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]

    assert recorder.trace().peak_bytes == next(size for name, size in theirs.items() if str(name).endswith("Total"))


def test_what_a_step_must_contain() -> None:
    """The second step has optimizer state that the first had not; a second micro-batch meets resident gradients."""
    kind = SMALL[2]
    once = traced(kind, 4, accumulation_steps=1)
    twice = traced(kind, 4, accumulation_steps=2)
    first_step = dict(once.marks)["step_done"]  # The last of that name: the end of the second step.
    ends = [at for name, at in once.marks if name == "step_done"]
    live = np.cumsum(once.signs * once.nbytes[once.storages])

    assert first_step == ends[1]
    assert live[: ends[0]].max() < live[ends[0] : ends[1]].max()
    assert twice.peak_bytes > once.peak_bytes


def record(step: Callable[[int], object], n: int) -> Trace:
    """Record a function of the batch size."""
    with recording(n, "cpu") as recorder:
        kept = step(n)
    del kept
    return recorder.trace()


def similarities(n: int) -> object:
    """Return the loss of a batch against itself, as contrastive learning has it."""
    x = torch.randn(n, 16)
    return functional.cross_entropy(x @ x.T, torch.arange(n))


def test_a_square_of_the_batch_is_seen_in_two_traces() -> None:
    """A line through the two sizes would begin below zero, so it is no line."""
    model = TraceModel.fit([record(similarities, n) for n in (4, 7)])

    assert model.degree == 2
    for n in (64, 500):
        assert model.peak_at(n) == pytest.approx(record(similarities, n).peak_bytes, rel=0.01)


def test_a_third_trace_makes_the_square_exact() -> None:
    """And confirms, for a step without one, that it is a line."""
    model = TraceModel.fit([record(similarities, n) for n in (4, 7, 12)])
    line = TraceModel.fit([traced(SMALL[0], n) for n in (4, 7, 12)])

    assert model.peak_at(500) == record(similarities, 500).peak_bytes
    assert line.degree == 1
    assert line.checked
    assert line.residual_bytes == 0


def branch(n: int) -> object:
    """Do something else from 8 samples on."""
    x = torch.randn(n, 16)
    return (x * 2).sum() if n < 8 else ((x * 2) + 1).exp().sum()


def test_traces_across_a_branch_do_not_pair_and_say_where() -> None:
    """The message names the event at which the two first differ."""
    with pytest.raises(
        DoesNotPairError, match=r"micro-batch 5 takes and frees .* at 9: .* first differ at number \d+, .* by aten"
    ):
        TraceModel.fit([record(branch, 5), record(branch, 9)])


def test_sizes_on_the_larger_side_of_a_branch_are_used() -> None:
    """A trace that does not pair with the largest is left out; the others suffice."""
    model = TraceModel.fit([record(branch, n) for n in (5, 9, 16)])

    assert model.batches == (9, 16)
    assert model.peak_at(100) == record(branch, 100).peak_bytes


def test_one_trace_is_no_model() -> None:
    """`fitted` tells why instead of raising."""
    model, why = fitted([record(branch, 5), None])

    assert model is None
    assert why is not None
    assert "at least two" in why


def test_loaders_make_batches_unseen() -> None:
    """A loader works sample by sample, so its events depend on the batch size: batches are noted when they are used."""

    class Squares(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.ones(16) * index * index

    def step(n: int) -> object:
        return (next(iter(torch.utils.data.DataLoader(Squares(), batch_size=n))) * 2).sum()

    small, large = record(step, 3), record(step, 8)

    assert difference(small, large) is None
    assert large.nbytes.max() == 8 * 16 * 4


def test_reference_cycles_do_not_spoil_the_order() -> None:
    """The collector would free them at another event each time; it is off while a trace is taken, then on again."""

    def step(n: int) -> object:
        others: list[object] = [[i] for i in range(2 * n)]  # Each size makes another number of objects.
        for _ in range(50):
            cycle: list[object] = [torch.ones(n)]
            cycle.append(cycle)
        return others

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        assert difference(record(step, 3), record(step, 8)) is None
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)


def test_a_resized_storage_is_one_that_ends_and_another_that_begins() -> None:
    """So its size at every event stays right."""
    with Recorder(1) as recorder:
        x = torch.zeros(10)
        x.resize_(100)
    assert recorder.trace().peak_bytes == 400


def test_a_trace_travels_between_processes() -> None:
    """It is plain arrays; nothing of torch is needed to read it."""
    trace = traced(SMALL[0], 3)
    copy = pickle.loads(pickle.dumps(trace))

    assert difference(trace, copy) is None
    assert copy.peak_bytes == trace.peak_bytes
    assert copy.marks == trace.marks


def test_a_compiled_model_is_known_by_its_trace() -> None:
    """Under a recorder it runs eagerly, so what was seen is not what training does."""
    from bstune.tuner.memory.dispatch_recorder import compiled_module_seen

    assert not traced(SMALL[0], 3).compiled
    model = torch.compile(nn.Linear(2, 2), backend="eager")
    assert compiled_module_seen()
    trace = traced(SMALL[0], 3)
    assert trace.compiled
    del model
    _, why = fitted([trace, trace])
    assert why is not None
    assert "compiled" in why


def test_the_meter_is_told_and_the_trace_is_marked() -> None:
    """Phases and steps reach both."""
    told: list[object] = []

    class Meter:
        def phase(self, name: str) -> None:
            told.append(name)

        def step_done(self) -> None:
            told.append("step")

        def holds(self, **held: int) -> None:
            told.append(held)

    with recording(2, "cpu") as recorder:
        meter = MarkingMeter(Meter(), recorder)
        meter.phase("train")
        torch.ones(3)
        meter.step_done()
        meter.holds(parameters_bytes=1, gradients_bytes=2, optimizer_state_bytes=3)

    assert told == ["train", "step", {"parameters_bytes": 1, "gradients_bytes": 2, "optimizer_state_bytes": 3}]
    assert recorder.trace().marks == (("train", 0), ("step_done", 2))


# --- the replay against brute force, on events made by hand and at random ------------------------------------------


def by_hand(batch: int, events: list[tuple[int, int]], nbytes: list[int]) -> Trace:
    """Return a trace of (sign, storage) events."""
    return Trace(
        batch=batch,
        signs=np.array([sign for sign, _ in events], dtype=np.int8),
        storages=np.array([storage for _, storage in events], dtype=np.int32),
        nbytes=np.array(nbytes, dtype=np.int64),
        born_in=np.zeros(len(nbytes), dtype=np.int16),
        op_names=("op",),
    )


def test_a_step_made_by_hand() -> None:
    """100 bytes of weights; 50 of optimizer scratch after activations of 10 a sample: two lines, crossing at 5."""
    events = [(1, 0), (1, 1), (-1, 1), (1, 2), (-1, 2)]
    model = TraceModel.fit([by_hand(n, events, [100, 10 * n, 50]) for n in (2, 3)])

    assert [model.peak_at(n) for n in (1, 5, 6, 100)] == [150, 150, 160, 1100]


@st.composite
def random_steps(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return events in which storages live and die at random, and (constant, slope) of each storage."""
    lines = draw(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=12))
    events: list[tuple[int, int]] = []
    alive: list[int] = []
    born = 0
    while born < len(lines):
        if len(alive) > 0 and draw(st.booleans()):
            events.append((-1, alive.pop(draw(st.integers(0, len(alive) - 1)))))
        else:
            events.append((1, born))
            alive.append(born)
            born += 1
    return events, lines


@settings(max_examples=200, deadline=None)
@given(random_steps(), st.integers(1, 5000))
def test_the_replay_equals_brute_force(step: tuple[list[tuple[int, int]], list[tuple[int, int]]], size: int) -> None:
    """Whatever the order of birth and death."""
    events, lines = step
    model = TraceModel.fit([by_hand(n, events, [a + b * n for a, b in lines]) for n in SIZES])
    live = peak = 0
    for sign, storage in events:
        live += sign * (lines[storage][0] + lines[storage][1] * size)
        peak = max(peak, live)

    assert model.peak_at(size) == peak
