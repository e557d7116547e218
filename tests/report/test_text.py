"""Results as people read them."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import bstune
import pytest
from bstune.tuner.core.diagnosis import Diagnosis, Finding, Judgement
from bstune.tuner.core.probe_results import (
    Attempt,
    DeviceInfo,
    MemoryByCategory,
    Outlook,
    PlanResult,
    ProbeResult,
    ThroughputRow,
)
from bstune.tuner.core.progress import Progress
from bstune.tuner.core.results import (
    BatchAnswer,
    Candidate,
    Limits,
    LossEstimate,
    LrRule,
    OnDevice,
    Recommendation,
    SearchResult,
    Spent,
)
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.diagnosis_text import headline
from bstune.tuner.report.paste import paste_lines
from bstune.tuner.report.progress import attempt_line, progress_line
from bstune.tuner.report.text import plan_text, probe_text, search_text
from bstune.tuner.report.trials import trial_line
from bstune.tuner.report.view import View
from bstune.tuner.theory.step_time import knee
from hypothesis import example, given, settings
from hypothesis import strategies as st

WIDE = View(width=100_000)
LOSS = LossEstimate(0.1051, 0.004, 3, 0.09, 0.12)
OTHER = Candidate(128, 64, 2, 0.02, {}, LossEstimate(None, None, 0), None, 900.0, note="not run to the end")
BEST = Recommendation(
    micro_batch_size=32,
    accumulation_steps=2,
    world_size=1,
    global_batch_size=64,
    eval_batch_size=128,
    learning_rate=0.1 / 3,
    params={"weight_decay": 1e-4},
    val_loss=LOSS,
    seconds_to_target=12.0,
    samples_to_target=1000.0,
    samples_per_s=800.0,
    peak_bytes=1 << 30,
    verified=True,
    reason="It was the best\nof all.",
    batch_interval=(32, 128),
    lr_rule=LrRule(0.5),
    fastest=OTHER,
    smallest_within_tolerance=None,
    alternatives=(OTHER,),
)
RESULT = SearchResult(
    BEST,
    None,
    (),
    Spent(11.5, 1000, 60.0),
    "budget",
    0.2,
    Limits(512, 20.0, None),
    "digits",
    "sqlite:///bstune.db",
    {"bstune": "0.1.0"},
)
FACTS = Facts(name=None, kind="supervised", n_samples=1000, epochs=2, optimizer="SGD")


def changed(**changes: Any) -> SearchResult:
    """The result with another recommendation."""
    return dataclasses.replace(RESULT, recommendation=dataclasses.replace(BEST, **changes))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, None),
        (BatchAnswer(), None),
        (
            BatchAnswer(noise_scale_low=90.0),
            "batch 90 at least: gradient noise dominates",
        ),
        (
            BatchAnswer("noise scale", b_crit=300.0, b_crit_low=200.0, b_crit_high=400.0),
            "batch 300 (200 to 400) by gradient noise, which tends to be low",
        ),
        (
            BatchAnswer("trials", 0.3, 3, b_crit=300.0, b_crit_low=80.0),
            "batch 300 (80 or more) by 3 batch sizes",
        ),
    ],
    ids=["older", "nothing", "dominated", "untimed", "flat"],
)
def test_the_critical_batch_is_told_as_far_as_it_is_known(answer: BatchAnswer | None, said: str | None) -> None:
    """One line, and none where there is nothing to tell."""
    text = search_text(dataclasses.replace(RESULT, batch_answer=answer), view=WIDE, verbose=True)

    (line,) = [line for line in text.splitlines() if line.startswith("  noise ")]
    assert (said or "the critical batch size was not measured") in line


def test_the_first_line_says_by_how_many_runs_it_was_checked() -> None:
    """And by none in the words of the JSON, so that both can be searched for."""
    assert search_text(RESULT).splitlines()[0] == "Train with batch 64 and learning rate 0.0333  checked by 3 runs"
    assert search_text(changed(verified=False)).splitlines()[0].endswith("not verified")


def test_the_last_lines_can_be_pasted() -> None:
    """They are Python, have the exact values, and say what to do with them in the user's kind of script."""
    lines = paste_lines(RESULT, FACTS)
    assert search_text(RESULT, FACTS).endswith("\n\n" + "\n".join(lines))
    values: dict[str, Any] = {}
    exec("\n".join(lines), values)
    assert values["micro_batch_size"] * values["accumulation_steps"] == 64
    assert (values["learning_rate"], values["weight_decay"], values["eval_batch_size"]) == (0.1 / 3, 1e-4, 128)
    text = "\n".join(lines)
    assert "torch.optim.SGD(model.parameters(), lr=learning_rate, weight_decay=weight_decay, ...)" in text.replace(
        "\n# ", " "
    )
    assert "accumulation_steps).backward()" in text
    assert lines[0].endswith(": It was the best of all")
    assert "accumulation_steps)" not in "\n".join(paste_lines(changed(accumulation_steps=1), FACTS))


