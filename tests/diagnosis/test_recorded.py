"""Findings that cost nothing, on probes and trials whose answers are known: where a claim holds, and where not."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bstune.tests.diagnosis.made import (
    FALLS,
    FULL,
    LATE,
    SEEDS,
    WAVES,
    confirmed,
    covers,
    crossing,
    curves,
    finding,
    grid,
    probe,
    record,
    searched,
    shaped,
    with_best,
)
from bstune.tests.report.told import FACTS
from bstune.tuner.core.diagnosis import Diagnosis, Finding
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.diagnosis.claims import CLAIMS, NAMES, judged
from bstune.tuner.diagnosis.kept import findings_of
from bstune.tuner.diagnosis.known import Known
from bstune.tuner.report.diagnosis_text import diagnosis_text
from bstune.tuner.report.reasons import loader_advice

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
    for speed, advice in ((1e3, "Raise num_workers"), (1e5, "__getitems__")):
        # Worker processes are for samples that take some time; those in memory come sooner by whole batches.
        loader = dataclasses.replace(bound.loader, wait_share=0.6, bound=True, samples_per_s_without=speed)
        found = finding("loader", searched(of=dataclasses.replace(bound, loader=loader)))
        assert found.verdict == "does not hold"
        assert advice in found.advice
        assert ("num_workers" in found.advice) == (speed == 1e3)
    assert loader_advice(loader) != loader_advice(loader, sample_size=100.0)  # Of 100 tokens each: a sample takes long.


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


def test_rates_of_short_runs_that_the_search_contradicts(seed: int) -> None:
    """Verdict and advice are of one mind: a slope of short runs is believed where the rule of all trials agrees."""
    short = tuple(
        dataclasses.replace(run, values=run.values[:3], samples=run.values[2][0], state="pruned")
        for run in grid(slope=1, seed=seed)
    )
    known = searched(short)
    assert known.best is not None
    assert known.best.lr_rule is not None
    for alpha, verdict, word in ((1.0, "holds", "by 2.00"), (0.2, "cannot tell", "say 1.15")):
        ruled = with_best(known, lr_rule=dataclasses.replace(known.best.lr_rule, alpha=alpha))
        for name in ("coupling", "linear-rule"):
            assert finding(name, ruled).verdict == verdict
        found = finding("coupling", ruled)
        assert covers(found, 1.0)
        assert word in f"{found.found} {found.advice}"


def test_whether_a_wrong_rate_costs(seed: int) -> None:
    """Where losses hardly depend on the rate, tuning it is waste."""
    sharp, dull = (searched(grid(slope=1, sharp=sharp, seed=seed, noise=0.001)) for sharp in (0.1, 0.003))

    assert finding("rate-too-far", sharp).verdict == "holds"
    assert finding("rate-too-far", dull).verdict == "does not hold"


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

    stopped = record(len(records), 4096, 0.1, [(FULL // 9, 0.4)])
    short = finding("largest-fastest", searched((*records, stopped), target=0.12, of=probe(flat, seed=seed)))
    assert short.verdict == "cannot tell"
    assert "no run of 4,096 was there" in short.found


def test_which_batch_has_learned_more_after_as_many_seconds(seed: int) -> None:
    """The small one where samples count, the large one where steps do."""
    small = searched(grid(slope=1, worse=0.3, seed=seed), of=probe(lambda n: 1e-3 * n, seed=seed))
    large = searched(grid(slope=1, seed=seed), of=probe(flat, seed=seed))

    assert finding("small-equal-seconds", small).verdict == "holds"
    assert finding("small-equal-seconds", large).verdict == "does not hold"


def test_batches_by_what_is_counted(seed: int) -> None:
    """Updates and what is left over, of a data set of known size."""
    known = searched()
    assert known.facts is not None
    facts = dataclasses.replace(known.facts, n_samples=1000 * (seed + 1), epochs=10)
    few = with_best(dataclasses.replace(known, facts=facts), global_batch_size=30)
    many = dataclasses.replace(few, facts=dataclasses.replace(facts, n_samples=1_000_000))
    tiny = dataclasses.replace(few, facts=dataclasses.replace(facts, n_samples=20))

    n = 1000 * (seed + 1)
    assert finding("4-or-4096", few).figure == 10 * n // 4096
    assert [finding("4-or-4096", each).verdict for each in (few, many)] == ["holds", "does not hold"]
    assert [finding("updates-per-epoch", each).verdict for each in (few, tiny)] == ["holds", "does not hold"]
    assert finding("updates-per-epoch", few).figure == n // 30
    assert list(finding("updates-per-epoch", few).data["waste"]) == [n % 30]


def test_how_full_the_memory_is_to_be(seed: int) -> None:
    """By which batch sizes the search cannot tell from the best, and what fits."""
    known = searched(grid(slope=1, seed=seed), of=probe(steep, seed=seed, micro_batch_size=64, limited_by="memory"))

    def at(best: int, low: int, high: int) -> str:
        return finding("fill-memory", with_best(known, global_batch_size=best, batch_interval=(low, high))).verdict

    assert at(64, 32, 128) == "holds"
    assert at(16, 8, 32) == at(256, 128, 512) == "does not hold"


@pytest.mark.parametrize("limited_by", ["max_batch", "timeout"])
def test_a_memory_that_was_not_filled_is_not_called_full(limited_by: str, seed: int) -> None:
    """What ended at what a search uses, or at its time, does not say what fits: to look further is the advice."""
    records = grid(slope=1, seed=seed)
    known = searched(records, of=probe(steep, seed=seed, micro_batch_size=64, limited_by=limited_by))

    for best, low, high in ((64, 32, 128), (64, 64, 64), (128, 128, 256)):
        found = finding("fill-memory", with_best(known, global_batch_size=best, batch_interval=(low, high)))
        assert found.verdict == "cannot tell"
        assert "bstune probe MODEL" in found.advice
        assert f"--space batch_size={best}:N" in found.advice
    smaller = finding("fill-memory", with_best(known, global_batch_size=16, batch_interval=(8, 32)))
    assert smaller.verdict == "does not hold"  # More than is best fits in any case.


def test_whether_32_is_a_good_start(seed: int) -> None:
    """Sooner than what the search recommends, or half as soon, or the answer itself."""
    known = searched()

    def beside(times: float) -> str:
        assert known.best is not None
        of_32 = next(each for each in known.best.compared if each.name == "batch 32")
        ran = dataclasses.replace(of_32, times_sooner=times + seed / 100)
        return finding("start-with-32", with_best(known, global_batch_size=16, compared=(ran,))).verdict

    assert beside(0.9) == "holds"
    assert beside(2.0) == "does not hold"
    assert finding("start-with-32", with_best(known, global_batch_size=32)).verdict == "holds"


@pytest.mark.parametrize("name", ["start-with-32", "below-32", "4-or-4096"])
def test_a_number_of_samples_says_nothing_of_tokens(name: str, seed: int) -> None:
    """Where sizes count these, batch 32 is not what is meant."""
    known = searched(of=probe(steep, seed=seed))
    assert known.facts is not None
    by_tokens = dataclasses.replace(known, facts=dataclasses.replace(known.facts, size_unit="tokens"))

    assert finding(name, known).verdict != "not applicable"
    assert finding(name, by_tokens).verdict == "not applicable"
    assert "count tokens" in finding(name, by_tokens).found


@pytest.mark.parametrize(("luck", "verdict"), [(1.1, "holds"), (0.97, "does not hold")])
def test_the_luck_of_the_best_trial(luck: float, verdict: str, seed: int) -> None:
    """Fresh seeds end by so much higher than the run that a setting was chosen by."""
    found = finding("best-looks-better", confirmed(luck, seed))

    assert found.verdict == verdict
    assert covers(found, 100 * (luck - 1))


def test_the_shapes_of_curves(seed: int) -> None:
    """They tell where high rates jump and low ones creep, and do not where all look alike."""
    tells, silent = (finding("curve-shapes", shaped(each, seed)) for each in (True, False))

    assert (tells.verdict, silent.verdict) == ("holds", "does not hold")
    assert tells.figure == 100
    few = finding("curve-shapes", searched(grid(slope=1, seed=seed)))
    assert few.verdict == "cannot tell"
    assert "are needed" in few.found


def test_curves_that_were_stopped_early_or_continued(seed: int) -> None:
    """Where a pruner cuts curves short, divergence as early says nothing of the rest; a continued run counts once."""
    known = shaped(False, seed)
    whole = finding("curve-shapes", known)
    first = known.records[0]
    more = dataclasses.replace(first, number=len(known.records), continues=first.number)
    lost = [
        dataclasses.replace(run, number=100 + i, values=(*run.values[:2], (run.values[2][0], None)), state="pruned")
        for i, run in enumerate(run for run in known.records if run.learning_rate / run.global_batch_size > 0.004)
    ]
    short = dataclasses.replace(first, number=99, values=first.values[:3], state="pruned")

    def after(*others: TrialRecord) -> Finding:
        records = (*known.records, *others)
        return finding("curve-shapes", dataclasses.replace(known, records=records))

    assert len(lost) == 6
    assert after(more).data == after(short, *lost).data == whole.data
    assert after(*lost).data["above"].count("diverged") == 6


def test_curves_that_rise_and_fall(seed: int) -> None:
    """The best checkpoint matters where the last loss is above it; a rise that is followed by a fall is counted."""
    assert finding("first-rise", curves(WAVES, seed)).verdict == "holds"
    assert finding("first-rise", curves(FALLS, seed)).verdict == "does not hold"
    assert finding("best-checkpoint", curves(LATE, seed)).verdict == "holds"
    assert finding("best-checkpoint", curves(FALLS, seed)).verdict == "does not hold"
    assert covers(finding("best-checkpoint", curves(LATE, seed)), 50)


def test_whether_short_runs_tell(seed: int) -> None:
    """They do where the ranks stay, and not where they are turned round."""
    known = searched(grid(slope=1, sharp=0.3, seed=seed))

    assert finding("short-runs-tell", known).verdict == "holds"
    assert finding("short-runs-tell", crossing(seed)).verdict == "does not hold"


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
