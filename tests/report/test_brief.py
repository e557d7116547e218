"""The answer in short parts: what it says of larger batches never contradicts what stands beside it."""

from __future__ import annotations

import dataclasses

import pytest
from bstune.tests.report.test_answer import BARE, FACTS, VERIFIED, candidate, changed, trial
from bstune.tests.report.told import FACTS as DEMO
from bstune.tests.report.told import demo_result
from bstune.tuner.core.results import Comparison
from bstune.tuner.core.specs import Plan
from bstune.tuner.report.brief import brief
from bstune.tuner.report.charts.curves import curves
from bstune.tuner.report.paste import paste_lines
from bstune.tuner.report.text import search_text
from bstune.tuner.strategy.strategy import Strategy


@pytest.mark.parametrize(
    ("full_s", "interval", "said"),
    [
        (9.0, (64,), "Larger batches reach the target later"),
        (9.0, (32, 64, 128), "Larger ones are expected later, perhaps by chance"),
        (0.1, (64,), "A larger batch may be sooner"),
    ],
)
def test_what_is_said_of_larger_batches(full_s: float, interval: tuple[int, ...], said: str) -> None:
    """They are later only where they were, and where they can be told apart."""
    larger = candidate(128, 0.2, 0.05, full_s)
    result = dataclasses.replace(
        changed(alternatives=(larger,), batch_interval=interval),
        records=(*VERIFIED.records, trial(90, 128, 0.2, 20480, 0.05), trial(91, 256, 0.4, 768, 2.0)),
    )

    assert next(part.short for part in brief(result).parts if part.question == "Why not larger?") == said


def test_seconds_past_the_end_of_a_run_are_marked_wherever_they_stand() -> None:
    """No run came so far: `~` in the table, and in words in the text, in the page and where it is pasted."""
    beyond = dataclasses.replace(candidate(128, 0.2, 0.06, 2.0), seconds_to_target=2.5, samples_to_target=25_600.0)
    result = dataclasses.replace(
        changed(**{**BARE, "alternatives": (beyond,), "batch_interval": (64,)}),
        records=(*VERIFIED.records, trial(90, 128, 0.2, 20480, 0.06), trial(91, 256, 0.4, 768, 2.0)),
    )

    text = " ".join(search_text(result, FACTS).split())
    part = next(part for part in brief(result).parts if part.question == "Why not larger?")
    assert "128 0.2 0.0600 0.0348-0.1032 2.00 ~2.50" in text
    assert "~ estimated: its full runs ended above the target" in text
    said = "batch 128 is expected to reach the target loss of 0.05411 after about 2.5 s, past the end of a full run; "
    assert f"{said}this one after 1.1 s" in text
    assert said.removeprefix("b") in part.detail
    own = dataclasses.replace(result.recommendation, seconds_to_target=2.5, samples_to_target=25_600.0)
    pasted = " ".join(paste_lines(dataclasses.replace(result, recommendation=own), FACTS))
    assert "after about 2.5 s, past the end of a full run" in pasted.replace(" # ", " ")


def test_no_setting_is_said_to_reach_what_its_interval_may_miss() -> None:
    """The interval ends at 0.0761, above the target of 0.05411: it is said how many runs get there."""
    pasted, text = paste_lines(VERIFIED, FACTS)[0], search_text(VERIFIED, FACTS)

    assert pasted.endswith("loss 0.05411 after 1.1 s, in about 7 of 10 runs")
    assert "loss 0.05411 after 1.1 s, in about 7 of 10 runs" in text
    assert "About 7 of 10 new runs reach the target." in brief(VERIFIED).parts[2].detail
    assert "reaches" not in text
    surely = changed(val_loss=dataclasses.replace(VERIFIED.recommendation.val_loss, low=0.04, high=0.05))
    assert "Nearly all new runs reach the target." in brief(surely).parts[2].detail
    assert "loss 0.05411 after 1.1 s, in nearly all runs" in search_text(surely, FACTS)


def test_it_is_said_where_the_target_is_from_and_what_else_may_be_as_good() -> None:
    """On the terminal in a few words, on the page in a sentence; where it is not known, the target stands alone."""
    text = " ".join(search_text(VERIFIED, FACTS).split())
    parts = brief(VERIFIED).parts
    assert "expected soonest of 28 to the target 0.05411 (lowest expected + 2 %)" in text
    assert "equal batch sizes 16 to 128 may be as good: the runs do not tell them apart" in text
    assert "The target is the lowest loss expected of any setting + 2 %." in parts[0].detail
    assert parts[2].short.endswith("in 9 of 10 new runs; batch sizes 16 to 128 may be as good")

    older = dataclasses.replace(VERIFIED, target_source=None)
    assert "reach the target loss of 0.05411 soonest" in " ".join(search_text(older, FACTS).split())
    assert "The target is" not in brief(older).parts[0].detail


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.3, "Batch 128, tried to 768 samples, is expected to take 1.3 times as long to the target."),
        (0.8, "Batch 128, tried to 768 samples, may be 1.2 times sooner."),
        (None, "Batch 128, tried to 768 samples, is expected to take more than two full runs to the target."),
    ],
)
def test_what_is_expected_of_the_next_larger_batch_is_said(factor: float | None, said: str) -> None:
    """It answers why the batch is not larger, where none that is larger went to its end."""
    next_one = Comparison("batch 128", candidate(128, 0.8, None, 2.0), factor, 0.9)
    ran = trial(90, 128, 0.8, 768, 1.2)
    result = dataclasses.replace(changed(larger=next_one), records=(*VERIFIED.records, ran))
    part = next(part for part in brief(result).parts if part.question == "Why not larger?")

    assert part.short == "No larger batch promised enough for a full run"
    assert part.detail.startswith(said)
    assert f"{said[0].lower()}{said[1:-1]}" in " ".join(search_text(result, FACTS).split())


