"""Time to a loss by batch size: the points and the lines of the page are of the same loss and clock."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import bstune
import pytest
from bstune.objectives.base import Trial
from bstune.tuner.core.results import SearchResult
from bstune.tuner.report.charts.reach import reach
from bstune.tuner.report.page_charts import sections

N, EPOCHS, CRITICAL = 1024, 16, 200
BATCHES = (16, 64, 256)
TOO_LOW = 0.6


def step_s(batch: int) -> float:
    """Seconds of a step, which are stated: nothing is measured."""
    return 0.01 + 0.0002 * batch


def loss_at(batch: int, rate: float, samples: int) -> float:
    """A loss to which samples grow as 1 + batch / 200, with the best rate at 0.02."""
    pace = 0.3 * N * EPOCHS * (1 + batch / CRITICAL)
    return (0.1 + math.exp(-samples / pace)) * (1 + 0.02 * math.log2(rate / 0.02) ** 2)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], SearchResult]:
    """What searches that table in this process for a target, each once."""

    @bstune.objective(n_samples=N, epochs=EPOCHS, step_time_s=step_s)
    def table(trial: Trial) -> None:
        for samples in range(N, trial.max_samples + 1, N):
            if samples >= trial.next_report:
                trial.report(val_loss=loss_at(trial.global_batch_size, trial.learning_rate, samples), samples=samples)

    @functools.cache
    def search(target: float) -> SearchResult:
        space = {"batch_size": list(BATCHES), "learning_rate": [0.005, 0.02, 0.08]}
        storage = f"sqlite:///{tmp_path_factory.mktemp('searched')}/bstune.db"
        return bstune.search(table, space=space, target=target, budget=8, isolation="none", storage=storage)

    return search


def drawn(result: SearchResult, what: Any) -> tuple[dict[int, float], list[tuple[float, float]]]:
    """The points by batch size, and the line, as they stand in the chart."""
    chart = reach(result, what).to_dict()
    data = [layer.get("data", chart.get("data"))["values"] for layer in chart["layer"]]
    line, *points = [[(row["batch"], row["value"]) for row in values] for values in data]
    return dict(points[0] if points else []), line


def on(line: list[tuple[float, float]], batch: int) -> float:
    """The height of a line at a batch size."""
    return min(line, key=lambda point: abs(math.log(point[0] / batch)))[1]


@pytest.mark.parametrize("target", [0.85, TOO_LOW])
def test_points_and_lines_of_the_time_to_a_loss_agree(searched: Any, target: float) -> None:
    """Also where no three batch sizes come down to the target: both are then of the same higher loss."""
    result = searched(target)

    answer = result.batch_answer
    assert answer is not None
    assert answer.target is not None
    assert (answer.target > target) == (target == TOO_LOW)
    for what in ("samples", "seconds"):
        points, line = drawn(result, what)
        assert set(points) == set(BATCHES)
        for batch, value in points.items():
            samples = min(n for n in range(1, N * EPOCHS) if loss_at(batch, 0.02, n) <= answer.target)
            true = samples if what == "samples" else samples / batch * step_s(batch)
            assert value == pytest.approx(true, rel=0.2)  # Curves are smoothed.
            assert on(line, batch) == pytest.approx(value, rel=0.3)
    points, line = drawn(result, "step")
    assert points == {}
    assert [on(line, batch) for batch in BATCHES] == pytest.approx([1e3 * step_s(batch) for batch in BATCHES])
    assert "milliseconds of a step" in json.dumps(reach(result, "step").to_dict())  # All are shorter than a second.


def test_the_page_says_to_which_loss(searched: Any) -> None:
    """And that this is not the target, where it is not."""
    result = searched(TOO_LOW)

    (section,) = [each for each in sections(result.records, None, result)[0] if each.id == "reach"]

    assert f"to a loss of {result.batch_answer.target:.4g}" in section.text
    assert "on the way to the target of 0.6" in section.text
    title = f"Seconds to a loss of {result.batch_answer.target:.4g}, on the way to the target"
    assert [chart.title for chart in section.charts][-1] == title