def test_what_is_not_verified_says_so_where_it_is_pasted() -> None:
    """Whoever reads the script later learns it too."""
    assert "not confirmed" in paste_lines(changed(verified=False))[0]


def test_a_candidate_is_named_once() -> None:
    """The fastest is not told again among the alternatives, and one without a full run has no loss."""
    text = search_text(RESULT, verbose=True)
    assert text.count("batch 128, lr 0.02") == 1
    assert "batch 128, lr 0.02: no full run yet" in text


PROBE = ProbeResult(
    micro_batch_size=72,
    eval_batch_size=144,
    limited_by="memory",
    proof="model",
    capacity_bytes=80 << 30,
    usable_bytes=79 << 30,
    budget_bytes=72 << 30,
    peak_bytes=71 << 30,
    memory_line=None,
    memory_by_category=None,
    throughput=(),
    step_time_line=None,
    attempts=(Attempt(72, "ok", 1 << 30, 1.0, 2), Attempt(72, "ok", 1 << 30, 1.0, 3), Attempt(73, "oom", None, 1.0, 0)),
    device=DeviceInfo("cuda", "a card"),
    n_train_samples=1000,
)


def test_a_probe_says_why_it_ended_there() -> None:
    """Size, limit, proof and every attempt."""
    text = probe_text(PROBE)
    assert text.splitlines()[0] == "Micro-batches of up to 72 samples fit on a card (limited by memory)"
    assert "71.00 GiB of 72.00 GiB allowed" in text
    assert [line.split()[:2] for line in text.splitlines()[-2:]] == [["72", "ok"], ["73", "oom"]]
    assert bstune.ProbeResult.from_dict(PROBE.to_dict()) == PROBE


def test_a_probe_claims_nothing_of_sizes_that_it_did_not_time() -> None:
    """Speed may still grow past the largest; and a size that nobody gave is no limit that was given."""
    timed = tuple(ThroughputRow(n, rate, n / rate, 0.0) for n, rate in ((8, 302.0), (32, 553.0), (64, 560.0)))

    def said(n_timed: int, **changes: Any) -> str:
        rows = timed[:n_timed]
        return probe_text(dataclasses.replace(PROBE, throughput=rows, knee_batch_size=knee(rows), **changes), WIDE)

    assert "32: larger ones are hardly faster" in said(3)
    assert "32 or more: speed still grew up to the largest timed" in said(2)
    assert "8 is the only size that was timed" in said(1)
    assert said(1).splitlines()[-2].split() == ["72", "ok", "1.00", "GiB", "3", "1.00", "measured", "once", "more"]
    assert "(limited by the largest that the search can use)" in said(3, limited_by="max_batch")
    assert "(limited by max_batch)" in said(3, limited_by="max_batch", settings={"max_batch": 72})


def test_a_speed_that_was_not_measured_is_marked() -> None:
    """A size that was timed has the speed that was measured there, so that two sentences do not disagree."""
    probe = dataclasses.replace(PROBE, throughput=(ThroughputRow(32, 700.0, 32 / 700, 0.0),))

    def said(**changes: Any) -> str:
        return search_text(dataclasses.replace(changed(**changes), probe=probe), FACTS, view=WIDE, verbose=True)

    assert "800 samples/s by the step-time line, peak" in said()
    assert "700 samples/s, peak" in said(accumulation_steps=1)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("holds", "does not hold"), "2 of 2 claims could be judged: 1 holds, 1 does not ("),
        (("holds", "holds", "cannot tell"), "2 of 3 claims could be judged: 2 hold, 0 do not ("),
    ],
)
def test_one_claim_holds_and_two_hold(verdicts: tuple[Judgement, ...], said: str) -> None:
    """In the singular and in the plural."""
    findings = tuple(Finding(f"claim-{i}", "A claim.", "a book", verdict, "seen") for i, verdict in enumerate(verdicts))

    assert headline(Diagnosis(findings)).startswith(said)


# --- text from elsewhere ------------------------------------------------------------------------------------------

HOSTILE = st.text() | st.sampled_from(
    [
        "x\nimport os; os.system('id')",
        "x\r\nimport os",
        "a\u2028import os",
        "\x1b[2J\x1b[H",
        "x = __import__('os')",
        "import os",
        "class",
        "__debug__",
        "micro_batch_size",
        "\uff4dicro_batch_size",  # A wide letter, which Python reads as the plain one.
        "password",
        "postgresql://me:s3cret@host/runs",
        "\u202egnp",
        " " * 3000,
        "x" * 3000,
    ]
)
VALUES = st.one_of(
    HOSTILE, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.none(), st.lists(HOSTILE, max_size=2)
)


