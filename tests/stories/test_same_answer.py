"""One model and data set by every way in: the same setting ends at the same loss, and the same size fits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from bstune.tests.stories.ways import (
    BATCH,
    EPOCHS,
    RATE,
    SEEDS,
    in_lightning,
    in_optuna,
    in_trainer,
    losses,
    own_loop,
    script,
    supervised,
    the_problem,
)
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.probe import STABLE_MALLOC
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

WIDE_BATCH = 256


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The problem of all ways."""
    with the_problem(tmp_path_factory.mktemp("digits")) as problem:
        yield problem


WAYS: list[Callable[[ModuleType], Any]] = [own_loop, in_optuna, in_lightning, in_trainer]


@pytest.mark.filterwarnings("ignore")  # What Lightning and Transformers import, and their advice on loaders.
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_setting_ends_at_the_same_loss(problem: ModuleType, way: Callable[[ModuleType], Any]) -> None:
    """Means over three seeds differ by less than the seeds do; the order of the data alone is another."""
    usual = losses(supervised(problem), problem.N)

    found = way(problem)
    got = found if isinstance(found, list) else losses(found, problem.N)

    assert len(got) == len(SEEDS)
    spread = max(max(each) - min(each) for each in (usual, got))
    assert abs(statistics.mean(got) - statistics.mean(usual)) < spread < 0.5 * statistics.mean(usual)


def test_a_script_ends_where_it_would_without_us(problem: ModuleType) -> None:
    """To the last digit that it prints, with the same seed: it is the same run."""
    *_, (samples, alone) = problem.training(BATCH, RATE, EPOCHS * problem.N, seed=1)

    assert samples == EPOCHS * problem.N
    assert losses(script(problem), problem.N, [1]) == [pytest.approx(alone, abs=1e-5)]


def peak(objective: Any) -> int:
    """Return the peak memory of a step of two micro-batches, and of a validation batch of that size."""
    with Host(objective, device="cpu", threads=1, environment=STABLE_MALLOC) as host:
        spec = MeasureSpec(WIDE_BATCH, WIDE_BATCH, accumulation_steps=2, n_steps=1, seed=0)
        reading = host.run(messages.Measure(spec, traced=False)).reading
    assert reading.peak_bytes
    return int(reading.peak_bytes)


def test_the_same_size_takes_the_same_memory(problem: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 5 %, in a wide network where a sample takes 0.75 MiB, so that as much fits.

    What differs is what the process holds besides: a script has no bstune in it.
    """
    monkeypatch.setenv("HIDDEN", str(1 << 16))
    peaks = [peak(way(problem)) for way in (supervised, own_loop, script)]

    assert max(peaks) < 1.05 * min(peaks), peaks
