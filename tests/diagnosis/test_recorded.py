"""Findings that cost nothing, on probes and trials whose answers are known: where a claim holds, and where not."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bstune.tests.diagnosis.made import FULL, SEEDS, covers, finding, grid, probe, record, searched
from bstune.tests.report.told import FACTS
from bstune.tuner.core.diagnosis import Diagnosis
from bstune.tuner.diagnosis.claims import CLAIMS, NAMES, judged
from bstune.tuner.diagnosis.kept import findings_of
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.report.diagnosis_text import diagnosis_text

pytestmark = pytest.mark.parametrize("seed", SEEDS)


def flat(batch: int) -> float:
    """Step times that hardly depend on the batch."""
    return 0.01 + 1e-6 * batch


def steep(batch: int) -> float:
    """Half of the peak speed at 10."""
    return 0.001 + 1e-4 * batch


def test_whether_a_step_takes_the_same_time(seed: int) -> None:
    """The ratio of the largest to the smallest timed size is within its interval, and decides."""
    small = finding("flat-step-time", searched(of=probe(flat, seed=seed)))
    large = finding("flat-step-time", searched(of=probe(steep, seed=seed)))

    assert (small.verdict, large.verdict) == ("holds", "does not hold")
    assert covers(small, flat(1024) / flat(4))
    assert covers(large, steep(1024) / steep(4))


def test_whether_step_times_lie_on_a_line(seed: int) -> None:
    """A device that works in stairs is seen."""
    line = finding("step-time-line", searched(of=probe(steep, seed=seed, noise=0.01)))
    stairs = finding("step-time-line", searched(of=probe(lambda n: 0.01 * 4 ** (n > 60), seed=seed, noise=0.01)))

    assert (line.verdict, stairs.verdict) == ("holds", "does not hold")


@pytest.mark.parametrize("name", ["better-use", "below-32"])
def test_whether_small_batches_waste_the_device(name: str, seed: int) -> None:
    """They do where the fixed part of a step is large."""
    wasteful = finding(name, searched(of=probe(lambda n: 0.1 + 1e-4 * n, seed=seed)))
    busy = finding(name, searched(of=probe(lambda n: 1e-5 + 1e-3 * n, seed=seed)))

    assert (wasteful.verdict, busy.verdict) == ("holds", "does not hold")


def test_what_limits_the_memory_and_the_loader(seed: int) -> None:
    """As the probe found it."""
    bound = probe(steep, seed=seed, limited_by="memory")
    assert bound.loader is not None
    slow = dataclasses.replace(bound, loader=dataclasses.replace(bound.loader, wait_share=0.6, bound=True))

    assert finding("which-memory", searched(of=bound)).verdict == "holds"
    assert (
        finding("which-memory", searched(of=probe(steep, seed=seed, limited_by="dataset"))).verdict == "does not hold"
    )
    assert finding("loader", searched(of=bound)).verdict == "holds"
    assert finding("loader", searched(of=slow)).verdict == "does not hold"


@pytest.mark.parametrize(
    ("slope", "coupled", "linear", "root"),
    [
        (1.0, "holds", "holds", "does not hold"),
        (0.5, "holds", "does not hold", "holds"),
        (0.0, "does not hold", "does not hold", "does not hold"),
    ],
)
def test_how_the_rate_moves_with_the_batch(slope: float, coupled: str, linear: str, root: str, seed: int) -> None:
    """The slope is within its interval, and tells the two rules from each other, unless it says it cannot."""
    known = searched(grid(slope=slope, seed=seed))
    found = [finding(name, known) for name in ("coupling", "linear-rule", "root-rule")]

    assert covers(found[0], slope)
    for each, right in zip(found, (coupled, linear, root), strict=True):
        assert each.verdict in (right, "cannot tell")
    assert found[0].verdict == coupled
    assert sum(each.verdict != "cannot tell" for each in found) >= 2


def test_whether_a_wrong_rate_costs(seed: int) -> None:
    """Where losses do not depend on the rate, tuning it is waste."""
    sharp, dull = (searched(grid(slope=1, sharp=sharp, seed=seed)) for sharp in (0.1, 0.0))

    assert finding("rate-too-far", sharp).verdict == "holds"
    assert finding("rate-too-far", dull).verdict in ("does not hold", "cannot tell")


def test_whether_a_large_batch_is_worse(seed: int) -> None:
    """With its own best rate each, losses differ by 15 % a doubling, or not at all."""
    worse = finding("large-is-worse", searched(grid(slope=1, worse=0.15, seed=seed)))
    same = finding("large-is-worse", searched(grid(slope=1, worse=0.0, seed=seed)))

    assert (worse.verdict, same.verdict) == ("holds", "does not hold")
    assert covers(worse, 100 * math.expm1(0.15))


def test_whether_one_rate_does_for_all_batches(seed: int) -> None:
    """It does where the best rate does not move."""
    moves = finding("shared-rate", searched(grid(slope=1, sharp=0.3, seed=seed)))
    stays = finding("shared-rate", searched(grid(slope=0, sharp=0.3, seed=seed, noise=0.01)))

    assert moves.verdict == "does not hold"
    assert stays.verdict == "holds"


def test_which_batch_is_fastest(seed: int) -> None:
    """Where a step takes as long whatever its size the largest batch is first; where samples count, it is as soon."""
    records = grid(slope=1, seed=seed)
    hardware = finding("largest-fastest", searched(records, target=0.12, of=probe(flat, seed=seed)))
    samples = finding(
        "largest-fastest", searched(grid(slope=1, worse=0.3, seed=seed), target=0.15, of=probe(lambda n: 1e-3 * n))
    )

    assert (hardware.verdict, samples.verdict) == ("holds", "does not hold")


def test_curves_that_rise_and_fall(seed: int) -> None:
    """The best checkpoint matters where the last loss is above it; a rise that is followed by a fall is counted."""
    n = 12

    def runs(losses: list[float]) -> Known:
        points = [round(FULL * (i + 1) / len(losses)) for i in range(len(losses))]
        made = [
            record(i, 32, 0.01, [(at, (1 + 0.01 * seed) * x) for at, x in zip(points, losses, strict=True)], seed=i)
            for i in range(n)
        ]
        return searched(tuple(made))

    waves, falls, late = [1.0, 0.5, 0.7, 0.4, 0.3], [1.0, 0.8, 0.6, 0.5, 0.4], [1.0, 0.5, 0.4, 0.5, 0.6]

    assert finding("first-rise", runs(waves)).verdict == "holds"
    assert finding("first-rise", runs(falls)).verdict == "does not hold"
    assert finding("best-checkpoint", runs(late)).verdict == "holds"
    assert finding("best-checkpoint", runs(falls)).verdict == "does not hold"


def test_whether_short_runs_tell(seed: int) -> None:
    """They do where the ranks stay."""
    known = searched(grid(slope=1, sharp=0.3, seed=seed))

    assert finding("short-runs-tell", known).verdict == "holds"


def test_nothing_recorded_is_said(seed: int) -> None:
    """Each finding says why it cannot be told, and what to run; nothing fails."""
    for known in (Known(), Known(FACTS), Known(FACTS, probe(steep, seed=seed)), searched()):
        for found in judged(CLAIMS, known):
            if found.verdict in ("cannot tell", "not applicable"):
                assert found.found, found.name


def test_a_diagnosis_survives_json_and_fits_80_columns(seed: int) -> None:
    """Whatever was found."""
    diagnosis = Diagnosis(judged(CLAIMS, searched(grid(slope=1, seed=seed))), "digits", "cpu", warnings=("Old.",))

    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
    assert diagnosis["coupling"].name == "coupling"
    assert str(diagnosis) == diagnosis_text(diagnosis)
    assert max(map(len, str(diagnosis).splitlines())) <= 80
    assert all(name in str(diagnosis) for name in NAMES)
    assert "<table>" in diagnosis._repr_html_()


def test_a_report_tells_what_is_recorded_now_and_what_was_measured_once(seed: int) -> None:
    """A finding that rests on trials is worked out anew; one that took a measurement is as it was kept."""
    known = searched(grid(slope=1, seed=seed))
    kept = finding("coupling", known)
    old = (
        dataclasses.replace(kept, found="old"),
        dataclasses.replace(kept, name="noisy-loss", found="measured"),
    )

    told = {each.name: each for each in findings_of(known, old)}
    assert told["coupling"] == kept
    assert told["noisy-loss"].found == "measured"
    assert set(told) == set(NAMES)