def test_the_own_dimensions_stand_in_the_table() -> None:
    """Two settings that differ in nothing else can be told apart."""
    one, other = (
        dataclasses.replace(candidate(64, 0.1, loss, 2.0), params={"momentum": momentum, "weight_decay": 1e-4})
        for loss, momentum in ((0.05, 0.9), (0.06, 0.5))
    )
    result = changed(**{**BARE, "frontier": (one, other), "params": one.params})

    lines = search_text(result, FACTS).splitlines()
    head = next(line.split() for line in lines if line.split()[:2] == ["batch", "lr"])
    rows = [line.lstrip("> ").split() for line in lines if line.lstrip("> ").startswith("64 ")]
    assert head[2:4] == ["momentum", "weight_decay"]
    assert [row[2:4] for row in rows] == [["0.9", "0.0001"], ["0.5", "0.0001"]]
    assert "momentum=momentum" in " ".join(lines)


def test_what_a_comparison_rests_on_is_said() -> None:
    """How far the other rate was run, or that it was not; and no factor where the other never gets there."""
    usual = candidate(32, 0.0125, None, 2.9)
    for rate, said in ((0.0125, "run to 768 of 20,480 samples"), (0.3, "a rate that was not run")):
        other = dataclasses.replace(usual, learning_rate=rate)
        text = " ".join(search_text(changed(compared=(Comparison("batch 32", other, 1.3, 0.8),)), FACTS).split())
        assert f"1.3 times sooner than batch 32 (lr {rate}, {said})" in text

    far = brief(changed(compared=(Comparison("batch 32", usual, None, 0.05),))).parts[0]
    assert far.short == "Batch 32 takes more than two full runs"
    assert "times sooner" not in far.detail


def test_an_answer_without_a_full_run_says_so_once() -> None:
    """The short part says it; the sentence beside it says what the setting was chosen by."""
    none = dataclasses.replace(VERIFIED.recommendation.val_loss, mean=None, sd=None, n_seeds=0, low=None, high=None)
    sure = next(
        part for part in brief(changed(val_loss=none, verified=False)).parts if part.question == "How sure is it?"
    )

    assert sure.short.startswith("No full run yet")
    assert "full run yet" not in sure.detail
    assert sure.detail.startswith("Chosen by the beginnings of runs.")


def test_a_range_that_rests_on_stopped_runs_says_so() -> None:
    """No run at 128 went to its end, and no setting was run to its end twice."""
    once = dataclasses.replace(changed(batch_interval=(32, 128)), records=VERIFIED.records[2:6])
    sure = next(part.detail for part in brief(once).parts if part.question == "How sure is it?")

    assert sure.endswith("for certain, and no run at batch 128 went to its end.")
    assert "That range holds if new runs differ as much as is usual, or as losses within a run did." in sure


def test_the_curve_of_a_full_run_ends_at_its_seconds() -> None:
    """Text, table and chart count seconds alike, validation included."""
    result = demo_result()
    best = result.recommendation
    chart = curves(result.records, result.probe, "seconds", result=result).to_dict()
    points = [row for layer in chart["layer"] for row in layer["data"]["values"] if "seconds" in row]

    last = max(p["seconds"] for p in points if p["batch"] == best.global_batch_size)
    assert last == pytest.approx(best.seconds_per_full_run, rel=0.01)


def test_the_answer_is_not_compared_with_a_run_that_went_wrong() -> None:
    """A full run at batch 32 that ended far off: another rate there is expected to be better, and takes its place."""
    result = demo_result()
    ended = [r for r in result.records if r.global_batch_size == 32 and r.state == "complete"]
    wrong = {record.number: dataclasses.replace(record, val_loss=2.0, values=((20480, 2.0),)) for record in ended}
    records = [wrong.get(record.number, record) for record in result.records]

    (usual,) = Strategy(Plan(), DEMO, result.probe, records).recommend().compared

    assert ended
    assert usual.setting.learning_rate not in {record.learning_rate for record in ended}
    assert (usual.times_sooner or 0.0) < 20
