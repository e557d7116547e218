"""The user's own loop: what it may report, and what it is told when it reports wrongly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import bstune
import numpy
import pytest
import torch
from bstune.objectives.base import Trial
from bstune.objectives.loop import LoopObjective
from bstune.tests.objectives.small import N, run, spec_of
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.trials import MeasureNotes, MeasureSpec


def test_a_decorator_without_its_arguments_says_what_to_write() -> None:
    """The most common slip with decorators."""
    with pytest.raises(bstune.ArgumentError, match=r"expected @bstune\.objective\(n_samples="):
        bstune.objective(lambda trial: None)  # type: ignore[arg-type]


def loop(**options: Any) -> Callable[[Callable[[Trial], Any]], LoopObjective]:
    """Return the decorator for a loop over `N` samples."""
    return bstune.objective(n_samples=N, epochs=4, **options)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_a_loop_says_how_its_learning_rate_changes(schedule: str) -> None:
    """What bstune cannot see in it; left out, it is not known."""

    def train(trial: Trial) -> None:
        """Nothing."""

    assert loop(schedule=schedule)(train).describe().schedule == schedule
    assert loop()(train).describe().schedule == "unknown"
    with pytest.raises(
        bstune.ArgumentError, match="schedule='step': expected constant, linear, cosine, wsd, or unknown"
    ):
        loop(schedule="step")
    with pytest.raises(bstune.ArgumentError, match="name=3: expected a text, or None"):
        loop(name=3)


def test_a_scheduler_that_the_objective_does_not_tell_of_is_noticed() -> None:
    """Its runs would be judged in the middle of a decay; a loop without one, and one that says which, hear nothing."""

    def train(trial: Trial, *, decays: bool = True) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=trial.learning_rate)
        if decays:
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        for _ in range(0, trial.max_samples, trial.global_batch_size):
            optimizer.step()
        trial.report(val_loss=1.0, samples=trial.max_samples)

    def said(one: LoopObjective) -> tuple[str, ...]:
        return one.measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases()).warnings

    assert ["schedule='linear'" in warning for warning in said(loop()(train))] == [True]
    assert said(loop(schedule="cosine")(train)) == said(loop()(functools.partial(train, decays=False))) == ()


def measured(loop_of: Callable[[Trial, torch.optim.Optimizer], None], accumulation_steps: int = 2) -> MeasureNotes:
    """Return what a probe notes of a loop over the samples of its trial."""

    def train(trial: Trial) -> None:
        loop_of(trial, torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=trial.learning_rate))
        trial.report(val_loss=1.0, samples=trial.max_samples)

    return loop()(train).measure(MeasureSpec(8, 16, accumulation_steps, 2, seed=0), "cpu", Phases())


def test_steps_that_half_precision_would_skip_are_made_in_a_probe() -> None:
    """A loss scaler begins so high that gradients overflow, and a probe sees the first steps only."""
    seen: list[torch.Tensor] = []

    def scaling(trial: Trial, optimizer: torch.optim.Optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu")
        (weight,) = optimizer.param_groups[0]["params"]
        for _ in range(0, trial.max_samples, trial.global_batch_size):
            optimizer.zero_grad()
            scaler.scale(1e35 * weight.sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        seen.append(weight.detach())

    assert measured(scaling).samples == 2 * 16
    assert bool(seen[0] != 1)
    assert float(torch.amp.GradScaler("cpu").scale(torch.ones(1))) == 2**16


def test_a_loop_that_accumulates_otherwise_than_asked_is_told() -> None:
    """One that steps less often cannot be measured; one that steps at each micro-batch trains smaller batches."""

    def rarely(trial: Trial, optimizer: torch.optim.Optimizer) -> None:
        for number in range(trial.max_samples // trial.micro_batch_size):
            if number % 4 == 3:
                optimizer.step()

    def always(trial: Trial, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(0, trial.max_samples, trial.micro_batch_size):
            optimizer.step()

    def as_asked(trial: Trial, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(0, trial.max_samples, trial.global_batch_size):
            optimizer.step()

    with pytest.raises(bstune.ObjectiveError, match=r"a step after each trial\.accumulation_steps micro-batches, and"):
        measured(rarely)
    assert [measured(each).accumulates for each in (always, as_asked)] == [False, True]
    assert measured(always, accumulation_steps=1).accumulates  # It was not asked to.
    assert [measured(each).warnings for each in (always, as_asked)] == [(), ()]  # Both were seen to validate.


def test_a_loop_says_what_its_model_is_called() -> None:
    """Then it is known again, whatever its code and its data; a name without an optimizer says too little."""

    def train(trial: Trial) -> None:
        """Nothing."""

    def structure(**options: Any) -> str | None:
        return bstune.objective(epochs=4, **options)(train).describe().structure_hash

    named = {"optimizer": "SGD", "model": "a model"}
    assert structure(n_samples=N, **named) == structure(n_samples=2 * N, **named) is not None
    assert structure(n_samples=N, optimizer="SGD", model="another") != structure(n_samples=N, **named)
    assert structure(n_samples=N, optimizer="SGD") is None
    with pytest.raises(bstune.ArgumentError, match="model='a model': expected optimizer= beside it"):
        loop(model="a model")
    with pytest.raises(bstune.ArgumentError, match="model='a model': expected optimizer= beside it"):
        bstune.connect("http://127.0.0.1:9", n_samples=N, model="a model")


def test_first_report_at_or_after_a_point_counts_under_it() -> None:
    """A loop that reports every epoch has its reports at 192 and 384 counted under the points 150 and 384."""

    @loop()
    def train(trial: Trial) -> None:
        for epoch in range(1, 5):
            trial.report(1.0 / epoch, samples=epoch * N)

    reports = run(train, spec_of(points=(150, 384)))

    assert [(report.points, report.samples) for report in reports] == [((150,), 192), ((384,), 384)]


def test_stopped_loop_is_told_at_each_later_report() -> None:
    """`TrialPruned` comes again for a loop that swallowed it."""
    raised = []

    @loop()
    def train(trial: Trial) -> None:
        for samples in (200, 300, 384):
            try:
                trial.report(1.0, samples=samples)
            except bstune.TrialPruned:
                raised.append(samples)

    run(train, spec_of(), lambda _: "stop")

    assert raised == [200, 300, 384]


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([], "without a report"),
        ([(1.0, 100)], "leave early stopping out of trials"),
        ([(1.0, 200), (1.0, 100)], "samples=100 after 200"),
        ([("much", 100)], "val_loss='much': expected one number"),
    ],
)
def test_loop_that_reports_wrongly_is_told_how(reports: list[tuple[Any, int]], said: str) -> None:
    """No silent acceptance of a run that did not happen."""

    @loop()
    def train(trial: Trial) -> None:
        for loss, samples in reports:
            trial.report(loss, samples=samples)

    with pytest.raises(bstune.ObjectiveError, match=said):
        run(train, spec_of())


@pytest.mark.parametrize(
    ("loss", "samples"),
    [
        (0.5, 384),
        (1, 384.0),
        (numpy.float32(0.5), numpy.int64(384)),
        (numpy.array(0.5), numpy.uint16(384)),
        (torch.tensor(0.5, requires_grad=True), torch.tensor(384)),
        (torch.tensor(0.5, dtype=torch.bfloat16), 384),
        (math.nan, 384),
        (-math.inf, 384),
    ],
)
def test_a_number_is_reported_in_any_kind(loss: Any, samples: Any) -> None:
    """Python's, NumPy's, a tensor's; and a loss that is not finite is a result."""

    @loop()
    def train(trial: Trial) -> None:
        trial.report(loss, samples=samples, accuracy=loss)

    (report,) = run(train, spec_of())

    assert (type(report.samples), report.samples) == (int, 384)
    assert type(report.val_loss) is float
    plain = float(loss.item() if hasattr(loss, "item") else loss)
    assert str(report.val_loss) == str(plain) == str(report.metrics["accuracy"])


