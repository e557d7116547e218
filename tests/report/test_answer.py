"""What a search and a study print, character by character: at three widths, with and without colours.

The texts stand in `snapshots/`. After a change that is wanted, `BSTUNE_SNAPSHOTS=write python -m pytest
tests/report/test_answer.py` writes them anew; look at the difference before it is committed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
from bstune.tests.report.told import told
from bstune.tuner.core.probe_results import Attempt, DeviceInfo, ProbeResult
from bstune.tuner.core.results import Candidate, Comparison, Limits, LossEstimate, Recommendation, SearchResult, Spent
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.brief import brief
from bstune.tuner.report.card import markdown
from bstune.tuner.report.comparison import comparison
from bstune.tuner.report.page import page
from bstune.tuner.report.reasons import caution_text
from bstune.tuner.report.study_text import study_text
from bstune.tuner.report.text import SCREEN, search_text
from bstune.tuner.report.units import duration
from bstune.tuner.report.view import View, even
from rich.cells import cell_len

SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (80, 100, 160)
FACTS = Facts(name=None, kind="supervised", n_samples=1024, epochs=20, optimizer="SGD")


def candidate(batch: int, rate: float, loss: float | None, full_s: float, *, fresh: bool = True) -> Candidate:
    """A setting that was run, with an interval around its loss."""
    estimate = LossEstimate(None, None, 0)
    if loss is not None:
        estimate = LossEstimate(loss, None, 1, 0.58 * loss, 1.72 * loss)
    to_target = None if loss is None else 0.5 * full_s
    return Candidate(
        batch, batch, 1, rate, {}, estimate, full_s, 20480 / full_s, to_target, 10240.0, verified=fresh and bool(loss)
    )


def trial(number: int, batch: int, rate: float, samples: int, loss: float | None, **changes: object) -> TrialRecord:
    """A trial of a full run of 20,480 samples; one that ends before was stopped."""
    complete = samples == 20480
    record = TrialRecord(
        number=number,
        stage="search",
        state="complete" if complete else "pruned",
        reason="" if complete else f"stopped at {samples} of 20480 samples",
        global_batch_size=batch,
        micro_batch_size=batch,
        accumulation_steps=1,
        learning_rate=rate,
        seed=0,
        samples=samples,
        val_loss=loss,
        best_val_loss=loss,
        seconds=samples / 10_000,
        samples_per_s=None,
        peak_bytes=(300 << 20) + (batch << 18),
        end_samples=20480,
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


ANSWER = candidate(64, 0.1, 0.04425, 2.381)
USUAL = candidate(32, 0.05, 0.06942, 2.921, fresh=False)
SLOW = candidate(16, 0.05, 0.0421, 4.87)
PROBE = ProbeResult(
    micro_batch_size=1024,
    eval_batch_size=773,
    limited_by="dataset",
    proof="cap",
    capacity_bytes=24 << 30,
    usable_bytes=22 << 30,
    budget_bytes=21 << 30,
    peak_bytes=351 << 20,
    memory_line=None,
    memory_by_category=None,
    throughput=(),
    step_time_line=None,
    attempts=(
        Attempt(3, "ok", 301 << 20, 0.5, 2),
        Attempt(
            4096, "oom", None, 1.25, 0, phase="backward", reason="tried to allocate 40.00 GiB on a device of 24 GiB"
        ),
        Attempt(1024, "ok", 351 << 20, 1.22, 3),
    ),
    device=DeviceInfo("cpu", "a processor", threads=1),
    n_train_samples=1024,
)
BEST = Recommendation(
    micro_batch_size=64,
    accumulation_steps=1,
    world_size=1,
    global_batch_size=64,
    eval_batch_size=773,
    learning_rate=0.1,
    params={},
    val_loss=ANSWER.val_loss,
    seconds_to_target=1.105,
    samples_to_target=13815.0,
    samples_per_s=12504.0,
    peak_bytes=323 << 20,
    verified=True,
    reason="Batch 64 at learning rate 0.1 is expected to reach the target loss of 0.05411 soonest of 28 settings "
    "tried, after 1.1 s; memory allows 1024 or more, hardware reaches half its speed at 31, gradient noise has its "
    "critical batch at 362.",
    batch_interval=(16, 128),
    lr_rule=None,
    fastest=ANSWER,
    smallest_within_tolerance=ANSWER,
    alternatives=(candidate(128, 0.2, None, 2.11),),
    seconds_per_full_run=2.381,
    full_runs_to_best=1.2,
    frontier=(ANSWER, SLOW),
    compared=(Comparison("batch 32", USUAL, 1.217, 0.899),),
)
VERIFIED = SearchResult(
    recommendation=BEST,
    probe=PROBE,
    records=(
        trial(0, 32, 0.0125, 768, 2.25, stage="anchor"),
        trial(1, 64, 0.1, 20480, 0.0656),
        trial(2, 32, 0.05, 20480, 0.06942),
        trial(
            3,
            128,
            0.8,
            768,
            None,
            reason="diverged: the validation loss was not finite at 768 samples",
            values=((768, None),),
        ),
        trial(4, 16, 0.05, 6832, None, state="failed", reason="crashed: signal 11", cause="crashed"),
        trial(5, 64, 0.1, 20480, 0.04425, stage="confirm", seed=1),
        trial(6, 16, 0.05, 20480, 0.0421, stage="confirm", seed=1),
    ),
    spent=Spent(6.3, 129_700, 31.87, 7.03, 20.5),
    stopped_by="converged",
    target=0.05411,
    target_source="the lowest loss expected of any setting + 2 %",
    limits=Limits(1024, 31.4, 362.0),
    study="digits",
    storage="sqlite:///bstune.db",
    versions={"bstune": "0.1.0"},
    goal="time",
)


def changed(result: SearchResult = VERIFIED, *, stopped_by: str = "converged", **changes: object) -> SearchResult:
    """The result with another recommendation."""
    best = dataclasses.replace(result.recommendation, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(result, recommendation=best, stopped_by=stopped_by)


def warned(code: str, **figures: float) -> tuple[str, ...]:
    """A warning in the words of the program."""
    from bstune.tuner.core.remarks import Caution

    return (caution_text(Caution(code, figures)),)  # type: ignore[arg-type]


OWN = candidate(256, 0.3, 0.0512, 2.02)
NOT_RUN = LossEstimate(None, None, 0)
UNCONFIRMED = "Batch 64 at learning rate 0.1 is expected to be best by the trials so far; it was not confirmed."
BARE: dict[str, Any] = {
    "frontier": (),
    "compared": (),
    "fastest": None,
    "smallest_within_tolerance": None,
    "alternatives": (),
}
INTERRUPTED = changed(
    stopped_by="interrupted",
    verified=False,
    reason=UNCONFIRMED,
    val_loss=NOT_RUN,
    seconds_to_target=None,
    samples_to_target=None,
    warnings=warned("still_to_come") + warned("target_not_reached"),
    **BARE,
)
METRICS = dataclasses.replace(
    VERIFIED,
    records=tuple(
        dataclasses.replace(record, metrics={"accuracy": 0.99 - 0.01 * record.number, "top_5_accuracy_long": 0.999})
        for record in VERIFIED.records
    ),
)
RESULTS = {
    "verified": VERIFIED,
    "interrupted": INTERRUPTED,
    "one_trial": dataclasses.replace(
        changed(
            stopped_by="n_trials",
            verified=False,
            reason="Batch 64 at learning rate 0.1 is the only setting that was tried.",
            warnings=warned("no_trial_left", n_trials=1, needed=2),
            batch_interval=(64, 64),
            **BARE,
        ),
        records=(trial(0, 64, 0.1, 20480, 0.0656),),
        probe=None,
        limits=Limits(),
    ),
    "baseline": changed(
        compared=(Comparison("your present setting", OWN, 0.8, 0.7), *BEST.compared),
        params={"weight_decay": 1e-4},
        accumulation_steps=2,
        micro_batch_size=32,
    ),
    "usual_unfinished": dataclasses.replace(
        changed(compared=(Comparison("batch 32", candidate(32, 0.05, None, 2.921), 1.3, 0.8),)),
        records=(*VERIFIED.records[:2], trial(2, 32, 0.05, 2304, 0.4), *VERIFIED.records[3:]),
    ),
    "metrics": METRICS,
    "loss_goal": dataclasses.replace(
        changed(lowest_loss=SLOW, reason="Batch 64 at learning rate 0.1 is the fastest within 2% of the lowest loss."),
        goal="loss",
    ),
    "nothing_learned": changed(
        verified=False, warnings=warned("nothing_learned", percent=2.0, first=2.303, longest=4096)
    ),
    "diverged": changed(verified=False, reason=UNCONFIRMED, warnings=warned("still_to_come") + warned("diverged")),
}


def texts(name: str, view: View) -> str:
    """What a search prints at its end, short; for the first of them also with --verbose."""
    text = search_text(RESULTS[name], FACTS, view=view)
    return (
        text if name != "verified" else f"{text}\n\n--verbose:\n{search_text(VERIFIED, FACTS, view=view, verbose=True)}"
    )


def shown(name: str, view: View) -> str:
    """What `bstune show` prints of a study in this state."""
    head = "Study digits in sqlite:///bstune.db: 7 trials, process 4711 on a-host uses it since 2026-11-28 19:00"
    running = trial(7, 32, 0.1, 4096, 0.31, state="running", reason="", seconds=None)
    probe, result, records = {
        "show_running": (PROBE, INTERRUPTED, (*VERIFIED.records, running)),
        "show_probe_only": (PROBE, None, ()),
        "show_no_signal": (PROBE, None, VERIFIED.records[3:5]),
        "show_nothing": (None, None, ()),
    }[name]
    return study_text(head, records, probe, result, FACTS, is_running=name == "show_running", view=view)


STUDIES = ("show_running", "show_probe_only", "show_no_signal", "show_nothing")


@pytest.mark.parametrize("name", [*RESULTS, *STUDIES])
def test_what_is_printed(name: str) -> None:
    """At 80, 100 and 160 columns, plain and in colours."""
    made = texts if name in RESULTS else shown
    parts = []
    for colour in (False, True):
        for width in WIDTHS:
            text = made(name, View(width, colour))
            parts.append(f"=== {width} columns{', colours' if colour else ''} ===\n{text}\n".replace("\x1b", "^"))
    path, found = SNAPSHOTS / f"{name}.txt", "\n".join(parts)
    if os.environ.get("BSTUNE_SNAPSHOTS") == "write":
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", [*RESULTS, *STUDIES])
def test_no_line_is_wider_than_the_terminal(name: str) -> None:
    """Down to 40 columns; an assignment to paste is one line whatever it takes. Colours take no room."""
    made = texts if name in RESULTS else shown
    for width in (40, 41, 57, 79, 80, 100, 160):
        lines = made(name, View(width)).splitlines()
        assert [line for line in lines if cell_len(line) > width and " = " not in line] == []
        assert [line for line in lines if line != line.rstrip()] == []


@pytest.mark.parametrize("name", ["verified", "metrics", "loss_goal", "interrupted"])
def test_an_answer_fits_one_screen(name: str) -> None:
    """With the prompt below it."""
    assert len(search_text(RESULTS[name], FACTS).splitlines()) < SCREEN


@pytest.mark.parametrize(
    ("code", "figures"),
    [
        ("nothing_learned", {"percent": 2.0, "first": 2.303, "longest": 4096}),
        ("rate_ignored", {"rates": 3, "low": 0.001, "high": 0.1}),
        ("one_loss", {"loss": 2.303}),
    ],
)
def test_no_setting_is_called_the_best_where_losses_tell_nothing(code: Any, figures: dict[str, Any]) -> None:
    """One is chosen all the same, and it may be one of the worst."""
    unfit: dict[str, Any] = {"params": {"momentum": 0.9}, "accumulation_steps": 4, "micro_batch_size": 16}
    result = changed(verified=False, warnings=warned(code, **figures), **unfit)

    first, loss, *rest = search_text(result, FACTS, view=View(80)).splitlines()

    assert first == "Nothing to train with yet  not verified"
    assert loss.split() == ["loss", "0.0421", "to", "2.25", "at", "the", "ends", "of", "5", "runs"]
    assert not [line for line in rest if line.startswith(">")]
    assert brief(result).title == "Nothing to train with yet"
    assert "Losses of 0.0421 to 2.25 at the ends of 5 runs" in [part.short for part in brief(result).parts]
    assert [part.question for part in brief(result).parts] == ["How sure is it?", "What did the search cost?"]
    pages = [page(told(result)), markdown(told(result)), result._repr_html_(), result.recommendation._repr_html_()]
    for text in (whole.partition("<script")[0] for whole in pages):  # What charts are drawn from stands behind it.
        assert "Nothing to train with yet" in text
        assert "momentum=0.9" not in text
        assert "micro-batch 16" not in text
        assert 'id="paste"' not in text
    mark = re.compile('"said": ?"answer')
    assert mark.search(page(told(VERIFIED)))
    assert not mark.search(page(told(result)))  # Nor does a chart mark one.
    compared = comparison(told(result), told(result))
    assert "Neither has an answer." in compared
    assert '<th scope="row">learning rate' not in compared


def test_batch_32_is_not_missed_where_sizes_count_tokens() -> None:
    """It is a usual number of samples."""
    by_tokens = dataclasses.replace(FACTS, size_unit="tokens")

    assert "batch 32 was not tried" in search_text(RESULTS["one_trial"], FACTS)
    assert "batch 32" not in search_text(RESULTS["one_trial"], by_tokens)


def test_a_probe_that_took_long_stands_beside_what_was_trained() -> None:
    """A budget does not count it, and who reads what a search cost is to know."""
    result = RESULTS["verified"]
    assert result.probe is not None
    assert "after a probe" not in search_text(result, FACTS)
    took_s = 10 * result.spent.seconds + 10
    slow = dataclasses.replace(result, probe=dataclasses.replace(result.probe, seconds=took_s))

    assert f" trials, after a probe of {duration(took_s)}; " in search_text(slow, FACTS, view=View(160))


def test_colours_change_no_word() -> None:
    """What is left without them is what a pipe gets."""
    from rich.text import Text

    for name in RESULTS:
        coloured = Text.from_ansi(search_text(RESULTS[name], FACTS, view=View(100, True))).plain
        plain = search_text(RESULTS[name], FACTS, view=View(100))
        assert [line.rstrip() for line in coloured.splitlines()] == plain.splitlines()


def test_no_number_is_cut() -> None:
    """At any width, each row of the table holds whole numbers: a column is left out rather than shortened."""
    whole = set(search_text(METRICS, FACTS, view=View(160)).split())
    for width in range(40, 120):
        lines = search_text(METRICS, FACTS, view=View(width)).splitlines()
        start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["batch", "lr"])
        for line in lines[start + 1 : start + 4]:
            assert set(line.split()) <= whole or not line.lstrip("> ")[:1].isdigit()


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.0442, 0.0694], ["0.0442", "0.0694"]),
        ([1.0, 12.25, None], ["1.00", "12.25", "-"]),
        ([1e-7, 5.0], ["1e-07", "5"]),
        ([0.0, 250.0], ["0", "250"]),
        ([], []),
        ([float("inf"), 1.5], ["inf", "1.50"]),
    ],
)
def test_numbers_of_a_column_line_up(values: list[float | None], written: list[str]) -> None:
    """The same decimals for all, unless they are too far apart."""
    assert even(values) == written


def test_a_study_begins_with_its_answer() -> None:
    """Also with --verbose, where the probe and all trials follow."""
    arguments = ("Study digits", VERIFIED.records, PROBE, VERIFIED, FACTS)

    text = study_text(*arguments, is_running=False, verbose=True)

    assert text.startswith("Train with batch 64")
    assert text.index("learning_rate = 0.1\n") < text.index("Micro-batches of up to 1024") < text.index("Study digits")
