"""Findings about a small and a large batch side by side, on problems whose answers are known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from bstune.objectives import look_at_sizes
from bstune.objectives.look_at_sizes import CROSSED_RUNS
from bstune.tests.diagnosis.made import SEEDS, covers, ended, finding, grid, searched
from bstune.tests.diagnosis.problems import beside, crossed, crossed_truth, looked_at, normalised
from bstune.tuner.core.examination import ExamineSpec, Look
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.diagnosis.measured import ghost_size, two_sizes

NOISE = math.sqrt(30)


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_that_are_crossed_without_a_search(seed: int) -> None:
    """In a noisy valley the best rate is proportional to the batch; with a high floor no pair is bad."""
    noisy = finding("crossed-pairs", crossed(NOISE, 0.0, seed=seed))
    floor = finding("crossed-pairs", crossed(NOISE, 1000.0, seed=seed))

    assert (noisy.verdict, floor.verdict) == ("holds", "does not hold")
    assert covers(noisy, crossed_truth(NOISE, 0.0))
    assert covers(floor, crossed_truth(NOISE, 1000.0))
    assert noisy.data["learning_rate"] == pytest.approx([0.016, 0.128])


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_that_are_far_off_are_moved_until_the_best_lie_between(seed: int) -> None:
    """Where both batch sizes like the higher one better, both rates go up; and down where they like the lower one."""
    for factor in (1 / 64, 64.0):
        found = finding("crossed-pairs", crossed(NOISE, 0.0, seed=seed, rates=(0.016 * factor, 0.128 * factor)))

        assert found.verdict == "holds"
        assert found.data["learning_rate"] == pytest.approx([0.016, 0.128])


def test_rates_that_cannot_be_found() -> None:
    """It is said where they lie beyond all that were tried, and that a search tells more."""
    lost = finding("crossed-pairs", crossed(NOISE, 0.0, seed=0, rates=(1e-9, 2e-9)))

    assert lost.verdict == "cannot tell"
    assert "beyond both" in lost.found
    assert "bstune search" in lost.advice


@pytest.mark.parametrize(("octaves", "runs"), [(0, 12), (1, 14), (-2, 12), (3, 14), (9, 10), (-9, 10)])
def test_no_rate_is_trained_twice(octaves: int, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are moved on by one training of each size, and where they cannot be found other seeds are not trained."""
    trained: list[tuple[int, float, int]] = []

    def loss_after(run: object, spec: ExamineSpec, size: int, rate: float, seed: int) -> float:
        trained.append((size, rate, seed))
        return math.exp(abs(math.log(rate / 0.1) / math.log(3) - octaves - size + 0.01))

    monkeypatch.setattr("bstune.objectives.look_at_sizes._loss_after", loss_after)
    spec = ExamineSpec(("crossed_pairs",), 32, 32, 1, 0.1, 0, 64, sizes=(1280, 8, 8, 64, 64), rates=(0.1, 0.3))
    values, _ = look_at_sizes.crossed_pairs(None, spec)  # type: ignore[arg-type]

    assert len(trained) == runs <= 2 * CROSSED_RUNS
    assert len({(size, round(math.log(rate), 6), seed) for size, rate, seed in trained}) == runs
    assert values["between"] == (float(abs(octaves) < 9),)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "holds"), (0.0, "does not hold")])
def test_rates_that_a_search_has_crossed(slope: float, verdict: str, seed: int) -> None:
    """The trials tell it, and nothing is trained; where the best rate does not move there is nothing to cross.

    That little is lost is known only where runs of fresh seeds tell how much two losses differ by chance.
    """
    assert finding("crossed-pairs", searched(grid(slope=slope, seed=seed, fresh=6))).verdict == verdict
    alone = finding("crossed-pairs", searched(grid(slope=slope, seed=seed))).verdict
    assert alone == ("holds" if slope else "cannot tell")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "holds"), (0.0, "does not hold")])
def test_losses_at_equal_training_loss(gain: float, verdict: str, seed: int) -> None:
    """A model that is better on new data with each update is worse with a large batch, by as much as is known."""
    known = beside(gain, seed=seed)
    found = finding("generalization-gap", known)

    assert found.verdict == verdict
    assert covers(found, 100 * math.expm1(gain * math.log(2)))
    sharp = finding("sharp-minima", known)  # A round valley is as sharp everywhere.
    assert sharp.verdict == "does not hold"
    assert covers(sharp, 1.0)
    assert "hint only" in sharp.advice
    assert ("no worse on new data" in sharp.advice) == (gain == 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("sharper", "worse", "verdict"),
    [(2.0, 0.1, "holds"), (2.0, 0.0, "does not hold"), (1.0, 0.1, "does not hold"), (1.25, 0.1, "cannot tell")],
)
def test_sharp_minima(sharper: float, worse: float, verdict: str, seed: int) -> None:
    """The claim is of two halves: sharper, and worse on new data."""
    known = ended(sharper, worse, seed)

    assert finding("sharp-minima", known).verdict == verdict
    assert covers(finding("sharp-minima", known), sharper)
    assert covers(finding("generalization-gap", known), 100 * math.expm1(worse))


def test_trainings_that_tell_nothing() -> None:
    """Divergence, losses of zero and a curvature that could not be measured are said."""
    known = ended(2.0, 0.1, 0)

    def changed(**values: tuple[float, ...]) -> Known:
        looks = tuple(dataclasses.replace(look, values={**look.values, **values}) for look in known.looks)
        return dataclasses.replace(known, looks=looks)

    lost = changed(large_train=(2.0, math.inf, math.nan, math.nan, math.nan))
    unseen = changed(large_curvature=())
    failed = dataclasses.replace(known, looks=(Look("side_by_side", 0, 0, 1.0, {}, failed="it ran out of memory"),))

    one_lost = dataclasses.replace(known, looks=(*known.looks[:2], lost.looks[2]))

    assert "diverged" in finding("generalization-gap", lost).found
    assert "over 2 seeds" in finding("generalization-gap", one_lost).found
    assert "over 3 seeds" in finding("generalization-gap", known).found
    assert "could not be measured" in finding("sharp-minima", unseen).found
    assert finding("generalization-gap", unseen).verdict == "holds"
    assert "out of memory" in finding("sharp-minima", failed).found


def test_parts_of_a_batch_are_trained_as_one_batch() -> None:
    """At a low rate they end where the whole does: statistics for the validation are made afresh, and alike."""
    asked: dict[str, Any] = {"global_batch_size": 64, "micro_batch_size": 64, "points": (0,), "sizes": (1280, 16)}
    [look] = looked_at(normalised(pixels=16), ["ghost_batches"], rate=1e-3, **asked).looks

    assert look.failed is None
    assert look.values["parts"] == pytest.approx(look.values["whole"], rel=0.05)
    assert look.values["parts"] != look.values["whole"]


def test_sizes_that_are_compared() -> None:
    """Eight times apart around the one that is looked at, as far as data and steps allow."""
    known = searched()
    assert known.facts is not None
    short = dataclasses.replace(known, facts=dataclasses.replace(known.facts, epochs=0.1))

    pair = two_sizes(known, 0.25)
    assert pair is not None
    assert pair[0] <= known.batch <= pair[1] == 8 * pair[0]
    assert two_sizes(short, 0.25) is None
    assert finding("generalization-gap", short).verdict == "not applicable"
    assert finding("crossed-pairs", short).verdict == "not applicable"
    assert [ghost_size(n) for n in (256, 48, 32, 16, 37)] == [32, 24, None, None, None]
