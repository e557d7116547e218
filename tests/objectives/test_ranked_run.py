"""Several processes that train one model: they learn what one would, and what becomes of one becomes of all."""

from __future__ import annotations

import math
import runpy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import psutil
import pytest
from bstune.tests.objectives import small
from bstune.tests.objectives.small import N, spec_of, supervised
from bstune.tuner.core.trials import MeasureSpec, TrialReport, TrialSpec, Verdict
from bstune.tuner.report.text import search_text
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host
from bstune.tuner.workers.template import Died

MODEL = """
import os, signal, time
import bstune, torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

N = 96
data = TensorDataset(torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3)

class Net(nn.Module):
    def __init__(self, does="train"):
        super().__init__()
        self.layer, self.unused, self.does, self.steps = nn.Linear(4, 3), nn.Linear(1, 1), does, 0

def other_rank():
    return dist.is_initialized() and dist.get_rank() == 1

def misbehave(does):
    if does == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if does == "mistake":
        raise KeyError("my own mistake")
    if does == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "exit":
        os._exit(7)
    if does == "slow":
        time.sleep(0.1)
        time.time = time.monotonic = time.perf_counter = lambda: 0.0  # Its clocks stand still.

def step(model, batch):
    model.steps += model.training
    does, _, when = model.does.partition(" in ")
    fails = other_rank() and (not model.training if when == "validation" else model.steps == int(when or 1))
    if fails or (does == "slow" and other_rank() and model.training):
        misbehave(does)
    if other_rank() and len(batch[0]) > 8 and does == "8 fit":
        misbehave("memory")
    inputs = nn.functional.dropout(batch[0], 0.5, model.training and does == "drop out")
    loss = nn.functional.cross_entropy(model.layer(inputs), batch[1])
    return loss * float("nan") if fails and does == "nan" else loss

def ranks(n):
    return bstune.Supervised(
        Net, data, data, training_step=step, epochs=4, world_size=n, optimizer=lambda p, lr: torch.optim.SGD(p, lr)
    )

one, two, three = ranks(1), ranks(2), ranks(3)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model of which the second rank does what a parameter says."""
    path = tmp_path_factory.mktemp("ranks") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def host(path: Path) -> Iterator[Host]:
    """The worker processes of that file."""
    with Host(bstune.load(f"{path}:two"), device="cpu") as host:
        yield host


