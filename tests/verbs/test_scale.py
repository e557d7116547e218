"""A recommendation at another batch size: by the measured rule, within what was measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import bstune
import pytest
from bstune.tests.report.told import demo_result
from bstune.tuner.core.results import Candidate, LossEstimate, LrRule, Recommendation

LOSS = LossEstimate(0.5, None, 1)


def candidate(batch: int) -> Candidate:
    """A setting of this batch size that was run."""
    return Candidate(batch, batch, 1, 0.1, {}, LOSS, None, None)


def recommendation(**changes: Any) -> Recommendation:
    """Batch 64 at 0.1; batches 16 to 128 were run too."""
    return dataclasses.replace(
        Recommendation(
            micro_batch_size=64,
            accumulation_steps=1,
            world_size=1,
            global_batch_size=64,
            eval_batch_size=None,
            learning_rate=0.1,
            params={},
            val_loss=LOSS,
            seconds_to_target=None,
            samples_to_target=None,
            samples_per_s=None,
            peak_bytes=None,
            verified=True,
            reason="",
            batch_interval=(32, 128),
            lr_rule=LrRule(0.9, 0.6, 1.2),
            fastest=None,
            smallest_within_tolerance=candidate(16),
            alternatives=(candidate(128),),
        ),
        **changes,
    )


def test_the_measured_rule_moves_the_rate_with_its_interval() -> None:
    """Within what was measured nothing is to be warned of."""
    moved = bstune.scale(recommendation(), batch_size=128)

    assert moved.learning_rate == pytest.approx(0.1 * 2**0.9)
    assert (moved.learning_rate_low, moved.learning_rate_high) == pytest.approx((0.1 * 2**0.6, 0.1 * 2**1.2))
    assert "measured" in moved.rule
    assert (moved.valid_low, moved.valid_high) == (16, 128)
    assert (moved.micro_batch_size, moved.accumulation_steps) == (64, 2)
    assert moved.warnings == ()
    assert bstune.Scaled.from_dict(moved.to_dict()) == moved


def test_a_smaller_batch_turns_the_interval_around() -> None:
    """The low end of the rate is still the low one."""
    moved = bstune.scale(recommendation(), batch_size=32)

    assert moved.learning_rate_low is not None
    assert moved.learning_rate_high is not None
    assert moved.learning_rate_low < moved.learning_rate < moved.learning_rate_high < 0.1


@pytest.mark.parametrize(("batch", "said"), [(8, "below 16, the smallest"), (256, "above 128, up to which")])
def test_beyond_what_was_measured_it_warns(batch: int, said: str) -> None:
    """The figure is given, with what it is worth."""
    [warning] = bstune.scale(recommendation(), batch_size=batch).warnings

    assert said in warning


@pytest.mark.parametrize(("optimizer", "factor", "said"), [("AdamW", 2**0.5, "Malladi"), ("SGD", 2.0, "Goyal")])
def test_without_a_measured_rule_the_textbook_speaks(optimizer: str, factor: float, said: str) -> None:
    """With its source, and a warning that it is one."""
    moved = bstune.scale(recommendation(lr_rule=None), batch_size=128, optimizer=optimizer)

    assert moved.learning_rate == pytest.approx(0.1 * factor)
    assert said in moved.rule
    assert "none was measured" in moved.warnings[0]
    assert moved.learning_rate_low is None


def test_without_any_rule_nothing_is_guessed() -> None:
    """An optimizer of another kind has no textbook rule."""
    for optimizer in (None, "LBFGS"):
        with pytest.raises(bstune.ArgumentError, match="measured no rule"):
            bstune.scale(recommendation(lr_rule=None), batch_size=128, optimizer=optimizer)


def test_a_rule_that_is_hardly_measured_is_called_so() -> None:
    """Its interval is that of the prior: the trials have added next to nothing."""
    [warning] = bstune.scale(recommendation(lr_rule=LrRule(0.5, 0.18, 0.82)), batch_size=128).warnings

    assert "hardly measured" in warning
    assert bstune.scale(recommendation(lr_rule=LrRule(0.5, 0.3, 0.7)), batch_size=128).warnings == ()


def test_betas_decay_and_warm_up_follow() -> None:
    """At twice the batch 1 - beta doubles, eps falls by its root, and warm-up takes as many samples."""
    best = recommendation(lr_rule=None, params={"weight_decay": 0.1, "depth": 3})
    moved = bstune.scale(best, batch_size=128, optimizer="Adam", betas=(0.9, 0.999), eps=1e-8, warmup_steps=101)

    assert moved.betas == pytest.approx((0.8, 0.998))
    assert moved.eps == pytest.approx(1e-8 / 2**0.5)
    assert moved.warmup_steps == 51
    assert moved.params == {"depth": 3}
    assert moved.weight_decay is not None
    # Weights average over batch / (rate * decay) samples, as before.
    assert 128 / (moved.learning_rate * moved.weight_decay) == pytest.approx(64 / (0.1 * 0.1))


def test_betas_that_the_rule_cannot_give_are_said() -> None:
    """1 - 16 * 0.1 is no beta."""
    moved = bstune.scale(recommendation(), batch_size=1024, betas=(0.9, 0.999))

    assert moved.betas == pytest.approx((0.0, 0.984))
    assert any("no value for 0.9" in warning for warning in moved.warnings)


def test_all_that_is_wrong_is_named() -> None:
    """At once."""
    with pytest.raises(bstune.ArgumentError, match=r"(?s)3 arguments are wrong.*batch_size.*betas.*warmup_steps"):
        bstune.scale(recommendation(), batch_size=0, betas=(0.9, 1.0), warmup_steps=-1)


def test_a_micro_batch_that_the_search_has_not_tried_is_said_to_be_missing() -> None:
    """A search probes no more than it uses, and more may fit; nothing is to be said where memory was the end."""
    result = demo_result()
    found = result.probe
    assert found is not None

    def moved(limited_by: Any, batch: int, **more: Any) -> bstune.Scaled:
        probe = dataclasses.replace(found, micro_batch_size=32, limited_by=limited_by)
        return bstune.scale(dataclasses.replace(result, probe=probe), batch_size=batch, **more)

    said = "Larger micro-batches than 32 were not tried, and may fit: run bstune probe, and give what it finds"
    capped = moved("max_batch", 4096)
    assert (capped.micro_batch_size, capped.accumulation_steps) == (32, 128)
    assert any(warning.startswith(said) for warning in capped.warnings)
    for other in (moved("memory", 4096), moved("max_batch", 32), moved("max_batch", 4096, micro_max=1024)):
        assert not any("not tried" in warning for warning in other.warnings)
