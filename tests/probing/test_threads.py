"""CPU threads: a user's setting is kept, else a probe times one and all of them, and what follows uses the faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.progress import Progress
from bstune.tuner.probing.run import run_probe
from bstune.tuner.workers.fork_server import Host

MODEL = """
import time
from pathlib import Path
import bstune, torch
from torch import nn
from torch.utils.data import TensorDataset

data = TensorDataset(torch.zeros(256, 4), torch.arange(256) % 3)

def step(model, batch):
    threads = torch.get_num_threads()
    with Path(__file__).with_name("threads").open("a") as file:
        file.write(f"{threads}\\n")
    time.sleep(STEP_S * (threads if SHARING_COSTS else 4 / threads))
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

objective = bstune.Supervised(lambda: nn.Linear(4, 3), data, data, training_step=step, epochs=2)
"""


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores on which nobody has said how many threads to use."""
    monkeypatch.setattr("bstune.tuner.workers.fork_server.usable_cores", lambda: 4)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def model_in(folder: Path, *, sharing_costs: bool = True, step_s: float = 0.004) -> str:
    """Write a model whose steps take longer with more threads, or the opposite; `step_s`: the shortest ones."""
    path = folder / "model.py"
    path.write_text(MODEL.replace("SHARING_COSTS", str(sharing_costs)).replace("STEP_S", str(step_s)))
    return str(path)


def threads_seen(folder: Path) -> list[int]:
    """Return the threads of every step since the last look."""
    seen = [int(line) for line in (folder / "threads").read_text().split()]
    (folder / "threads").unlink()
    return seen


@pytest.mark.parametrize(("sharing_costs", "threads"), [(True, 1), (False, 4)])
def test_the_faster_of_one_thread_and_all_is_kept(tmp_path: Path, sharing_costs: bool, threads: int) -> None:
    """It is said in one line, stands in the result, and the rows are of that many threads only."""
    said: list[str] = []
    with Host(bstune.load(model_in(tmp_path, sharing_costs=sharing_costs, step_s=0.03)), device="cpu") as host:
        result = run_probe(host, max_batch=64, on_note=said.append)

        assert host.threads == result.device.threads == threads
    assert result.throughput
    assert all(0.03 <= row.s_per_step < 0.1 for row in result.throughput)  # With the other number it takes 0.12 s.
    assert set(threads_seen(tmp_path)) == {1, 4}
    assert len(said) == 1
    assert said[0].startswith(f"threads {threads}: a step at micro-batch 32 takes")
    assert json.loads(result.to_json())["device"]["threads"] == threads


@pytest.mark.parametrize(
    ("environment", "asked", "threads"),
    [
        ({"MKL_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, None, 2),
        ({"OMP_NUM_THREADS": "16"}, None, 4),
        ({"OMP_NUM_THREADS": "1"}, 3, 3),
    ],
)
def test_what_the_user_says_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: int | None, threads: int
) -> None:
    """Nothing is chosen: an argument wins over the environment, which may not ask for more than all cores."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with Host(bstune.load(model_in(tmp_path)), device="cpu", threads=asked) as host:
        result = run_probe(host, max_batch=8, on_note=said.append)

    assert (result.device.threads, said) == (threads, [])
    assert set(threads_seen(tmp_path)) == {threads}


def test_a_stored_probe_holds_for_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same question is not asked twice, and another one is."""
    options: dict[str, Any] = {"device": "cpu", "storage": f"sqlite:///{tmp_path / 'p.db'}", "max_batch": 32}
    objective = bstune.load(model_in(tmp_path))

    asked: list[dict[str, Any]] = [{}, {}, {"threads": 4}]
    first, again, fixed = (bstune.probe(objective, **options, **more) for more in asked)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = bstune.probe(objective, **options)

    results = [(result.cached, result.device.threads) for result in (first, again, fixed, kept)]
    assert results == [(False, 1), (True, 1), (False, 4), (False, 1)]


def test_a_search_trains_with_the_threads_that_its_probe_chose(tmp_path: Path) -> None:
    """One line says so, and when the search goes on the stored probe still says how many."""
    target, heard = model_in(tmp_path), list[Progress]()
    options: dict[str, Any] = {
        "device": "cpu",
        "storage": f"sqlite:///{tmp_path / 's.db'}",
        "space": {"batch_size": 64, "learning_rate": [0.01, 0.1]},
        "callbacks": [heard.append],
    }
    bstune.search(bstune.load(target), budget=1, **options)
    told = [progress.message for progress in heard if progress.kind == "note"]
    notes = [note for note in told if "threads" in note]
    first = threads_seen(tmp_path)
    result = bstune.search(bstune.load(target), budget=2, **options)

    assert len(notes) == 1
    assert notes[0].startswith("probe  threads 1: a step at micro-batch 32 takes")
    assert first[-1] == 1
    assert result.probe is not None
    assert result.probe.device.threads == 1
    assert set(threads_seen(tmp_path)) == {1}


def test_a_probe_that_was_given_says_how_many_threads(tmp_path: Path) -> None:
    """Where nobody asked for others; where somebody did, they are told that the step times may not hold."""
    target, heard = model_in(tmp_path), list[Progress]()
    probe = bstune.probe(bstune.load(target), device="cpu", storage="sqlite:///:memory:", threads=2)
    threads_seen(tmp_path)
    options: dict[str, Any] = {
        "device": "cpu",
        "storage": "sqlite:///:memory:",
        "space": {"batch_size": 64, "learning_rate": 0.1},
        "callbacks": [heard.append],
        "budget": 1,
        "probe": probe,
    }
    bstune.search(bstune.load(target), **options)
    as_probed = threads_seen(tmp_path)
    bstune.search(bstune.load(target), threads=3, **options)

    assert set(as_probed) == {2}
    assert set(threads_seen(tmp_path)) == {3}
    warned = [progress.message for progress in heard if progress.kind == "warning"]
    assert len(warned) == 1
    assert "made with 2 threads, and trials have 3" in warned[0]
