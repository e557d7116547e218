"""The sizes that are timed: few, up to where throughput stops rising, and enough for a line that is right."""

from __future__ import annotations

import random

import pytest
from bstune.tuner.core.probe_results import ThroughputRow
from bstune.tuner.theory.step_time import fit_step_time, next_size_to_time, plateau, throughput_row


def sizes_timed(a: float, c: float, largest: int, *, noise: float = 0.0, **options: int) -> list[ThroughputRow]:
    """Time the sizes that are asked for on a device whose step takes a + c * n seconds, give or take some noise."""
    draw, rows = random.Random(0), list[ThroughputRow]()
    while (size := next_size_to_time(rows, largest, **{"smallest": 4} | options)) is not None:
        assert size not in {row.batch_size for row in rows}
        seconds = (a + c * size) * (1 + noise * draw.uniform(-1, 1))
        rows.append(ThroughputRow(size, size / seconds, seconds, 0.0))
    return rows


@pytest.mark.parametrize("saturation", [0.0, 1.5, 12.0, 120.0, 2000.0])
def test_the_line_is_right_from_the_smallest_size_to_the_plateau(saturation: float) -> None:
    """Six sizes at most, with 3 % noise: the line is nowhere off by a tenth, nothing far past the plateau is timed."""
    rows = sizes_timed(saturation * 1e-4, 1e-4, 1 << 16, noise=0.03)

    line = fit_step_time(rows)
    assert line is not None
    assert 3 <= len(rows) <= 6
    assert max(row.batch_size for row in rows) <= max(32, 12 * saturation)
    for size in (4, 32, 256, round(10 * saturation) or 64):
        assert line.step_s(size) == pytest.approx(saturation * 1e-4 + 1e-4 * size, rel=0.1)


@pytest.mark.parametrize(
    ("largest", "smallest", "multiple_of"), [(1024, 4, 1), (3, 4, 1), (1000, 8, 8), (1, 1, 1), (7, 7, 7)]
)
def test_sizes_to_time_are_few_and_within_bounds(largest: int, smallest: int, multiple_of: int) -> None:
    """At most six, all of them multiples that fit, and the largest of all where throughput rises up to there."""
    sizes = sorted(
        row.batch_size for row in sizes_timed(1.0, 1e-4, largest, smallest=smallest, multiple_of=multiple_of)
    )

    assert sizes[-1] == largest // multiple_of * multiple_of
    assert 1 <= len(sizes) <= 6
    assert all(1 <= size <= largest and size % multiple_of == 0 for size in sizes)


def test_a_step_that_is_no_line_is_timed_at_more_sizes() -> None:
    """Where the line is off by more than a tenth, sizes between those that were timed show where it bends."""
    rows = list[ThroughputRow]()
    while (size := next_size_to_time(rows, 512, smallest=4)) is not None:
        seconds = 0.01 + (0.001 * size if size > 40 else 0.0)
        rows.append(ThroughputRow(size, size / seconds, seconds, 0.0))

    assert len(rows) == 6
    assert max(row.batch_size for row in rows) > 256


def test_the_plateau_is_where_doubling_brings_a_twentieth() -> None:
    """By definition, and none where a step takes the same at any size."""
    line = fit_step_time(sizes_timed(0.02, 0.001, 4096))
    assert line is not None
    top = plateau(line)

    assert 2 * line.step_s(round(top)) / line.step_s(2 * round(top)) == pytest.approx(1.05, rel=1e-3)
    flat = fit_step_time([ThroughputRow(n, n / 0.1, 0.1, 0.0) for n in (4, 32)])
    assert flat is not None
    assert plateau(flat) == float("inf")


def test_step_time_line_is_fitted_to_relative_errors() -> None:
    """Exact on an exact line; neither part negative on others."""
    line = fit_step_time([ThroughputRow(n, n / (0.02 + 0.001 * n), 0.02 + 0.001 * n, 0.0) for n in (4, 32, 256)])

    assert line is not None
    assert (line.a_s, line.c_s_per_sample, line.saturation_batch) == pytest.approx((0.02, 0.001, 20.0))
    assert line.step_s(64, accumulation_steps=2) == pytest.approx(2 * 0.084)
    falling = fit_step_time([ThroughputRow(4, 0, 0.3, 0), ThroughputRow(64, 0, 0.1, 0)])
    assert falling is not None
    assert (falling.c_s_per_sample, falling.saturation_batch) == (0.0, None)
    assert fit_step_time([throughput_row(4, [0.1, 0.1])]) is None
