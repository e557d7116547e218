"""The batch-size answer as arithmetic: lines that are known, what was not reached, caps, and how good intervals are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from bstune.tuner.core.probe_results import ProbeResult
from bstune.tuner.core.remarks import BatchLimits
from bstune.tuner.core.results import BatchAnswer
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.reasons import limits_text
from bstune.tuner.strategy.cost import Cost
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.theory.critical_batch import BatchLine, Reach, answer_batch, fit_batch_line
from bstune.tuner.theory.gradient_noise import NoiseScale

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
FACTS = Facts("made up", "loop", n_samples=10_000, epochs=1.0)


def probe(a_s: float = 0.01, c_s: float = 0.0001, **changes: Any) -> ProbeResult:
    """Return a probe whose step takes a + c n seconds, so that the hardware saturates at a / c = 100."""
    return known_probe(step_s=(a_s, c_s), n_train_samples=10_000, **changes)


def told(
    line: BatchLine | None, scale: NoiseScale | None, given: ProbeResult | None, batches: Sequence[int]
) -> BatchAnswer:
    """Return the answer by a line, a noise scale and a probe."""
    step_s = Cost.of(FACTS, given).step_s
    return answer_batch(line, scale, given, batches, step_s=step_s, target=0.3, data_set_largest=1024)


def answered(b_crit: float, given: ProbeResult | None, batches: tuple[int, ...] = SIZES) -> BatchAnswer:
    """Return the answer for samples to target that lie exactly on a line with this critical batch size."""
    line = fit_batch_line([Reach(b, 10_000 * (1 + b / b_crit)) for b in (4, 16, 64, 256, 1024, 4096)])
    return told(line, None, given, batches)


def test_the_fastest_batch_is_the_root_of_critical_and_saturation_batch() -> None:
    """With 400 samples of statistics and 100 of hardware, B* is 200; of powers of two, 256 takes the fewest seconds."""
    answer = answered(400, probe())

    assert answer.b_crit == pytest.approx(400, rel=0.05)
    assert answer.b_star == pytest.approx(200, rel=0.05)
    assert (answer.fastest, answer.decided_by, answer.source, answer.n_batches) == (256, "hardware", "trials", 6)
    seconds = {b: (1 + 400 / b) * (0.01 + 0.0001 * b) for b in SIZES}
    assert answer.fastest == min(seconds, key=lambda b: seconds[b])
    assert answer.b_crit_low is not None
    assert answer.b_crit_low < 400 < (answer.b_crit_high or math.inf)


@pytest.mark.parametrize(
    ("b_crit", "given", "batches", "fastest", "decided_by"),
    [
        (30, probe(), SIZES, 64, "noise"),
        (6000, probe(a_s=0.1), SIZES, 512, "memory"),
        (6000, probe(a_s=0.1, limited_by="plateau"), SIZES, 512, "hardware"),
        (6000, probe(a_s=0.1, micro_batch_size=4096, limited_by="dataset"), SIZES, 1024, "data set"),
        (400, probe(), (8, 16, 32), 32, "space"),
    ],
    ids=["noise", "memory", "plateau", "data set", "space"],
)
def test_what_keeps_the_batch_from_being_larger_is_named(
    b_crit: float, given: ProbeResult, batches: tuple[int, ...], fastest: int, decided_by: str
) -> None:
    """Memory, hardware, noise, the data set or the space that was asked for: one of them decides."""
    answer = answered(b_crit, given, batches)

    assert (answer.fastest, answer.decided_by) == (fastest, decided_by)


def test_two_batch_sizes_are_no_line() -> None:
    """Any two points lie on a line, so nothing is claimed; a batch that did not get there does not make three."""
    assert fit_batch_line([Reach(16, 1000), Reach(64, 1200), Reach(256, 5000, reached=False)]) is None
    assert fit_batch_line([Reach(16, 1000), Reach(32, 1050), Reach(48, 1200)]) is None  # Too close together to tell.


def test_points_far_off_any_line_say_nothing() -> None:
    """A batch size that needed five times what its neighbours did had the wrong learning rate."""
    assert fit_batch_line([Reach(16, 1000), Reach(64, 8000), Reach(256, 1100)]) is None


def test_a_target_that_takes_as_many_steps_with_any_batch_has_a_critical_batch_below_all_that_were_run() -> None:
    """Ten steps reach it at every size, so larger batches only take more samples."""
    line = fit_batch_line([Reach(b, 10 * b) for b in (16, 32, 64, 128, 256)])

    assert line is not None
    assert line.bounded
    assert line.b_crit < 16


def test_a_batch_that_did_not_get_there_counts_as_at_least() -> None:
    """It raises the line where that runs below what was trained, and hardly changes it elsewhere."""
    reached = [Reach(b, 1000 + b) for b in (8, 32, 64)]
    plain = fit_batch_line(reached)
    harmless = fit_batch_line([*reached, Reach(512, 1200, reached=False)])
    telling = fit_batch_line([*reached, Reach(512, 4000, reached=False)])

    assert plain is not None
    assert harmless is not None
    assert telling is not None
    assert harmless.b_crit == pytest.approx(plain.b_crit, rel=0.1)
    assert telling.b_crit < 0.5 * plain.b_crit


def test_the_interval_of_the_fastest_batch_covers() -> None:
    """With 10 % of scatter on four batch sizes, the 90 % interval contains the true B* in 80 of 100 repetitions."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        reaches = [Reach(b, 10_000 * (1 + b / 150) * math.exp(0.1 * rng.standard_normal())) for b in (16, 64, 256, 512)]
        answer = told(fit_batch_line(reaches), None, probe(), SIZES)
        hits += (answer.b_star_low or 0.0) <= math.sqrt(150 * 100) <= (answer.b_star_high or math.inf)
    assert hits >= 80


