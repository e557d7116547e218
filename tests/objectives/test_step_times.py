"""Step times that an objective states: what is asked, what is refused, and where they arrive."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bstune
import numpy as np
import pytest
from bstune.objectives.step_times import StepTimes
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import Facts
from bstune.tuner.studies.storage import read_storage
from bstune.tuner.studies.study import Study
from bstune.tuner.workers.fork_server import Host
from optuna.distributions import CategoricalDistribution, IntDistribution

ARGUMENTS: dict[str, Any] = {"isolation": "none", "budget": 3, "study": "timed"}


def timed(step_time_s: StepTimes | None) -> Any:
    """A loop of 100 samples that states its step times."""

    @bstune.objective(n_samples=50, epochs=2, step_time_s=step_time_s)
    def train(trial: bstune.Trial) -> None:
        for samples in range(10, trial.max_samples + 1, 10):
            trial.report(1 / samples + abs(math.log10(trial.learning_rate) + 2), samples=samples)

    return train


def stored(url: str) -> Mapping[str, Any]:
    """What the study of a storage says of its objective."""
    with read_storage(url) as storage:
        backend = storage.backend
        facts: Mapping[str, Any] = Study(storage, backend.get_study_id_from_name("timed"), "timed").attributes["facts"]
        return facts


def test_a_function_is_asked_for_powers_of_two_and_what_the_search_names() -> None:
    """Up to a full run of 100 samples; a size of the user's own comes between."""
    asked = []

    def line(batch: int) -> float:
        asked.append(batch)
        return 0.01 + 0.001 * batch

    times = timed(line).describe((48, 64)).step_times
    assert asked == [size for size, _ in times] == [1, 2, 4, 8, 16, 32, 48, 64]
    assert dict(times)[48] == pytest.approx(0.058)
    assert timed(None).describe((48, 64)).step_times == ()


def test_nobody_is_asked_for_step_times_but_by_a_search() -> None:
    """To probe what fits, none need be known."""
    assert timed({48: 0.5}.__getitem__).describe(None).step_times == ()
    with pytest.raises(bstune.ObjectiveError, match="knows no step time"):
        timed({48: 0.5}.__getitem__).describe()


def refusing(batch: int) -> float:
    """Know two sizes only, and say so in every way that is allowed."""
    if batch % 3 == 0:
        raise ValueError(batch)
    return {16: 0.5, 32: 0.75}[batch]


@pytest.mark.parametrize(
    "given",
    [
        {32: 0.75, 16: 0.5},
        {16: 0.5, 32: 0.75}.__getitem__,
        {16: 0.5, 32: 0.75}.get,
        refusing,
        lambda batch: np.float32(refusing(batch)),
    ],
)
def test_sizes_that_are_not_known_are_left_out(given: StepTimes) -> None:
    """A table says only what it holds, as a mapping or as a function over one."""
    assert timed(given).describe((48,)).step_times == ((16, 0.5), (32, 0.75))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({16: 0.5, 32: -1.0}, r"gives -1.0 for batch size 32: expected .* above 0"),
        (lambda batch: 0.0, "gives 0.0 for batch size 1"),
        (lambda batch: math.nan, "gives nan for batch size 1"),
        ({8: math.inf}, "gives inf for batch size 8"),
        ({8: "fast"}, "gives 'fast' for batch size 8"),
        ({8: True}, "gives True for batch size 8"),
        ({2.5: 0.5}, "a batch size 2.5: expected a whole number"),
        ({}, "knows no step time"),
        (lambda batch: None, r"of the batch sizes 1, 2, \.\.\. 64: expected"),
        ({1000: 0.5}.__getitem__, "knows no step time"),
        (lambda batch: 1 // 0, r"step_time_s\(1\) raised ZeroDivisionError.*or a KeyError where it is not known"),
    ],
)
def test_what_no_step_takes_is_refused(given: Any, said: str) -> None:
    """With the size and the value; and times that are all missing are none."""
    with pytest.raises(bstune.ObjectiveError, match=said):
        timed(given).describe()


def test_a_number_is_no_function_of_the_batch() -> None:
    """It is refused where it stands."""
    with pytest.raises(bstune.ArgumentError, match=r"step_time_s=0.5: expected a function of the batch size"):
        timed(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [((16, 0.5), (8, 0.5)), ((8, 0.0),), ((0, 1.0),), ((8, math.nan),)])
def test_facts_hold_no_other_step_times(rows: Any) -> None:
    """Whoever has written them: a worker or a database."""
    with pytest.raises(bstune.ObjectiveError, match="step_times="):
        Facts("a", "loop", 10, 1.0, step_times=rows)


def test_a_plan_knows_which_batches_are_named() -> None:
    """Ranges are powers of two, and are asked for anyhow."""
    lists: list[tuple[Any, tuple[int, ...]]] = [
        (48, (48,)),
        ([48, 7], (7, 48)),
        ((16, 100), ()),
        (CategoricalDistribution((48, 96)), (48, 96)),
        (IntDistribution(10, 30, step=10), (10, 20, 30)),
        (IntDistribution(16, 64, log=True), ()),
        (["a", 0, None], ()),
    ]
    assert [Plan(space={"batch_size": asked}).named_batches for asked, _ in lists] == [named for _, named in lists]
    assert Plan(baseline=(100, 0.1)).named_batches == (100,)
    assert Plan().named_batches == ()


def test_a_study_goes_on_with_the_step_times_that_it_began_with(tmp_path: Path) -> None:
    """On another machine they may be others; only the size that is new there is added."""
    url, space = f"sqlite:///{tmp_path}/bstune.db", {"batch_size": [10, 20]}
    bstune.search(timed(lambda batch: 0.001 * batch), space=space, storage=url, **ARGUMENTS)
    first = stored(url)["step_times"]
    assert [size for size, _ in first] == [1, 2, 4, 8, 10, 16, 20, 32, 64]

    slower = timed(lambda batch: 0.5 * batch)
    bstune.search(slower, space=space, storage=url, baseline=(25, 0.01), **{**ARGUMENTS, "budget": 4})
    assert [row for row in stored(url)["step_times"] if row not in first] == [[25, 12.5]]
    assert [row for row in stored(url)["step_times"] if row in first] == first


def test_step_times_come_from_a_worker_too(tmp_path: Path) -> None:
    """The file is loaded in a process of its own, which is told what the search names."""
    (tmp_path / "model.py").write_text(
        """
import bstune, torch

@bstune.objective(n_samples=64, epochs=2, step_time_s={16: 0.5, 24: 0.75}.__getitem__)
def objective(trial):
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=trial.learning_rate)
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        layer(torch.ones(trial.micro_batch_size, 2)).square().mean().backward()
        optimizer.step()
        trial.report(1 / samples + trial.learning_rate, samples=samples)
"""
    )
    url = f"sqlite:///{tmp_path}/bstune.db"
    with Host(bstune.load(tmp_path / "model.py"), device="cpu") as host:
        assert host.facts.step_times == ()
    result = bstune.search(
        bstune.load(tmp_path / "model.py"),
        space={"batch_size": [16, 24]},
        budget=2,
        storage=url,
        study="timed",
        device="cpu",
    )
    assert stored(url)["step_times"] == [[16, 0.5], [24, 0.75]]
    assert json.loads(result.to_json())["study"] == "timed"
