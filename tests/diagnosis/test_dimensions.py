"""Findings about dimensions of a search, the optimizer and momentum, on trials whose answers are known."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bstune.tests.diagnosis.made import FULL, SEEDS, covers, finding, known_of, momenta, of_kind, record, searched, seen
from bstune.tests.diagnosis.problems import both_optimizers
from bstune.tuner.diagnosis.known import Known

pytestmark = pytest.mark.parametrize("seed", SEEDS)


def test_adam_or_sgd(seed: int) -> None:
    """The optimizer with the lower loss at equal samples and as many settings is told, and where both are alike not."""
    names = ("AdamW", "torch.optim.SGD")
    better = known_of(of_kind(names[0], 0.10, 5, seed=seed), of_kind(names[1], 0.15, 5, seed=seed))
    worse = known_of(of_kind(names[0], 0.15, 5, seed=seed), of_kind(names[1], 0.10, 5, seed=seed))
    alike = known_of(of_kind(names[0], 0.10, 5, seed=seed), of_kind(names[1], 0.10, 5, seed=seed))

    verdicts = [finding("adam-or-sgd", known).verdict for known in (better, worse, alike)]
    assert verdicts == ["holds", "does not hold", "cannot tell"]
    assert covers(finding("adam-or-sgd", better), 1.5)
    assert covers(finding("adam-or-sgd", alike), 1.0)


def test_adam_or_sgd_without_a_search_of_both(seed: int) -> None:
    """Where curvatures differ a thousandfold Adam is far ahead, and in a round valley SGD goes straight."""
    flat, even = (finding("adam-or-sgd", both_optimizers(each, seed=seed)) for each in (0.001, 1.0))

    assert (flat.verdict, even.verdict) == ("holds", "does not hold")
    assert flat.found.startswith("after 3,200 samples at the best of 6 rates each Adam ends at")


def test_optimizers_that_were_trained_and_cannot_be_told_apart(seed: int) -> None:
    """Alike within what seeds differ, a loser whose best rate is the last on its side, and divergence are said."""

    def known(sgd: tuple[float, ...], rate: float = 0.1) -> Known:
        rates = {f"{kind}_rates": (0.02, 0.1, 0.4) for kind in ("sgd", "adam")}
        values = {**rates, "sgd": sgd, "adam": (0.2, 0.21, 0.19), "sgd_best": (rate,), "adam_best": (0.1,)}
        return seen("two_optimizers", values | {"settings": (6.0,), "samples": (1000.0,)})

    alike, far = finding("adam-or-sgd", known((0.21, 0.2, 0.2))), known((0.4, 0.42, 0.38))
    edge, lost = known((0.4, 0.42, 0.38), rate=0.4), known((0.4, math.inf, 0.38))

    assert alike.verdict == "cannot tell"
    assert finding("adam-or-sgd", far).verdict == "holds"
    assert covers(finding("adam-or-sgd", far), 2.0)
    assert "rate of SGD is the last" in finding("adam-or-sgd", edge).found
    assert "diverged" in finding("adam-or-sgd", lost).found


def test_optimizers_are_compared_at_equal_samples_and_settings(seed: int) -> None:
    """What only one of them was given more of does not count: trials, or samples."""
    adam, sgd = of_kind("adam", 0.10, 5, seed=seed), of_kind("sgd", 0.10, 5, seed=seed, end=FULL // 3)
    longer = finding("adam-or-sgd", known_of(adam, sgd))
    lucky = dataclasses.replace(record(99, 32, 0.03, [(FULL, 0.01)]), params={"kind": "adam"})
    more = finding("adam-or-sgd", known_of(adam, of_kind("sgd", 0.10, 5, seed=seed), [lucky]))

    assert covers(longer, 1.0)
    assert "33%" in longer.found
    assert covers(more, 1.0)


def test_optimizers_that_cannot_be_compared(seed: int) -> None:
    """Too few settings, and a loser whose best rate may lie beyond those that were tried, are said."""
    few = finding("adam-or-sgd", known_of(of_kind("adam", 0.1, 5), of_kind("sgd", 0.2, 3)))
    edge = finding("adam-or-sgd", known_of(of_kind("adam", 0.1, 5, seed=seed), of_kind("sgd", 0.2, 5, middle=4)))

    assert few.verdict == edge.verdict == "cannot tell"
    assert "3 settings of SGD and 5 of Adam" in few.found
    assert "SGD" in edge.found
    assert "last one tried" in edge.found


@pytest.mark.parametrize(("slope", "name", "verdict"), [(0.5, "momentum", "holds"), (0.0, "beta1", "does not hold")])
def test_momentum_for_the_batch(slope: float, name: str, verdict: str, seed: int) -> None:
    """The slope of the best momentum over the batch is within its interval, and decides."""
    found = finding("momentum-for-batch", momenta(slope, seed=seed, name=name))

    assert covers(found, slope)
    assert found.verdict == verdict


def test_momenta_that_are_usual_are_no_whole_octaves_apart(seed: int) -> None:
    """The grid that the advice names: what is found is by the values that were tried."""
    found = finding("momentum-for-batch", momenta(0.5, seed=seed, tried=(0.5, 0.75, 0.9, 0.95, 0.98)))

    assert covers(found, 0.5)
    assert found.figure == pytest.approx(0.5, abs=0.2)


def test_momenta_that_cannot_be_told_apart(seed: int) -> None:
    """Where losses differ by no more than seeds do, or one momentum was tried alone, the reason is said."""
    flat = finding("momentum-for-batch", momenta(0.0, sharp=0.0, seed=seed))
    alone = finding("momentum-for-batch", searched(tuple(of_kind("sgd", 0.1, 5))))

    assert (flat.verdict, alone.verdict) == ("cannot tell", "cannot tell")
    assert "than seeds differ" in flat.found
    assert "several values" in alone.found
