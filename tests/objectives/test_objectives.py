"""What users give bstune to train: data, models, losses and loops, good and bad."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import bstune
import numpy
import pytest
import torch
from bstune.objectives.base import Trial
from bstune.objectives.data import MicroBatches, noise_batches, to_device
from bstune.objectives.gradient_noise import measure_noise
from bstune.objectives.loop import LoopObjective
from bstune.objectives.training import TrainingRun
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import TrialReport, TrialSpec, Verdict
from bstune.tuner.strategy.space import make_space
from bstune.tuner.theory.gradient_noise import NoiseDesign
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

N = 96
DATA = TensorDataset(torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3)


def net() -> nn.Module:
    """Return a small classifier with dropout, so that a run depends on every generator."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def supervised(**options: Any) -> bstune.Supervised:
    """Return a small objective on CPU."""
    return bstune.Supervised(**{"model": net, "train_data": DATA, "val_data": DATA, "epochs": 4, **options})


def spec_of(**options: Any) -> TrialSpec:
    """Return a run of 16 samples a step over four epochs, reporting at the half and at the end."""
    plain: dict[str, Any] = {
        "number": 0,
        "stage": "search",
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "accumulation_steps": 1,
        "learning_rate": 0.01,
        "seed": 3,
        "end_samples": 4 * N,
        "points": (2 * N, 4 * N),
    }
    return TrialSpec(**{**plain, **options})


def run(
    objective: Any, spec: TrialSpec, verdict: Callable[[TrialReport], Verdict] = lambda _: "go"
) -> list[TrialReport]:
    """Run a trial in this process and return its reports."""
    reports: list[TrialReport] = []

    def send(report: TrialReport) -> Verdict:
        reports.append(report)
        return verdict(report)

    trial = Trial(spec, device="cpu", send=send, clock=time.perf_counter)
    try:
        objective.train(trial, spec)
    except bstune.TrialPruned:
        assert trial.stopped_at is not None
    return reports


def test_stream_has_only_full_batches_and_carries_the_rest_into_the_next_epoch() -> None:
    """10 samples in batches of 4: over 5 batches every sample is seen exactly twice."""
    batches = list(islice(MicroBatches(10, 4, seed=0), 5))

    assert {len(batch) for batch in batches} == {4}
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(10), 2)


def test_stream_can_be_entered_at_any_sample() -> None:
    """A continued run sees what the uninterrupted one would have seen."""
    whole = [index for batch in islice(MicroBatches(10, 4, seed=5), 12) for index in batch]
    later = [index for batch in islice(MicroBatches(10, 3, seed=5, start_samples=17), 5) for index in batch]

    assert later == whole[17:32]


def test_reports_come_at_the_wanted_points_with_the_last_value_at_the_end() -> None:
    """Two points are wanted and two reports come, at the first step that reaches each."""
    reports = run(supervised(), spec_of(global_batch_size=20, micro_batch_size=20, end_samples=380, points=(192, 384)))

    assert [(report.points, report.samples) for report in reports] == [((192,), 200), ((384,), 380)]


def test_same_seed_gives_the_same_losses_and_another_seed_others() -> None:
    """Initialisation, data order and dropout follow from the seed."""
    first, again, other = (run(supervised(), spec_of(seed=seed))[-1].val_loss for seed in (3, 3, 4))

    assert first == again != other


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


class Pair(NamedTuple):
    """A batch as a named tuple."""

    x: torch.Tensor
    label: str


@dataclasses.dataclass
class Nested:
    """A batch as a dataclass that holds everything else."""

    pair: Pair
    parts: dict[str, list[torch.Tensor]]


def test_nested_batches_move_to_the_device() -> None:
    """Tensors in dataclasses, named tuples, dicts and lists move; what is no tensor stays."""
    moved = to_device(Nested(Pair(torch.zeros(2), "a"), {"more": [torch.ones(1)]}), "meta")

    assert moved.pair.x.device.type == "meta"
    assert moved.pair.label == "a"
    assert moved.parts["more"][0].device.type == "meta"


