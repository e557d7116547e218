"""The probe on real processes and real memory: what it returns was run, and what it calls too large is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.probe_results import Attempt, ProbeResult
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.probe import STABLE_MALLOC
from bstune.tuner.probing.run import run_probe
from bstune.tuner.report.plot import draw_probe
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

MIB = 1 << 20
MODEL = """
import os, signal, time
from pathlib import Path
import bstune, torch
from torch import nn
from torch.utils.data import TensorDataset

N = 2000
data = TensorDataset(torch.zeros(N, 4), torch.arange(N) % 3)
held = []

def net():
    return nn.Linear(4, 3)

def batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def mib_per_sample(model, batch):
    held.clear()
    held.append(torch.ones(len(batch[0]) << 18))  # Exactly 1 MiB a sample.
    return loss_of(model, batch)

def hungry_validation(model, batch):
    held.clear()
    held.append(torch.ones(len(batch[0]) << 21))  # 8 MiB a sample.
    return loss_of(model, batch)

def slow_validation(model, batch):
    time.sleep(0.001 * len(batch[0]))
    return loss_of(model, batch)

def misbehaving(model, batch):
    # Read at each step: one template serves all cases.
    does, n = Path(__file__).with_name("does").read_text(), len(batch[0])
    if does == "fail at one" and n == 1:
        raise RuntimeError("squeezed one dimension too many")
    if does == "have a bug":
        print("about to fail")
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    if does == "get killed" and n > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "have a limit" and n > 100:
        raise RuntimeError("CUDA error: invalid configuration argument")
    if does == "take time":
        time.sleep(0.003 * n)
    if does == "take long":
        time.sleep(0.02 * n)
    return loss_of(model, batch)

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.zeros(4), 0

class Reads(Slow):
    def __len__(self):
        return 256

    def __getitem__(self, index):
        time.sleep(0.0005)
        return torch.zeros(4), 0

def steady(model, batch):
    time.sleep(0.02 + 0.001 * len(batch[0]))
    return loss_of(model, batch)

def big():
    return nn.Linear(8192, 8192)  # 256 MiB of parameters.

plain = bstune.Supervised(net, data, data)
@bstune.objective(n_samples=N)
def own_validation(trial):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=trial.learning_rate)
    for _ in range(0, trial.max_samples, trial.micro_batch_size):
        optimizer.step()
    held.clear()
    held.append(torch.ones((600 if trial.micro_batch_size > 150 else 1) << 18))  # A leap that no line foresees.
    trial.report(1.0, samples=trial.max_samples)

memory = bstune.Supervised(net, data, data, training_step=mib_per_sample, validation_step=loss_of)
validation = bstune.Supervised(net, data, data, validation_step=hungry_validation)
slow = bstune.Supervised(net, data, data, validation_step=slow_validation)

def looped(trial, step_s):
    model, samples = net(), 0
    time.sleep(0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate)
    while samples < trial.max_samples:
        for _ in range(trial.accumulation_steps):
            n = trial.micro_batch_size
            loss_of(model, (torch.zeros(n, 4), torch.zeros(n, dtype=torch.long))).backward()
        time.sleep(step_s)
        optimizer.step()
        samples += trial.global_batch_size
    time.sleep(0.03)
    trial.report(val_loss=1.0, samples=samples)

@bstune.objective(n_samples=1000)
def loop(trial):
    looped(trial, 0)

@bstune.objective(n_samples=1000)
def slow_loop(trial):
    looped(trial, 0.05)

norm = bstune.Supervised(batch_norm, data, data)
misbehaves = bstune.Supervised(net, data, data, training_step=misbehaving)
waits = bstune.Supervised(net, Slow(), data)
reads = bstune.Supervised(net, Reads(), data, training_step=steady)
weights = bstune.Supervised(big, data, data, training_step=lambda model, batch: model.weight.sum())
"""
BASE_MIB = 330
"""Well above what the interpreter, torch and the template hold in memory of their own."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an objective for each case."""
    path = tmp_path_factory.mktemp("probe") / "model.py"
    path.write_text(MODEL)
    return path