@settings(deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, st.dictionaries(HOSTILE, VALUES, max_size=3))
@example("x\nimport os", "\n", "\n", {"x\nimport os": 1, "class": 2, "learning_rate": 3.0, "lr_2": "\n", "token": "a"})
def test_what_is_pasted_is_assignments_of_constants(
    name: str, reason: str, optimizer: str, params: dict[str, Any]
) -> None:
    """Whatever a study holds: each line is a comment or an assignment, none to a name that bstune sets itself."""
    result = dataclasses.replace(changed(reason=reason, params=params), study=name, versions={"bstune": reason})
    lines = paste_lines(result, dataclasses.replace(FACTS, optimizer=optimizer))
    assert all(line.isprintable() for line in lines)
    assert search_text(result, dataclasses.replace(FACTS, optimizer=optimizer)).endswith("\n\n" + "\n".join(lines))

    code = "\n".join(lines)
    compile(code, "pasted", "exec")
    assigned: list[str] = []
    for statement in ast.parse(code).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        assigned.append(target.id)
    assert len(assigned) == len(set(assigned))
    assert len(lines) == len(assigned) + sum(line.startswith("#") for line in lines)
    values: dict[str, Any] = {}
    exec(code, values)
    assert (values["micro_batch_size"], values["learning_rate"]) == (32, 0.1 / 3)


def all_texts(text: str) -> list[str]:
    """Everything that is said of a search, with this text wherever a study, a model or a worker may put one."""
    device = DeviceInfo("cuda", text)
    attempt = Attempt(3, "error", 1 << 30, 1.0, 2, phase=text, reason=text)
    probe = dataclasses.replace(PROBE, device=device, attempts=(attempt,), environment={text: text}, optimizer=text)
    record = TrialRecord(
        1, text, text, text, 8, 8, 1, 0.1, 0, 8, 0.5, 0.5, 1.0, None, None, params={text: text}, device=text
    )
    other = dataclasses.replace(OTHER, note=text, params={text: text})
    devices = (OnDevice(text, 8, 1, None, None, None, None), OnDevice(text, 8, 1, None, None, None, None))
    result = dataclasses.replace(
        changed(reason=text, params={text: text}, fastest=other, alternatives=(other,), by_device=devices),
        stopped_by=text,
        study=text,
        storage=text,
        versions={"bstune": text},
    )
    plan = PlanResult(
        (Outlook(text, 8, 8, None, "memory", None, None, None, None),), device, (1, 2), text, None, 8, (text,)
    )
    progress = [
        Progress("study", text, 1, message=text),
        Progress("warning", text, 1, message=text),
        Progress("note", text, 1, message=text),
        Progress("probe", text, 1, message=text),
    ]
    lines = [attempt_line(attempt), trial_line(record), *map(str, map(progress_line, progress))]
    facts = dataclasses.replace(FACTS, optimizer=text)
    return [probe_text(probe, WIDE), search_text(result, facts, view=WIDE, verbose=True), plan_text(plan, WIDE), *lines]


def test_a_plan_stays_within_the_width() -> None:
    """The parts of the memory are the first to go; the batch and what bounds it stay."""
    parts = MemoryByCategory(1 << 30, 1 << 30, 2 << 30, 30 << 30, 1 << 30)
    card = Outlook("NVIDIA H100 80GB HBM3", 80 << 30, 75 << 30, 4096, "memory", 70 << 30, 69 << 30, 5 << 30, parts)
    small = Outlook("16GiB card", 16 << 30, 15 << 30, None, "memory", None, None, None, None)
    plan = PlanResult((card, small), PROBE.device, (3, 5, 9), "as the micro-batch", 0.01, 8, ("a long note " * 20,))

    narrow, wide = plan_text(plan, View(80)), plan_text(plan, View(130))

    assert max(map(len, narrow.splitlines())) <= 80
    assert "4096" in narrow
    assert "none" in narrow
    assert "optimizer" not in narrow
    assert "optimizer" in wide


@settings(deadline=None)  # A loaded machine is no failure.
@given(HOSTILE)
@example("a\nb")
def test_no_text_makes_a_line_of_its_own(text: str) -> None:
    """Each text has as many lines as with a plain word in it, all of them printable, and none shows a password."""
    for found, plain in zip(all_texts(text), all_texts("word"), strict=True):
        assert found.count("\n") == plain.count("\n")
        assert all(line.isprintable() for line in found.split("\n"))
        assert "s3cret" not in found