def split(n_ranks: int, **options: Any) -> TrialSpec:
    """Return a run of four micro-batches of 4 a step, dealt out to so many ranks."""
    return spec_of(micro_batch_size=4, accumulation_steps=4 // n_ranks, world_size=n_ranks, **options)


def run(host: Host, work: messages.Train | messages.Measure, verdict: Verdict = "go") -> tuple[list[TrialReport], Any]:
    """Do a job to its end, which no fault may keep from coming, and return its reports and how it ended."""
    reports: list[TrialReport] = []
    worker = host.start(work)
    try:
        while isinstance(said := host.answer(worker, 60), TrialReport):
            reports.append(said)
            worker.reply(verdict)
        assert said is not None, "it hangs"
        return reports, said
    finally:
        worker.end()


def losses(host: Host, spec: TrialSpec, verdict: Verdict = "go") -> list[float]:
    """Return the losses that a run reports."""
    return [report.val_loss for report in run(host, messages.Train(spec), verdict)[0]]


def test_two_ranks_learn_what_one_does_with_twice_the_accumulation(path: Path, host: Host, tmp_path: Path) -> None:
    """Up to rounding, validation included; also when the run is stopped at the half and goes on."""
    half = str(tmp_path / "half.pt")
    alone = small.run(runpy.run_path(str(path))["one"], split(1))

    whole = losses(host, split(2))
    begun = losses(host, split(2, checkpoint_to=half), "stop")
    rest = losses(host, split(2, resume_from=half, start_samples=2 * N))

    assert whole == pytest.approx([report.val_loss for report in alone], rel=1e-5)
    assert len(begun) == 1
    assert begun + rest == pytest.approx(whole, rel=1e-9)


def test_a_run_that_goes_on_draws_what_each_rank_would_have_drawn(host: Host, tmp_path: Path) -> None:
    """Dropout of both ranks: the losses are those of a run that was not stopped, to the last bit."""
    half = str(tmp_path / "half.pt")
    drops = {"params": {"does": "drop out"}}

    whole = losses(host, split(2, **drops))
    begun = losses(host, split(2, **drops, checkpoint_to=half), "stop")

    assert begun + losses(host, split(2, **drops, resume_from=half, start_samples=2 * N)) == whole


def test_gradient_noise_is_measured_by_all_ranks(path: Path, host: Host) -> None:
    """On the samples that one process would take, each rank on its part: the same figures, up to rounding."""
    wanted = {"noise_samples": 600}
    alone = small.run(runpy.run_path(str(path))["one"], split(1, **wanted))

    reports, _ = run(host, messages.Train(split(2, **wanted)))

    measured = [point for report in reports for point in report.noise]
    assert [vars(point) for point in measured] == [
        pytest.approx(vars(point), rel=1e-3) for report in alone for point in report.noise
    ]
    assert len(measured) >= 2
    assert all(point.covariance_trace for point in measured)


def test_so_do_three(path: Path) -> None:
    """All are forked before a thread is started, which a fork would lose."""
    sizes = {"global_batch_size": 12, "micro_batch_size": 4}
    alone = small.run(runpy.run_path(str(path))["one"], spec_of(**sizes, accumulation_steps=3))

    with Host(bstune.load(f"{path}:three"), device="cpu") as host:
        assert losses(host, spec_of(**sizes, accumulation_steps=1, world_size=3)) == pytest.approx(
            [report.val_loss for report in alone], rel=1e-5
        )


@pytest.mark.parametrize(
    ("does", "outcome"),
    [
        ("memory in 1", "oom"),
        ("memory in 3", "oom"),
        ("memory in validation", "oom"),
        ("mistake in 1", "error"),
        ("mistake in validation", "error"),
        ("exit in 2", 7),
        ("killed in 1", -9),
        ("killed in 3", -9),
    ],
)
def test_what_becomes_of_one_rank_becomes_of_all(host: Host, does: str, outcome: str | int) -> None:
    """No rank waits for one that is gone; the reason is that one's own, and nothing is left running."""
    before = set(below())
    for work in (
        messages.Train(split(2, params={"does": does})),
        messages.Measure(MeasureSpec(4, 4, 1, 3, seed=0, params={"does": does}), False),
    ):
        _, ended = run(host, work)

        if isinstance(outcome, int):
            assert isinstance(ended, Died)
            assert ended.exit_code == outcome
        else:
            assert isinstance(ended, messages.Failure)
            assert ended.outcome == outcome
            assert ("out of memory" if outcome == "oom" else "my own mistake") in ended.message
    wait_for_none_but(before)


def wait_for_none_but(before: set[psutil.Process]) -> None:
    """Wait until no other process than these is left below this one."""
    deadline_s = time.monotonic() + 20
    while (left := set(below()) - before) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not left


def below() -> list[psutil.Process]:
    """Return the processes below this one."""
    return psutil.Process().children(recursive=True)


def test_a_stop_reaches_a_rank_that_is_slower(host: Host) -> None:
    """It is told at the end of the step, and both are gone."""
    before = set(below())
    reports, _ = run(host, messages.Train(split(2, points=(32, 4 * N), params={"does": "slow"})), "stop")

    assert [report.samples for report in reports] == [32]
    wait_for_none_but(before)


def test_a_loss_of_one_rank_that_is_no_number_ends_the_run(host: Host) -> None:
    """All know it in the step in which it came."""
    reports, _ = run(host, messages.Train(split(2, params={"does": "nan in 4"})), "stop")

    assert [report.samples for report in reports] == [16 * 2]  # Its fourth micro-batch ends the second step.
    assert math.isnan(reports[0].val_loss)


def test_memory_is_of_both_and_seconds_are_those_of_the_slower(host: Host) -> None:
    """Peaks add up, and a step has ended when the last rank has ended it, whose own clocks do not tell."""
    _, said = run(host, messages.Measure(MeasureSpec(8, 8, 1, 3, seed=0, params={"does": "slow"}), False))

    assert 1.5 < said.reading.peak_bytes / said.reading.start_bytes < 2.5  # It started as one.
    assert min(said.reading.step_s) >= 0.1
    assert said.notes.samples == 3 * 2 * 8


def test_a_search_takes_what_fits_in_every_rank(path: Path, tmp_path: Path) -> None:
    """One rank has less memory: its size is the answer, and batches are its multiples times the ranks, exactly."""
    result = bstune.search(
        bstune.load(f"{path}:two"),
        space={"batch_size": [16, 48], "learning_rate": [0.1], "does": "8 fit"},
        n_trials=3,
        device="cpu",
        storage=f"sqlite:///{tmp_path}/bstune.db",
    )

    best = result.recommendation
    assert result.probe is not None
    assert (result.probe.micro_batch_size, result.limits.memory) == (8, 16)
    assert best.world_size == 2
    assert {(each.global_batch_size, each.micro_batch_size, each.accumulation_steps) for each in result.records} == {
        (16, 8, 1),
        (48, 8, 3),
    }
    assert all(each.state in ("complete", "pruned") for each in result.records)
    assert "# In each of 2 processes, with DistributedDataParallel(model)" in search_text(result)


def test_where_it_cannot_be_done_it_is_said() -> None:
    """On another device than the CPU, beside threads that a fork would lose, and with less data than ranks."""
    objective = supervised(world_size=2)
    measure = MeasureSpec(4, 4, 1, 3, seed=0)
    with pytest.raises(bstune.ObjectiveError, match=r"the device is cuda:0\. Use --device cpu, or search a script"):
        objective.measure(measure, "cuda:0", meter=_Silent())
    ended = threading.Event()
    threading.Thread(target=ended.wait).start()
    with pytest.raises(bstune.ObjectiveError, match="which is not safe"):
        objective.measure(measure, "cpu", meter=_Silent())
    ended.set()
    with pytest.raises(bstune.ObjectiveError, match=f"{N} samples, fewer than world_size={N + 1}"):
        supervised(world_size=N + 1).prepare()
    with pytest.raises(bstune.ArgumentError, match="world_size=0: expected the number of processes"):
        supervised(world_size=0)


class _Silent:
    """A meter that nobody reads."""

    def phase(self, name: str) -> None: ...

    def step_done(self) -> None: ...

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None: ...