def probe_of(path: Path, name: str, *, memory_mib: int | None = None, **options: Any) -> ProbeResult:
    """Probe one objective of the file on CPU."""
    with Host(bstune.load(f"{path}:{name}"), device="cpu", memory_bytes=memory_mib and memory_mib * MIB) as host:
        return run_probe(host, **options)


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Host]:
    """A small model that takes next to nothing."""
    with Host(bstune.load(f"{path}:plain"), device="cpu") as host:
        yield host


@pytest.fixture(scope="module")
def misbehaving(path: Path) -> Iterator[Host]:
    """A model whose step does what the file `does` says."""
    with Host(bstune.load(f"{path}:misbehaves"), device="cpu") as host:
        yield host


def probe_to(path: Path, host: Host, does: str, **options: Any) -> ProbeResult:
    """Probe the model that misbehaves, and let it do this."""
    path.with_name("does").write_text(does)
    return run_probe(host, **options)


@pytest.fixture(scope="module")
def tight(path: Path) -> Iterator[tuple[Host, ProbeResult, list[Attempt]]]:
    """A model that takes 1 MiB a sample on a budget that ends well before the data does."""
    seen: list[Attempt] = []
    # With malloc's own threshold, a size at the very edge may fail once and fit when it is run again.
    options: dict[str, Any] = {"memory_bytes": (BASE_MIB + 200) * MIB, "environment": STABLE_MALLOC}
    with Host(bstune.load(f"{path}:memory"), device="cpu", **options) as host:
        yield host, run_probe(host, on_attempt=seen.append), seen


