"""Findings from short trainings, on figures whose answers are known: where a claim holds, and where not."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bstune.tests.diagnosis.made import (
    SEEDS,
    covers,
    finding,
    first_losses,
    ghosts,
    grown,
    probe,
    searched,
    seen,
    timed,
    with_best,
)
from bstune.tuner.diagnosis.measured import Tasks, odd_sizes
from bstune.tuner.diagnosis.trained import powers_of_two

pytestmark = pytest.mark.parametrize("seed", SEEDS)


def test_odd_sizes(seed: int) -> None:
    """A device that likes powers of two, or multiples of 8, is told from one that does not care."""
    likes = timed(lambda n: 1e-3 * n * (1.0 if n % 8 == 0 else 1.2), seed)
    no_matter = timed(lambda n: 1e-3 * n, seed)

    for name in ("powers-of-two", "multiples-of-8"):
        assert finding(name, likes).verdict == "holds"
        assert covers(finding(name, likes), 20.0)
        assert finding(name, no_matter).verdict == "does not hold"


def test_odd_sizes_that_do_not_fit(seed: int) -> None:
    """They are not asked for."""
    small = searched(of=probe(lambda n: 1e-3 * n, seed=seed, micro_batch_size=10))

    assert odd_sizes(small) == ()
    assert powers_of_two(small).verdict == "cannot tell"


def test_an_unstable_start(seed: int) -> None:
    """A peak of three times the first loss is one, none is none, and divergence is the worst."""
    spike = seen("early_losses", *(first_losses(3.0, seed + i) for i in range(3)))
    calm = seen("early_losses", *(first_losses(1.0, seed + i) for i in range(3)))
    lost = seen("early_losses", *({"loss": (2.3, 9.0, math.nan)} for _ in range(3)))

    assert finding("warm-up", spike).verdict == "holds"
    assert finding("warm-up", calm).verdict == "does not hold"
    assert finding("warm-up", lost).verdict == "holds"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "holds"), (1.3, "does not hold")])
def test_a_growing_batch(ratio: float, verdict: str, seed: int) -> None:
    """As good as a decaying rate, or 30 % worse."""
    found = finding("grow-the-batch", grown(ratio, seed))

    assert found.verdict == verdict
    assert covers(found, ratio)
    assert "BatchRamp" in found.advice or ratio > 1


@pytest.mark.parametrize(("ratio", "verdict"), [(0.9, "holds"), (1.0, "does not hold")])
def test_ghost_batches(ratio: float, verdict: str, seed: int) -> None:
    """Small parts that are 10 % better are worth it; a batch that is small itself, or a model without, is not asked."""
    known = ghosts(ratio, seed)
    found = finding("ghost-batches", known)

    assert found.verdict == verdict
    assert covers(found, ratio)
    assert "64" in found.found
    assert known.facts is not None
    plain = dataclasses.replace(known, facts=dataclasses.replace(known.facts, batch_norm=False))
    for other in (plain, with_best(known, global_batch_size=32)):
        assert finding("ghost-batches", other).verdict == "not applicable"


def test_ghost_batches_are_parts_of_what_is_run_at_once(seed: int) -> None:
    """Where 32 samples fit, BatchNorm sees no more of a batch of 128 anyway, and nothing is trained for it."""
    known = with_best(ghosts(0.9, seed), global_batch_size=128)
    parts = {64: (32,), 48: (), 32: ()}
    for fits, part in parts.items():
        of = dataclasses.replace(known, probe=probe(lambda n: 1e-3 * n, seed=seed, micro_batch_size=fits))
        found = finding("ghost-batches", of)

        assert tuple(task.spec.sizes[1] for task in Tasks(of, seed).of("ghost_batches"))[:1] == part
        assert (found.verdict == "not applicable") == (not part)
        assert f"micro-batch of {fits}" in found.found or not part
    assert "micro-batches of 32" in found.found


@pytest.mark.parametrize(("ratio", "verdict"), [(0.8, "holds"), (1.5, "does not hold")])
def test_full_batch(ratio: float, verdict: str, seed: int) -> None:
    """Its best rate counts, and rates that diverge do not."""
    own = 0.1 + 0.01 * seed
    known = seen("at_full_batch", {"own": (own,), "rate": (0.1, 0.4, 1.6), "loss": (9.0, ratio * own, math.nan)})

    assert finding("full-batch", known).verdict == verdict
    assert known.facts is not None
    large = dataclasses.replace(known, facts=dataclasses.replace(known.facts, n_samples=60_000))
    assert finding("full-batch", large).verdict == "not applicable"


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_trainings_cost(seed: int, ranks: int) -> None:
    """All of the demo's together take at most three reference runs; one process looks, where several train."""
    known = searched()
    assert known.facts is not None
    tasks = Tasks(dataclasses.replace(known, facts=dataclasses.replace(known.facts, world_size=ranks)), seed)
    names = ("gradients", "step_times", "early_losses", "grown_batch", "at_full_batch", "structure", "crossed_pairs")

    prices = {name: sum(task.reference_runs for task in tasks.of(name)) for name in names}
    assert all(price >= 0 for price in prices.values())
    assert 0 < sum(prices.values()) <= 3
