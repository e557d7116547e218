"""A model and data as an objective: the loop of bstune, its checkpoints, and the user's mistakes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bstune
import numpy as np
import pytest
import torch
from bstune.objectives.supervised import _validation_s
from bstune.tests.objectives.small import N, net, run, spec_of, supervised
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.strategy.space import make_space
from bstune.tuner.testing.fake_device import FakeClock
from torch import nn
from torch.utils.data import TensorDataset


def test_reports_come_at_the_wanted_points_with_the_last_value_at_the_end() -> None:
    """Two points are wanted and two reports come, at the first step that reaches each."""
    reports = run(supervised(), spec_of(global_batch_size=20, micro_batch_size=20, end_samples=380, points=(192, 384)))

    assert [(report.points, report.samples) for report in reports] == [((192,), 200), ((384,), 380)]


def test_same_seed_gives_the_same_losses_and_another_seed_others() -> None:
    """Initialisation, data order and dropout follow from the seed."""
    first, again, other = (run(supervised(), spec_of(seed=seed))[-1].val_loss for seed in (3, 3, 4))

    assert first == again != other


def test_what_a_run_takes_before_it_trains_is_timed() -> None:
    """Until the end of its first step, where steps are timed: what is to fit has other batches."""

    def built_slowly() -> nn.Module:
        time.sleep(0.1)
        return net()

    objective = supervised(model=built_slowly)
    timed = objective.measure(MeasureSpec(8, 16, 1, 2, seed=0, timed_s=0.01, max_timed_steps=2), "cpu", Phases())

    assert timed.start_s is not None
    assert timed.start_s >= 0.1
    assert objective.measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases()).start_s is None


def test_accumulated_micro_batches_train_as_one_batch() -> None:
    """A batch of 16 as 4 x 4 ends where 16 x 1 ends, up to rounding: the split must not change what is learned."""
    plain = supervised(model=lambda: nn.Linear(4, 3))
    whole = run(plain, spec_of())[-1].val_loss
    split = run(plain, spec_of(micro_batch_size=4, accumulation_steps=4))[-1].val_loss

    assert split == pytest.approx(whole, rel=1e-5)


def test_validation_mean_is_weighted_by_samples() -> None:
    """The last validation batch is smaller; the mean must not depend on the size of the batches."""
    objective = supervised(
        metrics={"accuracy": lambda model, batch: float((model(batch[0]).argmax(1) == batch[1]).float().mean())}
    )
    sevens, whole = (run(objective, spec_of(eval_batch_size=size))[-1] for size in (7, N))

    assert sevens.val_loss == pytest.approx(whole.val_loss, rel=1e-5)
    assert sevens.metrics["accuracy"] == pytest.approx(whole.metrics["accuracy"])


def test_a_run_continued_from_a_checkpoint_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped at the half, saved, and continued in a new run: the same last loss, bit for bit, dropout included."""
    path = str(tmp_path / "half.pt")
    whole = run(supervised(), spec_of())[-1].val_loss
    run(supervised(), spec_of(checkpoint_to=path), lambda _: "stop")
    random.seed(99)
    torch.manual_seed(99)

    continued = run(supervised(), spec_of(resume_from=path, start_samples=2 * N))

    assert [report.samples for report in continued] == [4 * N]
    assert continued[-1].val_loss == whole


@pytest.mark.parametrize(
    ("schedule", "last"),
    [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0), ("wsd", 0.0), (lambda p: 1 - p / 2, 0.5)],
)
def test_schedule_scales_every_group_to_the_planned_end(schedule: Any, last: float) -> None:
    """Two parameter groups 10:1 keep their ratio, and the end of the schedule is the planned end of the run."""
    seen: list[tuple[float, float]] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append((self.param_groups[0]["lr"], self.param_groups[1]["lr"]))
            return super().step(closure)

    def optimizer(parameters: list[Any], lr: float) -> Spy:
        return Spy([{"params": parameters[:2], "lr": lr}, {"params": parameters[2:], "lr": lr / 10}], lr=lr)

    run(supervised(optimizer=optimizer, schedule=schedule), spec_of())

    n_steps = 4 * N // 16
    assert len(seen) == n_steps
    assert all(slow == pytest.approx(fast / 10) for fast, slow in seen)
    assert seen[-1][0] == pytest.approx(0.01 * last, abs=0.01 * 6 / n_steps)