class Stream(IterableDataset[int]):
    """Data without a length."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataLoader(DATA), "Pass `loader.dataset`"),
        (Stream(), "map-style Dataset"),
        ((torch.zeros(3), torch.zeros(3)), "TensorDataset"),
        (TensorDataset(torch.zeros(0, 4)), "is empty"),
        (7, "is a int"),
    ],
    ids=["loader", "iterable", "tuple", "empty", "number"],
)
def test_data_that_cannot_be_used_says_what_to_pass(data: Any, said: str) -> None:
    """One clear error, at once for data and in the worker for a factory of it."""
    with pytest.raises(bstune.ObjectiveError, match=said):
        supervised(train_data=data)
    if not callable(data):
        with pytest.raises(bstune.ObjectiveError, match=said):
            supervised(train_data=lambda: data).prepare()


def test_wrong_arguments_are_listed_together() -> None:
    """Three mistakes, one message."""
    with pytest.raises(bstune.ArgumentError, match=r"(?s)already built.*epochs=0.*schedule='cos'"):
        supervised(model=nn.Linear(4, 3), epochs=0, schedule="cos")


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


def test_a_decorator_without_its_arguments_says_what_to_write() -> None:
    """The most common slip with decorators."""
    with pytest.raises(bstune.ArgumentError, match=r"expected @bstune\.objective\(n_samples="):
        bstune.objective(lambda trial: None)  # type: ignore[arg-type]


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


def test_batches_may_be_anything(tmp_path: Path) -> None:
    """Also NumPy arrays, which cannot be compared with None."""
    objective = supervised(
        collate_fn=lambda samples: numpy.stack(
            [numpy.append(x.flatten().numpy(), y.item()) for x, y in samples]
        ).astype("float32"),
        training_step=lambda model, batch: model(torch.tensor(batch[:, :-1])).square().mean(),
    )
    training = TrainingRun(objective, device="cpu", learning_rate=0.01, seed=0, horizon_samples=None)
    training.open_stream(4, 1)
    training.hold_batch()
    training.step()
    assert training.samples == 4


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
        ([(1.0, 100)], "ended after reporting 100 samples"),
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
        (10**25, "not of tokens or steps"),
        (1e25, "not of tokens or steps"),
        (769, "not of tokens or steps"),
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


def test_load_does_not_execute_the_file(tmp_path: Path) -> None:
    """A reference knows path, name and hash; the file runs only when it is resolved, which workers do."""
    path = tmp_path / "model.py"
    path.write_text("raise RuntimeError('executed')\n")

    reference = bstune.load(f"{path}:mine")

    assert (reference.name, reference.default_study_name) == ("mine", "model-mine")
    with pytest.raises(RuntimeError, match="executed"):
        reference.resolve()


@pytest.mark.parametrize("target", ["missing.py", "missing.py:name", "no_such_thing", "data.csv"])
def test_missing_file_is_named(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads nowhere is one clear error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("1,2\n")

    with pytest.raises(bstune.ObjectiveError, match=target.split(":")[0]):
        bstune.load(target)


def test_file_without_objective_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    """The message names what the file has, and the objective under another name if there is one."""
    path = tmp_path / "model.py"
    path.write_text("import bstune\nrate = 3\n@bstune.objective(n_samples=5)\ndef train(trial): ...\n")

    with pytest.raises(bstune.ObjectiveError, match=r"has no 'objective'.*found train.*model.py:train"):
        bstune.load(path).resolve()


class Norm(nn.Module):
    """A small model with BatchNorm and dropout: everything that a measurement could leave a trace in."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, from inputs that random and NumPy have jittered."""
        out: torch.Tensor = self.layers(x + 0.01 * random.random() + 0.01 * float(numpy.random.rand()))
        return out


@pytest.mark.parametrize(
    "options", [{}, {"micro_batch_size": 4, "accumulation_steps": 4}], ids=["whole", "accumulated"]
)
@pytest.mark.parametrize("model", [net, Norm])
def test_measuring_noise_leaves_training_bit_for_bit_as_it_was(
    model: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Losses, weights, statistics and generators are the same with and without; only the reports carry more."""
    points = tuple(range(N // 2, 4 * N + 1, N // 2))
    allowance = 512 if model is Norm else 128

    def train(noise_samples: int) -> tuple[list[TrialReport], dict[str, Any]]:
        path = str(tmp_path / f"{noise_samples}.pt")
        spec = spec_of(points=points, noise_samples=noise_samples, checkpoint_to=path, **options)
        reports = run(
            supervised(model=model, clip_grad_norm=0.5),
            spec,
            lambda report: "stop" if report.samples >= 4 * N else "go",
        )
        return reports, torch.load(path, weights_only=False)

    plain, state = train(0)
    measured, measured_state = train(allowance)

    assert [report.val_loss for report in measured] == [report.val_loss for report in plain]
    assert all(torch.equal(value, measured_state["model"][name]) for name, value in state["model"].items())
    assert torch.equal(state["torch_rng"], measured_state["torch_rng"])
    assert state["python_rng"] == measured_state["python_rng"]
    found = [point for report in measured for point in report.noise]
    assert len(found) >= 4
    assert sum(point.n_samples for point in found) <= allowance
    assert all(point.covariance_trace is not None and point.covariance_trace > 0 for point in found)
    assert [point for report in plain for point in report.noise] == []


def test_measured_noise_is_that_of_the_model_before_clipping() -> None:
    """On a linear model, 200 measurements agree with the exact gradient and covariance, within four standard errors."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = DATA.tensors

    def loss_of(batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    rows = []
    for i in range(N):
        model.zero_grad()
        loss_of((x[i : i + 1], y[i : i + 1])).backward()
        rows.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
    each = torch.stack(rows).double()
    truth = float(each.mean(0).square().sum()), float(each.var(0).sum())
    plan = NoiseDesign(4, 8, 4)
    points = [
        measure_noise(
            model,
            loss_of,
            noise_batches(DATA, 4, 8, seed=1, at_samples=i, collate_fn=None),
            plan,
            at_samples=i,
            population=N,
            scale=64.0,
        )
        for i in range(200)
    ]

    for values, expected in zip(
        zip(*((p.gradient_squared, p.covariance_trace) for p in points), strict=True), truth, strict=True
    ):
        assert abs(numpy.mean(values) - expected) < 4 * numpy.std(values) / math.sqrt(len(points))


def test_a_gradient_that_is_not_finite_is_charged_and_has_no_value() -> None:
    """What was drawn is told, so that the budget stays true; no number is made of it."""
    model = nn.Linear(4, 3)
    batches = noise_batches(DATA, 4, 8, seed=1, at_samples=0, collate_fn=None)

    point = measure_noise(
        model, lambda batch: model(batch[0]).sum() * math.inf, batches, NoiseDesign(4, 8, 4), at_samples=0, population=N
    )

    assert (point.n_samples, point.gradient_squared, point.covariance_trace) == (32, None, None)
