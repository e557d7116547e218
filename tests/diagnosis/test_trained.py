"""Findings from short trainings, on figures whose answers are known: where a claim holds, and where not."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping

import pytest
from bstune.tests.diagnosis.made import SEEDS, covers, finding, probe, searched
from bstune.tuner.core.examination import Look
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.diagnosis.measured import Tasks, odd_sizes
from bstune.tuner.diagnosis.trained import powers_of_two

pytestmark = pytest.mark.parametrize("seed", SEEDS)


def seen(measurement: str, *found: Mapping[str, tuple[float, ...]]) -> Known:
    """What is known after these looks, one a seed."""
    looks = [Look(measurement, 0, i, 1.0, values) for i, values in enumerate(found)]
    return dataclasses.replace(searched(), looks=tuple(looks))


def timed(seconds: Callable[[int], float], seed: int) -> Known:
    """Step times of odd sizes in turns; a load that comes and goes slows whole turns."""
    chance = random.Random(seed)
    known = searched()
    load = [1 + (chance.random() < 0.3) for _ in range(15)]
    values = {
        f"s_{n}": tuple(seconds(n) * slow * math.exp(chance.gauss(0, 0.005)) for slow in load) for n in odd_sizes(known)
    }
    return dataclasses.replace(known, looks=(Look("step_times", 0, seed, 1.0, values),))


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


def losses(peak: float, seed: int) -> dict[str, tuple[float, ...]]:
    """The first losses of a run: they rise to a peak, with a little noise, and fall."""
    chance = random.Random(seed)
    shape = [1 + (peak - 1) * math.exp(-(((i - 10) / 4) ** 2)) - 0.01 * i for i in range(30)]
    return {"loss": tuple(2.3 * x * math.exp(chance.gauss(0, 0.02)) for x in shape)}


def test_an_unstable_start(seed: int) -> None:
    """A peak of three times the first loss is one, none is none, and divergence is the worst."""
    spike = seen("early_losses", *(losses(3.0, seed + i) for i in range(3)))
    calm = seen("early_losses", *(losses(1.0, seed + i) for i in range(3)))
    lost = seen("early_losses", *({"loss": (2.3, 9.0, math.nan)} for _ in range(3)))

    assert finding("warm-up", spike).verdict == "holds"
    assert finding("warm-up", calm).verdict == "does not hold"
    assert finding("warm-up", lost).verdict == "holds"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "holds"), (1.3, "does not hold")])
def test_a_growing_batch(ratio: float, verdict: str, seed: int) -> None:
    """As good as a decaying rate, or 30 % worse."""
    chance = random.Random(seed)
    found: list[dict[str, tuple[float, ...]]] = []
    for _ in range(3):
        decay = 0.1 * math.exp(chance.gauss(0, 0.1))
        grown = decay * ratio * math.exp(chance.gauss(0, 0.005))
        found.append({"decay": (decay,), "grown": (grown,), "decay_updates": (40.0,), "grown_updates": (26.0,)})
    known = seen("grown_batch", *found)

    assert finding("grow-the-batch", known).verdict == verdict
    assert covers(finding("grow-the-batch", known), ratio)
    assert "BatchRamp" in finding("grow-the-batch", known).advice or ratio > 1


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
    names = ("gradients", "step_times", "early_losses", "grown_batch", "at_full_batch", "structure")

    prices = {name: sum(task.reference_runs for task in tasks.of(name)) for name in names}
    assert all(price >= 0 for price in prices.values())
    assert 0 < sum(prices.values()) <= 3