def test_gradient_noise_answers_where_trials_cannot() -> None:
    """Then the source says so, the samples to target are unknown, and the interval is that of the measurement."""
    answer = told(None, NoiseScale(400.0, 200.0, 800.0, 12), probe(), SIZES)

    assert (answer.source, answer.e_min_samples, answer.target) == ("noise scale", None, None)
    assert answer.b_star == pytest.approx(200)
    assert answer.b_star_low == pytest.approx(200 / math.sqrt(2), rel=0.15)


def test_trials_that_show_no_growth_give_a_lower_end_only() -> None:
    """Equal samples at 8, 32 and 64 say that the critical batch is larger; how much larger, measured noise may say."""
    flat = [Reach(b, 1000) for b in (8, 32, 64)]
    noise = NoiseScale(3000.0, 2000.0, 4500.0, 12)

    alone = told(fit_batch_line(flat), None, probe(), SIZES)
    both = told(fit_batch_line(flat, noise), noise, probe(), SIZES)

    assert (alone.source, alone.n_batches, alone.b_crit_high, alone.b_star_high) == ("trials", 3, None, None)
    assert (alone.b_crit_low or 0.0) > 64
    assert (both.b_crit or 0.0) > 2 * (alone.b_crit or math.inf)
    limits = BatchLimits.of(alone, 512, 96.0, more_memory=False)
    assert limits is not None
    assert f"critical batch at {alone.b_crit:.0f} ({alone.b_crit_low:.0f} or more)" in limits_text(limits)


def test_what_is_not_known_is_null() -> None:
    """A measurement that is mostly noise gives a bound and no answer; without step times, no fastest batch is named."""
    dominated = told(None, NoiseScale(None, 90.0, None, 8), probe(), SIZES)
    untimed = answered(400, None)

    assert (dominated.source, dominated.b_star, dominated.noise_scale, dominated.noise_scale_low) == (
        None,
        None,
        None,
        90.0,
    )
    assert untimed.b_crit == pytest.approx(400, rel=0.05)
    assert (untimed.b_star, untimed.fastest, untimed.decided_by) == (None, None, None)
    assert BatchLimits.of(dominated, 512, None, more_memory=False) is None


@pytest.mark.parametrize(("a_s", "c_s"), [(0.01, 0.0), (0.0, 0.0001), (0.01, 0.0001)])
@pytest.mark.parametrize("growth", [0.0, 1.0, 1e4])
def test_every_corner_has_an_answer_that_survives_json(a_s: float, c_s: float, growth: float) -> None:
    """Steps of constant cost, or of none but samples; samples to target that never grow, or grow at once."""
    line = fit_batch_line([Reach(b, 1000 + growth * b) for b in (16, 64, 256)])

    answer = told(line, None, probe(a_s, c_s), SIZES)

    assert answer.fastest in (SIZES if answer.source else (None,))
    assert (answer.decided_by is None) == (answer.source is None)
    assert BatchAnswer.from_dict(answer.to_dict()) == answer