def test_the_answer_fits_and_its_successors_do_not(tight: tuple[Host, ProbeResult, list[Attempt]]) -> None:
    """At 1 MiB a sample the answer is run again, and a size 2 % above it is over the budget: both by measuring."""
    host, result, _ = tight
    peaks = []
    for size in (result.micro_batch_size, result.micro_batch_size + max(6, result.micro_batch_size // 50)):
        worker = host.start(messages.Measure(MeasureSpec(size, 8, 2, 2, 0)))
        answer = host.answer(worker)
        worker.end()
        peaks.append(answer.reading.peak_bytes)

    assert result.limited_by == "memory"
    assert result.proof in ("bracket", "model", "noise")
    assert peaks[0] <= result.budget_bytes + 2 * MIB
    assert peaks[1] > result.budget_bytes


def test_every_size_marked_ok_was_trained(tight: tuple[Host, ProbeResult, list[Attempt]]) -> None:
    """Two steps at least for each, three for the answer, and no size at which training failed up to it.

    At the very edge validation may be over the budget: the same size is then run again with a smaller batch for that.
    """
    _, result, seen = tight

    assert tuple(seen) == result.attempts
    assert all(attempt.steps >= 2 for attempt in result.attempts if attempt.outcome == "ok")
    assert max(attempt.steps for attempt in result.attempts if attempt.size == result.micro_batch_size) >= 3
    failed = [attempt for attempt in result.attempts if attempt.outcome == "oom"]
    assert all(attempt.size > result.micro_batch_size for attempt in failed if attempt.phase != "validation")
    for before, after in itertools.pairwise(result.attempts):
        if before in failed and before.phase == "validation":
            assert after.size == before.size
            assert (after.eval_batch_size or 0) < (before.eval_batch_size or 0)


def test_memory_line_finds_the_slope(tight: tuple[Host, ProbeResult, list[Attempt]]) -> None:
    """1 MiB a sample, a peak within the budget, and a prediction that is compared with what was measured."""
    _, result, _ = tight

    assert result.memory_line is not None
    assert result.memory_line.bytes_per_sample == pytest.approx(MIB, rel=0.1)
    assert result.memory_line.measured_bytes == result.peak_bytes <= result.budget_bytes < result.usable_bytes
    assert result.memory_line.relative_error is not None
    assert abs(result.memory_line.relative_error) < 0.05
    assert result.memory_by_category is not None
    assert result.memory_by_category.parameters_bytes == 60
    assert (
        result.memory_by_category.optimizer_state_bytes == 2 * 60 + 2 * 4
    )  # AdamW: two moments and a step counter each.


def test_probe_survives_json(tight: tuple[Host, ProbeResult, list[Attempt]]) -> None:
    """Nothing is lost on a round trip."""
    result = tight[1]

    assert ProbeResult.from_dict(json.loads(result.to_json())) == result


@pytest.mark.parametrize(
    ("options", "size", "limited_by"),
    [
        ({}, 2000, "dataset"),
        ({"max_batch": 100, "multiple_of": 8}, 96, "max_batch"),
        ({"max_batch": 5000, "multiple_of": 3}, 1998, "dataset"),
        ({"min_batch": 7, "max_batch": 7}, 7, "max_batch"),
    ],
)
def test_bounds_are_kept_and_named(plain: Host, options: dict[str, Any], size: int, limited_by: str) -> None:
    """Data set, maximum and multiples bound the answer, and the result says which of them did."""
    result = run_probe(plain, **options)

    assert (result.micro_batch_size, result.limited_by, result.proof) == (size, limited_by, "cap")
    assert all(attempt.size <= size for attempt in result.attempts)


@pytest.mark.parametrize("options", [{"min_batch": 3000}, {"max_batch": 7, "multiple_of": 8}])
def test_bounds_without_a_size_between_them_are_an_argument_error(plain: Host, options: dict[str, Any]) -> None:
    """Nothing is run for them."""
    with pytest.raises(bstune.ArgumentError, match=r"expected"):
        run_probe(plain, **options)


def test_validation_that_takes_more_than_training_gets_a_smaller_batch(path: Path) -> None:
    """Validation takes 8 MiB a sample and training none: all data train, validation batches shrink, and it is said."""
    result = probe_of(path, "validation", memory_mib=BASE_MIB + 400)

    assert result.micro_batch_size == 2000
    assert result.eval_batch_size is not None
    assert 5 <= result.eval_batch_size <= 60
    assert {attempt.phase for attempt in result.attempts if attempt.outcome == "oom"} == {"validation"}


def test_a_loop_that_validates_in_batches_of_its_own_is_not_asked_for_smaller_ones(path: Path) -> None:
    """It would take as much memory each time: what does not fit in validation calls for a smaller micro-batch."""
    result = probe_of(path, "own_validation", memory_mib=BASE_MIB + 400)

    too_large = [attempt.size for attempt in result.attempts if attempt.outcome == "oom"]
    assert 1 < result.micro_batch_size <= 150
    assert too_large
    assert len(set(too_large)) == len(too_large)


def test_batch_norm_at_one_is_a_limit_and_not_a_bug(path: Path) -> None:
    """With nothing but size 1 allowed there is no answer, and memory is not blamed."""
    with Host(bstune.load(f"{path}:norm"), device="cpu") as host:
        with pytest.raises(
            bstune.ObjectiveError, match=r"memory is not why: ValueError: Expected more than 1 value per channel"
        ):
            run_probe(host, max_batch=1)
        assert run_probe(host, max_batch=2).micro_batch_size == 2


def test_any_failure_at_one_only_is_a_limit(path: Path, misbehaving: Host) -> None:
    """A loss that squeezes away a batch of one fails at 1 and trains at 2."""
    with pytest.raises(bstune.ObjectiveError, match="memory is not why: RuntimeError: squeezed"):
        probe_to(path, misbehaving, "fail at one", max_batch=1)


def test_a_bug_is_shown_as_a_bug(path: Path, misbehaving: Host) -> None:
    """The user's traceback and last output, at once, and no word of memory."""
    with pytest.raises(
        bstune.ObjectiveError, match=r"training at micro-batch \d: RuntimeError: mat1 and mat2"
    ) as caught:
        probe_to(path, misbehaving, "have a bug", max_batch=1)

    assert "in misbehaving" in (caught.value.traceback or "")
    assert caught.value.output == "about to fail"


def test_a_killed_process_counts_as_out_of_memory(path: Path, misbehaving: Host) -> None:
    """The kernel ends what takes too much with SIGKILL: the answer is the largest size that lived."""
    result = probe_to(path, misbehaving, "get killed")

    assert (result.micro_batch_size, result.limited_by, result.proof) == (20, "memory", "bracket")


def test_a_size_limit_is_not_memory(path: Path, misbehaving: Host) -> None:
    """A kernel that takes 100 samples at most bounds the answer, as a limit."""
    result = probe_to(path, misbehaving, "have a limit")

    assert (result.micro_batch_size, result.limited_by) == (100, "max_batch")
    assert {attempt.outcome for attempt in result.attempts} == {"ok", "limit"}


def test_time_limit_returns_the_best_size_so_far(path: Path, misbehaving: Host) -> None:
    """Each sample takes 20 ms: 3 s are over long before the data set is reached, and the size returned was run."""
    result = probe_to(path, misbehaving, "take long", timeout=3)

    assert result.limited_by == "timeout"
    assert result.micro_batch_size < 2000
    assert any(attempt.size == result.micro_batch_size and attempt.outcome == "ok" for attempt in result.attempts)


def test_weights_that_do_not_fit_are_told_in_bytes(path: Path) -> None:
    """256 MiB of weights, as much again of gradients, on 300 MiB: one attempt, then needed against allowed."""
    with pytest.raises(bstune.NothingFitsError, match=r"needs .* GiB.*the budget on cpu is 0.28 GiB") as caught:
        probe_of(path, "weights", memory_mib=300)

    assert caught.value.needed_bytes is not None
    assert caught.value.needed_bytes >= 512 * MIB > caught.value.budget_bytes


def test_a_slow_loader_is_seen_and_said(path: Path) -> None:
    """Reading takes 2 ms a sample and a step far less: the loader slows training down."""
    result = probe_of(path, "waits")

    assert result.loader is not None
    assert result.loader.bound
    assert result.loader.wait_share > 0.5
    assert result.loader.samples_per_s_without > 1.5 * max(row.samples_per_s for row in result.throughput)
    assert any("data loader" in warning for warning in result.warnings)


def test_a_loader_is_judged_where_it_matters(path: Path) -> None:
    """A batch of 4 waits for 2 of 26 ms; where throughput stops rising a step waits for a quarter of its time."""
    result = probe_of(path, "reads")

    assert result.loader is not None
    assert result.loader.wait_share > 0.18
    assert any("data loader" in warning for warning in result.warnings)


def test_sizes_that_bring_no_speed_are_not_timed(path: Path, misbehaving: Host) -> None:
    """A step takes 3 ms a sample at any size: the answer of 128 is not timed, and timing takes no longer."""
    result = probe_to(path, misbehaving, "take time", max_batch=128)

    timed = [attempt for attempt in result.attempts if attempt.steps > 3]
    found_s = sum(attempt.seconds for attempt in result.attempts if attempt.steps <= 3)
    sizes = {row.batch_size for row in result.throughput}
    assert result.micro_batch_size == 128
    assert sizes == {attempt.size for attempt in timed}
    assert {4, 32} <= sizes
    assert max(sizes) < 128
    assert sum(attempt.seconds for attempt in timed) <= max(1.0, found_s)
    assert result.step_time_line is not None
    assert result.step_time_line.step_s(128) == pytest.approx(0.003 * 128, rel=0.3)


@pytest.mark.parametrize("largest", [5, 300])
def test_validation_is_timed(path: Path, largest: int) -> None:
    """It takes 1 ms a sample and a step next to nothing, also where the answer is so small that it was traced."""
    result = probe_of(path, "slow", max_batch=largest)

    assert result.validation_s_per_sample is not None
    assert 0.001 <= result.validation_s_per_sample < 0.01
    assert ProbeResult.from_dict(json.loads(result.to_json())) == result
    before = {name: value for name, value in result.to_dict().items() if name != "validation_s_per_sample"}
    assert ProbeResult.from_dict(before).validation_s_per_sample is None


@pytest.mark.parametrize(("most", "sizes"), [(4, [2, 4]), (2, [2])])
def test_where_few_samples_fit_a_line_of_step_times_is_known_all_the_same(
    path: Path, most: int, sizes: list[int]
) -> None:
    """As of a large model. On less than two samples a model may not train."""
    result = probe_of(path, "norm", max_batch=most)

    assert [row.batch_size for row in result.throughput] == sizes
    assert (result.step_time_line is not None) == (len(sizes) > 1)


@pytest.mark.parametrize("objective", ["loop", "slow_loop"])
def test_start_and_validation_of_a_users_loop_are_timed(path: Path, objective: str) -> None:
    """Until its first step, and from its last to its report: each is the least of several, and no part of a step.

    Where steps are slow, a run that times them ends before it validates.
    """
    result = probe_of(path, objective, max_batch=64)

    assert result.start_s is not None
    assert result.start_s >= 0.05
    assert result.validation_s is not None
    assert result.validation_s >= 0.03
    assert min(row.s_per_step for row in result.throughput) < (0.03 if objective == "loop" else 0.08)


def test_a_repeated_probe_runs_its_size_once(path: Path, tmp_path: Path) -> None:
    """The stored result comes back after one attempt; `fresh`, other settings or a changed file probe again."""
    storage, target = f"sqlite:///{tmp_path / 'p.db'}", f"{path}:plain"
    options: dict[str, Any] = {"device": "cpu", "storage": storage, "max_batch": 64}
    first = bstune.probe(bstune.load(target), **options)
    seen: list[Attempt] = []

    again = bstune.probe(bstune.load(target), on_attempt=seen.append, **options)
    other = bstune.probe(bstune.load(target), **{**options, "max_batch": 32})
    fresh = bstune.probe(bstune.load(target), fresh=True, **{**options, "max_batch": 32})

    assert [(attempt.size, attempt.outcome, attempt.steps) for attempt in seen] == [(64, "ok", 3)]
    assert (again.cached, again.micro_batch_size, again.throughput) == (True, 64, first.throughput)
    assert again.validation_s_per_sample == first.validation_s_per_sample is not None
    assert [(result.cached, result.micro_batch_size) for result in (first, other, fresh)] == [
        (False, 64),
        (False, 32),
        (False, 32),
    ]
    assert other.settings["max_batch"] == 32  # Else it would say that a search can use no larger size.


def test_stable_malloc_says_what_to_export(path: Path) -> None:
    """Two probes of one size measure the same peak to within half a MiB, and the variable stands in the result."""
    options: dict[str, Any] = {"device": "cpu", "storage": "sqlite:///:memory:", "max_batch": 48, "malloc": "stable"}
    one, two = (bstune.probe(bstune.load(f"{path}:memory"), **options) for _ in range(2))

    assert one.environment == {"MALLOC_MMAP_THRESHOLD_": "65536"}
    assert abs(one.peak_bytes - two.peak_bytes) < MIB / 2


def test_picture_of_a_probe(tight: tuple[Host, ProbeResult, list[Attempt]], tmp_path: Path) -> None:
    """A PNG with both lines; a name that is no picture is one clear error."""
    draw_probe(tight[1], tmp_path / "probe.png")

    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(bstune.BstuneError, match=r"Name a file such as probe.png"):
        draw_probe(tight[1], tmp_path / "probe.xyz")