@pytest.mark.parametrize(
    "loss", ["0.5", b"0.5", True, numpy.True_, torch.tensor(True), torch.tensor([0.5]), [0.5], None, 1j, 10**400]
)
def test_what_is_no_number_is_no_loss(loss: Any) -> None:
    """Neither as the loss nor as a metric."""
    trial = Trial(spec_of(), device="cpu", send=lambda _: "go", clock=lambda: 0.0)
    with pytest.raises(bstune.ObjectiveError, match=r"trial.report got val_loss=.*: expected one number") as caught:
        trial.report(loss, samples=384)
    assert len(str(caught.value)) < 250
    with pytest.raises(bstune.ObjectiveError, match=r"trial.report got accuracy="):
        trial.report(0.5, samples=384, accuracy=loss)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (math.inf, "whole number"),
        (math.nan, "whole number"),
        (12.5, "whole number"),
        ("384", "one number"),
        (True, "one number"),
        (-1, "never goes down"),
        (10**25, r"samples .*tokens only where n_samples counts these.*not steps"),
        (1e25, r"samples .*tokens only where n_samples counts these.*not steps"),
        (769, r"samples .*tokens only where n_samples counts these.*not steps"),
        (10**400, "one number"),
    ],
)
def test_what_is_no_count_of_samples_is_refused(samples: Any, said: str) -> None:
    """Also a count that no run of this trial can reach."""
    trial = Trial(spec_of(most_samples=768), device="cpu", send=lambda _: "go", clock=lambda: 0.0)
    with pytest.raises(bstune.ObjectiveError, match=said):
        trial.report(0.5, samples=samples)
    trial.report(0.5, samples=768)


def test_metrics_have_bounds() -> None:
    """A hundred, with names that can be read."""
    trial = Trial(spec_of(), device="cpu", send=lambda _: "go", clock=lambda: 0.0)
    with pytest.raises(bstune.ObjectiveError, match="101 metrics: expected at most 100"):
        trial.report(0.5, samples=384, **{f"m{i}": 0.0 for i in range(101)})
    with pytest.raises(bstune.ObjectiveError, match="a name of at most 200 characters"):
        trial.report(0.5, samples=384, **{"m" * 201: 0.0})
