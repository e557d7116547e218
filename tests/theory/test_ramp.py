"""A batch ramp is exact arithmetic: where the rate would halve, the batch doubles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import bstune
import pytest
import torch
from bstune.objectives.schedule import learning_rate_factor
from bstune.tuner.core.probe_results import DeviceInfo, MemoryLine, ProbeResult, StepTimeLine
from bstune.tuner.theory.ramp import Place, Ramp, stages


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0."""
    return learning_rate_factor("cosine", progress)


def optimizer(kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> torch.optim.Optimizer:
    """Of one parameter, at rate 0.1."""
    return kind([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # type: ignore[call-arg]


def ramp(kind: type[torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> bstune.BatchRamp:
    """A ramp from 32 over 20,480 samples."""
    return bstune.BatchRamp(optimizer(kind), **{"batch_size": 32, "total_samples": 20_480, **options})


def probe(line: StepTimeLine) -> ProbeResult:
    """A probe that found 64 samples to fit, 10 bytes each above 1000."""
    return ProbeResult(
        micro_batch_size=64,
        eval_batch_size=None,
        limited_by="memory",
        proof="bracket",
        capacity_bytes=2000,
        usable_bytes=2000,
        budget_bytes=2000,
        peak_bytes=1640,
        memory_line=MemoryLine(1000.0, 10.0, None, 1640, None),
        memory_by_category=None,
        throughput=(),
        step_time_line=line,
        attempts=(),
        device=DeviceInfo("cpu", "here"),
        n_train_samples=1024,
    )


@pytest.mark.parametrize(("rule", "power"), [("seesaw", 0.5), ("constant_rate", 1.0)])
def test_the_batch_doubles_where_the_rate_would_halve(rule: Any, power: float) -> None:
    """At that moment the rate falls by sqrt 2, or stays; in between it falls as the cosine does."""
    subject = ramp(rule=rule)
    seen: dict[int, float] = {}
    while subject.samples < subject.total_samples:
        if subject.batch_size not in seen:
            seen[subject.batch_size] = subject.get_last_lr()[0]
            plain = cosine(subject.samples / subject.total_samples)
            assert plain <= 32 / subject.batch_size + 1e-9
        [rate] = subject.get_last_lr()
        grown = subject.batch_size / 32
        assert rate == pytest.approx(0.1 * cosine(subject.samples / subject.total_samples) * grown**power)
        assert subject.optimizer.param_groups[0]["lr"] == rate
        subject.step()

    assert list(seen) == [32, 64, 128, 256]
    for batch, rate in seen.items():  # A step is 1/600 of the run, so a batch begins a little late.
        assert rate == pytest.approx(0.1 * (32 / batch) ** (1 - power), rel=0.05)


def test_sgd_keeps_its_rate_and_others_do_not() -> None:
    """By the name of the optimizer's class."""
    assert ramp().rule == "constant_rate"
    assert ramp(torch.optim.AdamW).rule == "seesaw"


def test_every_batch_is_split_exactly() -> None:
    """Within what fits."""
    subject = ramp(micro_max=48)
    while subject.samples < subject.total_samples:
        assert subject.micro_batch_size * subject.accumulation_steps == subject.batch_size
        assert subject.micro_batch_size <= 48
        subject.step()


@pytest.mark.parametrize("stop_at", [0, 100, 350])
def test_a_ramp_goes_on_where_its_state_was_saved(stop_at: int) -> None:
    """A new one with the state of the old one takes the same steps."""
    first, again = ramp(), ramp()
    for _ in range(stop_at):
        first.step()
    again.load_state_dict(first.state_dict())
    while first.samples < first.total_samples:
        assert (again.samples, again.batch_size, again.get_last_lr()) == (
            first.samples,
            first.batch_size,
            first.get_last_lr(),
        )
        first.step()
        again.step()
    assert again.updates == first.updates


def test_the_forecast_is_what_comes() -> None:
    """Updates are counted as the ramp makes them; a third fewer at eight times the batch."""
    subject = ramp()
    expected = subject.forecast()
    while subject.samples < subject.total_samples:
        subject.step()

    assert expected.updates == subject.updates == 409
    assert expected.updates_of_schedule == 640
    assert expected.updates_saved == pytest.approx(1 - 409 / 640)
    assert expected.seconds is None
    assert [batch for _, batch in expected.stages] == [32, 64, 128, 256]


def test_seconds_and_memory_come_from_a_probe() -> None:
    """Where a step takes as long whatever its size, larger micro-batches save; accumulated ones do not."""
    fast = ramp(probe=probe(StepTimeLine(1.0, 0.0, None))).forecast()

    assert (fast.top_batch_size, fast.top_micro_batch_size, fast.top_accumulation_steps) == (256, 64, 4)
    assert fast.peak_bytes == 1640
    assert fast.seconds_of_schedule == 640.0
    assert fast.seconds is not None
    assert 320.0 < fast.seconds < 640.0
    assert "4 micro-batches of 64" in fast.warnings[0]

    slow = ramp(probe=probe(StepTimeLine(0.0, 1.0, 0.0))).forecast()

    assert slow.seconds == slow.seconds_of_schedule
    assert "only 0% of the seconds" in slow.warnings[0]


def test_a_probe_that_tried_no_larger_micro_batch_is_warned_of() -> None:
    """Where the batch grows past it: more may fit, and accumulation is no faster."""
    cut = dataclasses.replace(probe(StepTimeLine(1.0, 0.0, None)), limited_by="max_batch")

    with pytest.warns(UserWarning, match="Larger micro-batches than 64 were not tried"):
        ramp(probe=cut)
    # None of these is split for want of a larger size, and a warning would be an error.
    ramp(probe=cut, max_batch_size=64)
    ramp(probe=cut, micro_max=128)
    ramp(probe=cut, world_size=4)


def test_a_schedule_that_rises_first_counts_from_its_height() -> None:
    """Warm-up, its own or the ramp's, is no fall."""
    parts = list(stages(Ramp(8, 64, 8000, lambda p: learning_rate_factor("wsd", p), 0.5)))
    assert [batch for _, batch, _ in parts] == [8, 16, 32, 64]
    assert parts[1][0] >= 7200  # Its last fifth falls in a line: to one half at nine tenths.

    warmed = Place(Ramp(8, 64, 8000, cosine, 0.5, warmup_samples=800))
    rates = []
    while warmed.samples < 800:
        assert warmed.batch_size == 8
        rates.append(warmed.rate_factor)
        warmed.step()
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(1.0)


def flat(progress: float) -> float:
    """A rate that stays."""
    return 1.0


def test_a_rate_that_stays_leaves_the_batch_alone() -> None:
    """And the forecast says so."""
    for options in ({"schedule": flat}, {"max_batch_size": 32}):
        expected = ramp(**options).forecast()
        assert expected.updates == expected.updates_of_schedule
        assert "never grows" in expected.warnings[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0, "growth": 1, "rule": "sesaw"}, "(?s)3 arguments are wrong.*Did you mean seesaw"),
        ({"max_batch_size": 16}, "less than batch_size=32"),
        ({"warmup_samples": 20_480}, "fewer than total_samples"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], said: str) -> None:
    """All at once, with what was meant."""
    with pytest.raises(bstune.ArgumentError, match=said):
        ramp(**options)


def test_the_last_step_may_end_a_little_late() -> None:
    """By less than one batch."""
    schedule: Callable[[float], float] = cosine
    for total in (1000, 1023, 4097):
        last = list(stages(Ramp(32, 256, total, schedule, 1.0)))
        assert 0 <= sum(batch * n for _, batch, n in last) - total < 256
        assert math.isclose(
            sum(n for _, _, n in last),
            bstune.BatchRamp(optimizer(), batch_size=32, max_batch_size=256, total_samples=total).forecast().updates,
        )


def test_micro_batches_of_tokens_hold_the_longest_sample() -> None:
    """By the probe; a batch that does not split so is refused before anything is trained."""
    tokens = dataclasses.replace(probe(StepTimeLine(0.01, 0.001, 10.0)), longest=50)
    subject = ramp(batch_size=60, probe=tokens)
    assert [subject.micro_batch_size, subject.forecast().top_micro_batch_size] == [60, 60]

    for batch in (45, 130):  # By samples in one micro-batch of 45, and in five of 26.
        with pytest.raises(
            bstune.ArgumentError, match=f"A batch of {batch} .* longest sample of 50: use a multiple of 64"
        ):
            ramp(batch_size=batch, probe=tokens)
