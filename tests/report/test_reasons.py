"""Decisions in words: every code has its sentence, and the figures of a decision fill it."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from bstune.tuner.core.remarks import BatchLimits, Caution, CautionCode, NoteCode, Reason, ReasonCode
from bstune.tuner.report.reasons import candidate_note, caution_text, limits_text, reason_text

REASON = Reason(
    "fastest",
    global_batch_size=64,
    learning_rate=0.03,
    is_baseline=False,
    n_compared=4,
    n_tried=9,
    n_seeds=2,
    n_tied=0,
    tolerance=0.02,
    target=0.125,
    seconds_to_target=95.0,
    limits=None,
)
LIMITS = BatchLimits(512, False, 96.2, 290.4, 150.0, 600.0)


@pytest.mark.parametrize("code", get_args(ReasonCode))
def test_every_reason_has_words(code: ReasonCode) -> None:
    """A sentence of its own, with the setting in front."""
    said = reason_text(dataclasses.replace(REASON, code=code))

    assert said.startswith("Batch 64 at learning rate 0.03 ")
    assert said.endswith(".")
    assert said != reason_text(dataclasses.replace(REASON, code="only" if code != "only" else "lowest"))


def test_a_reason_tells_what_else_is_known() -> None:
    """Whether it is the user's own setting, what it ties with, and what limits the batch."""
    said = reason_text(dataclasses.replace(REASON, code="lowest", is_baseline=True, n_tied=2, limits=LIMITS))

    assert said == (
        "Batch 64 at learning rate 0.03 (your present setting) is expected to end a full run lowest "
        "of 9 settings tried, "
        "a tie with 2 of them within the noise of seeds; memory allows 512, hardware reaches half its speed at 96, "
        "gradient noise has its critical batch at 290."
    )
    of_two = dataclasses.replace(REASON, code="lowest", n_compared=2, n_tied=1)
    assert "a tie with the other within" in reason_text(of_two)
    assert "is the fastest within 2% of the lowest" in reason_text(REASON)
    soonest = reason_text(dataclasses.replace(REASON, code="soonest"))
    assert "reach the target loss of 0.125 soonest of 9 settings tried, after 1.6 min" in soonest


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"more_memory": True}, "memory allows 512 or more,"),
        ({"hardware": None}, "hardware never saturates"),
        ({"noise_high": None}, "critical batch at 290 (150 or more)"),
    ],
)
def test_limits_claim_no_more_than_is_known(change: dict[str, Any], part: str) -> None:
    """Open ends are said to be open, and what is only expected is not said to be so."""
    assert part in limits_text(dataclasses.replace(LIMITS, **change))


FIGURES: dict[CautionCode, dict[str, float]] = {
    "no_accumulation": {"batch": 48},
    "budget_below_2": {"budget": 1.5, "needed": 2},
    "no_trial_left": {"n_trials": 2, "needed": 3},
    "cut_off": {"needed": 3},
    "no_full_run_left": {"needed": 13},
    "confirmations_diverged": {"n": 2, "of": 3},
    "confirmations_failed": {"n": 2},
    "none_went_further": {"reach": 336, "n": 7, "fresh": 2},
    "score_like": {"n": 4, "first": 0.37, "last": 0.76, "percent": 15.0},
    "trials_failed": {"n": 13, "of": 44, "last": 43},
    "one_loss": {"loss": 0.5},
    "rate_ignored": {"rates": 3, "low": 0.001, "high": 0.12},
    "nothing_learned": {"percent": 2.0, "first": 0.6931, "longest": 4096},
    "rate_at_edge": {"rate": 0.12, "low": 0.001, "high": 0.12},
    "one_batch": {"batch": 32, "low": 4, "high": 256},
    "one_rate": {"rate": 0.004, "batch": 32},
    "highest_rate": {"rate": 0.004, "batch": 32},
    "lowest_rate": {"rate": 0.004, "batch": 32},
    "starts_long": {"start": 16, "batch": 128},
    "took_longer": {"times": 5.5},
    "took_less": {"times": 0.4},
    "largest_by_steps": {"batch": 16, "steps": 100, "samples": 1600.0},
}


@pytest.mark.parametrize("code", get_args(CautionCode))
def test_every_caution_has_words(code: CautionCode) -> None:
    """A whole sentence with all its figures."""
    figures = FIGURES.get(code, {})

    said = caution_text(Caution(code, figures))

    assert said.endswith((".", "?"))
    assert all(f"{value:,g}" in said for value in figures.values())


def test_every_note_has_words() -> None:
    """What a loss was measured on, after whether the setting is the user's own."""
    notes = [candidate_note(code, is_baseline=False) for code in get_args(NoteCode)]

    assert len(set(notes)) == len(get_args(NoteCode))
    assert candidate_note("not_to_the_end", is_baseline=True) == "your present setting; not run to the end"
    assert candidate_note(None, is_baseline=False) == ""
