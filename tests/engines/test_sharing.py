"""Trials side by side where their number was left open: as many as have cores and memory, and each within its share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.probe_results import Attempt, DeviceInfo, MemoryLine, ProbeResult
from bstune.tuner.core.progress import Progress
from bstune.tuner.engines.sharing import share, smaller_size
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.workers.fork_server import Host

MIB = 1 << 20
MODEL = """
import bstune, torch
from torch import nn
from torch.utils.data import TensorDataset

data = TensorDataset(torch.zeros(2000, 4), torch.arange(2000) % 3)
held = []

def step(model, batch):
    held.clear()
    held.append(torch.ones(len(batch[0]) << 18))  # Exactly 1 MiB a sample.
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def plain(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

objective = bstune.Supervised(lambda: nn.Linear(4, 3), data, data, training_step=step, validation_step=plain)
small = bstune.Supervised(lambda: nn.Linear(4, 3), data, data, epochs=2)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model that takes 1 MiB a sample, and one that takes next to nothing."""
    path = tmp_path_factory.mktemp("sharing") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def host(path: Path) -> Iterator[Host]:
    """Its worker processes, with one thread each, on 2,400 MiB."""
    with Host(bstune.load(path), device="cpu", threads=1, memory_bytes=2400 * MIB) as host:
        yield host


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a job may have."""
    monkeypatch.setattr("bstune.tuner.engines.sharing.usable_cores", lambda: 4)


def probe_of(micro_batch_size: int, peak_mib: int, *, mib_per_sample: float = 1.0, knee: int = 16) -> ProbeResult:
    """Return what a probe of all 2,400 MiB might have said."""
    line = MemoryLine(300 * MIB, mib_per_sample * MIB, None, peak_mib * MIB, None)
    return known_probe(
        micro_batch_size,
        usable_bytes=2400 * MIB,
        budget_bytes=2280 * MIB,
        peak_bytes=peak_mib * MIB,
        memory_line=line,
        knee_batch_size=knee,
    )


@pytest.mark.parametrize(
    ("probe", "jobs", "micro_batch_size", "tried"),
    [
        (probe_of(100, 400), 4, 100, []),  # Four times its peak is there.
        (probe_of(1900, 2200), 4, 256, [256]),  # A share of 600 MiB holds so many, and 64 would do.
        (probe_of(1900, 2200, knee=100), 2, 512, [512]),  # Batches of 400 are to run whole.
        (probe_of(1900, 2200, knee=200), 1, 1900, []),  # Of 800 they do not, in half of the memory.
        (probe_of(1900, 2200, mib_per_sample=0.4), 1, 1900, [512, 1024]),  # They need more than the line says.
    ],
)
def test_as_many_trials_as_have_cores_and_memory(
    host: Host, probe: ProbeResult, jobs: int, micro_batch_size: int, tried: list[int]
) -> None:
    """A smaller micro-batch is one that ran within the share; where the line promised too much, fewer trials run."""
    seen: list[Attempt] = []

    n, shared = share(host, probe, seed=0, on_attempt=seen.append)

    assert (n, host.jobs, shared.micro_batch_size) == (jobs, jobs, micro_batch_size)
    assert [attempt.size for attempt in seen] == tried
    assert shared.peak_bytes <= shared.budget_bytes
    assert shared.usable_bytes == 2400 * MIB // jobs


def test_a_card_holds_one_trial(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cores there are."""
    monkeypatch.setattr(host, "device_info", DeviceInfo("cuda", "a card"))

    assert share(host, probe_of(100, 400), seed=0, on_attempt=lambda _: None) == (1, probe_of(100, 400))


def test_a_line_that_is_no_line_leads_to_no_size() -> None:
    """Where memory does not grow with the size, nothing is known, or a share holds not even the weights."""
    probe = probe_of(1900, 2200)

    assert smaller_size(probe, 570 * MIB) == 256
    assert smaller_size(probe, 290 * MIB) is None
    assert smaller_size(probe_of(1900, 2200, mib_per_sample=0.0), 570 * MIB) is None
    assert smaller_size(dataclasses.replace(probe, memory_line=None), 570 * MIB) is None
    assert smaller_size(dataclasses.replace(probe, knee_batch_size=None), 570 * MIB) is None


def test_a_search_runs_as_many_trials_as_the_machine_holds(path: Path, tmp_path: Path) -> None:
    """Four cores, one thread each: trials overlap, it is said once, and going on runs as many without a new probe."""
    heard: list[Progress] = []
    options: dict[str, Any] = {
        "device": "cpu",
        "jobs": "auto",
        "storage": f"sqlite:///{tmp_path / 's.db'}",
        "space": {"batch_size": [64, 128], "learning_rate": (0.001, 1.0)},
        "callbacks": [heard.append],
    }
    objective = bstune.load(f"{path}:small")
    first = bstune.search(objective, budget=4, **options)
    running, most = 0, 0
    for progress in heard:
        running += (progress.kind == "start") - (progress.kind == "finish")
        most = max(most, running)
    notes = [progress.message for progress in heard if progress.kind == "note"]
    heard.clear()
    again = bstune.search(objective, budget=6, **options)

    assert most == 4
    assert len(notes) == 2
    assert notes.pop(0) == "probe  larger sizes were not tried: the search uses at most 128"
    assert notes[0].startswith("jobs 4: each trial has 1 thread and ")
    assert first.probe is not None
    assert again.probe is not None
    assert first.probe.settings["jobs"] == again.probe.settings["jobs"] == 4
    assert not any(progress.attempt for progress in heard)
    assert all(record.state != "failed" for record in again.records)