def test_a_loss_that_is_not_finite_is_reported_at_once() -> None:
    """A diverged run does not train on to its next report."""
    objective = supervised(loss=lambda output, target: output.sum() * math.nan)

    reports = run(objective, spec_of(), lambda _: "stop")

    assert [(report.samples, math.isnan(report.val_loss)) for report in reports] == [(16, True)]


def test_wrong_arguments_are_listed_together() -> None:
    """Three mistakes, one message."""
    with pytest.raises(bstune.ArgumentError, match=r"(?s)already built.*epochs=0.*schedule='cos'"):
        supervised(model=nn.Linear(4, 3), epochs=0, schedule="cos")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precise_batch_norm": "Auto"}, "precise_batch_norm='Auto': expected True, False or 'auto'"),
        ({"precise_batch_norm": 1}, "precise_batch_norm=1: expected True, False or 'auto'"),
        ({"epochs": "ten"}, "epochs='ten': expected a finite number above 0"),
        ({"epochs": math.inf}, "epochs=inf: expected a finite number above 0"),
        ({"evals": None}, "evals=None: expected a whole number of at least 1"),
        ({"evals": 2.5}, "evals=2.5: expected a whole number of at least 1"),
        ({"evals": math.inf}, "evals=inf: expected a whole number of at least 1"),
        ({"name": 3}, "name=3: expected a text, or None"),
        ({"schedule": ["cosine"]}, "schedule=['cosine']: expected constant, linear, cosine, wsd or a function"),
        ({"num_workers": -1}, "num_workers=-1: expected the number of processes that load data, 0 or more"),
        ({"clip_grad_norm": 0}, "clip_grad_norm=0: expected a number above 0, or None"),
        ({"loss": "mse"}, "loss='mse': expected a function ((output, target) -> loss), or leave it out"),
        ({"metrics": ["accuracy"]}, "metrics=['accuracy']: expected names with functions"),
        ({"world_size": 0}, "world_size=0: expected the number of processes"),
    ],
)
def test_a_wrong_word_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    """At once, in one sentence: what it was, and what was expected."""
    with pytest.raises(bstune.ArgumentError) as caught:
        supervised(**given)
    assert str(caught.value).startswith(f"Supervised: {said}")
    assert "; " not in str(caught.value)


def test_all_that_is_allowed_is_taken() -> None:
    """Numbers of any kind, and both truths."""
    for precise in (True, False, "auto"):
        made = supervised(precise_batch_norm=precise, epochs=np.float32(2), num_workers=np.int64(0), clip_grad_norm=1)
        assert (made.precise_batch_norm, made.epochs) == (precise, 2)
    nothing: tuple[Any, ...] = (None, [], (), {})
    for none in nothing:
        assert supervised(metrics=none, evals=np.int64(4)).metrics == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"loss": nn.CrossEntropyLoss(reduction="none")},
            "returned a tensor of shape \\(16,\\): expected the mean loss",
        ),
        ({"training_step": lambda model, batch: torch.tensor(1.0)}, "without a gradient"),
        ({"training_step": lambda model, batch: None}, "returned a NoneType"),
        ({"train_data": TensorDataset(torch.randn(N, 4))}, "expects pairs"),
        ({"model": lambda: None}, "returned a NoneType: expected a torch.nn.Module"),
        ({"model": lambda: nn.ReLU()}, "without parameters"),
        ({"optimizer": lambda parameters, lr: None}, "expected a torch.optim.Optimizer"),
        ({"train_data": TensorDataset(torch.randn(N, 4), torch.randn(N, 9))}, "No default loss fits"),
    ],
)
def test_mistakes_in_the_objective_say_what_was_expected(options: dict[str, Any], said: str) -> None:
    """Each names the part at fault, what it returned and what was expected."""
    with pytest.raises(bstune.ObjectiveError, match=said):
        run(supervised(**options), spec_of())


def test_an_optimizer_that_takes_no_learning_rate_is_refused() -> None:
    """At once where its signature tells, else before rates are searched: unused rates would have a best too."""
    with pytest.raises(bstune.ArgumentError, match=r"expected a class or function \(parameters, lr\)"):
        supervised(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert not supervised().describe().ignores_rate
    facts = supervised(optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=0.1)).describe()
    with pytest.raises(bstune.ArgumentError, match="has the same learning rates whatever lr is"):
        make_space(Plan(), facts, None)
    assert make_space(Plan(space={"learning_rate": 0.1}), facts, None).learning_rates == (0.1,)


def test_extra_parameters_reach_the_model_and_the_optimizer() -> None:
    """By the names of their keywords; one that neither takes is an error, not a dimension without effect."""
    widths, decays = [], []

    def model(width: int = 8) -> nn.Module:
        widths.append(width)
        return net()

    def optimizer(parameters: Any, lr: float, decay: float = 0.0) -> torch.optim.Optimizer:
        decays.append(decay)
        return torch.optim.SGD(parameters, lr, weight_decay=decay)

    run(supervised(model=model, optimizer=optimizer), spec_of(params={"width": 16, "decay": 0.1}))
    assert (widths[-1], decays[-1]) == (16, 0.1)
    run(supervised(), spec_of(params={"weight_decay": 0.1}))  # AdamW, the default, takes it.
    with pytest.raises(bstune.ObjectiveError, match=r"'dropout'.* takes a keyword of that name"):
        run(supervised(), spec_of(params={"dropout": 0.1}))


def test_keywords_go_to_whom_names_them() -> None:
    """A model that takes any keyword does not get those of the optimizer."""

    def model(**anything: Any) -> nn.Module:
        assert set(anything) <= {"width"}
        return net()

    run(supervised(model=model), spec_of(params={"weight_decay": 0.1, "width": 8}))


def test_a_checkpoint_that_cannot_be_written_costs_nothing_but_itself(tmp_path: Path) -> None:
    """The stopped run is what it was; another one starts from the beginning."""
    path = tmp_path / "gone" / "half.pt"
    assert run(supervised(), spec_of(checkpoint_to=str(path)), lambda _: "stop")
    assert not path.exists()


@pytest.mark.parametrize("free_bytes", [1000, 1 << 30])
def test_checkpoints_do_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_bytes: int) -> None:
    """The study is on it: what would take most of what is left is not written."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free_bytes))
    path = tmp_path / "half.pt"
    assert run(supervised(), spec_of(checkpoint_to=str(path)), lambda _: "stop")
    assert path.exists() == (free_bytes > 1000)


@pytest.mark.parametrize(("batch_s", "took_s"), [(0.01, 0.02), (1.0, 9 / 8)])
def test_a_quick_validation_is_timed_whole(batch_s: float, took_s: float) -> None:
    """Its last batch, of one sample, takes as long as the first, of eight; a long one is not run whole to be timed."""
    clock = FakeClock()

    def validated(batch: int) -> int:
        clock.advance(batch_s)
        return batch

    run: Any = SimpleNamespace(
        clock=clock,
        validation=lambda size: [(size, size), (1, 1)],
        validate_batch=validated,
        validate_once=validated,
        model=torch.nn.Identity(),
        objective=SimpleNamespace(num_workers=0, val_tokens=None, val_data=range(9), precise_batch_norm="auto"),
        world_size=1,
    )

    assert 9 * _validation_s(run, 8) == pytest.approx(took_s)


@pytest.mark.parametrize(
    ("n_batches", "later_s", "took_s"), [(40, 1.0, 10.0 + 39.0), (40, 12.0, 10.0 + 39 * 12.0), (1, 0, 10.0)]
)
def test_workers_of_a_loader_start_once_in_a_validation(n_batches: int, later_s: float, took_s: float) -> None:
    """The first batch waits for their start, and says nothing of the others."""
    clock, n_run = FakeClock(), [0]

    def validation(size: int) -> Iterator[tuple[int, None]]:
        for number in range(n_batches):
            clock.advance(later_s if number else 10.0)
            n_run[0] += 1
            yield size, None

    objective = SimpleNamespace(
        num_workers=4, val_tokens=None, val_data=range(8 * n_batches), precise_batch_norm="auto"
    )
    run: Any = SimpleNamespace(
        clock=clock,
        validation=validation,
        validate_batch=lambda batch: None,
        model=torch.nn.Identity(),
        objective=objective,
        world_size=1,
    )

    assert 8 * n_batches * _validation_s(run, 8) == pytest.approx(took_s)
    assert n_run[0] <= 5
