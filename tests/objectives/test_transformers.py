"""Transformers' Trainer: its arguments are filled in, it is evaluated where wanted, and the rest is its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.objectives.transformers import TrainerObjective, from_trainer
from bstune.tests.objectives.short_form import run_example
from bstune.tests.objectives.small import DATA, N, net, run, spec_of
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.results import LossEstimate, Recommendation
from bstune.tuner.core.trials import MeasureSpec
from torch import nn
from torch.utils.data import Dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # What Transformers and Accelerate import.

transformers: Any


@pytest.fixture(scope="module", autouse=True)
def _transformers() -> None:
    """Import it for the first test: this file is collected in several processes, and runs in one of them."""
    global transformers
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'bstune[transformers]'")
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'bstune[transformers]'")


class Rows(Dataset[dict[str, Any]]):
    """The small data set, as the Trainer takes it."""

    def __len__(self) -> int:
        """Return how many samples there are."""
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one."""
        x, y = DATA[index]
        return {"x": x, "labels": y}


class Classifier(nn.Module):
    """The small classifier, which returns its loss; it keeps the sizes of its batches."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.net = net()
        self.sizes: list[int] = []
        self.val_sizes: list[int] = []
        self.seen: list[Any] = []

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        """Return loss and logits."""
        (self.sizes if self.training else self.val_sizes).append(len(x))
        self.seen.append(x)
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


made: list[Any] = []
"""The trainers that were built, to see what became of them."""


@pytest.fixture(autouse=True)
def _forget_trainers() -> None:
    made.clear()


def trainer_of(arguments: dict[str, Any] | None = None, **options: Any) -> Callable[[], Any]:
    """Return a function that makes a Trainer of four epochs, with sizes of its own."""

    def make_trainer() -> Any:
        args = transformers.TrainingArguments(
            "never_made",
            **{"num_train_epochs": 4, "per_device_train_batch_size": 2, "auto_find_batch_size": True}
            | (arguments or {}),
        )
        made.append(
            transformers.Trainer(Classifier(), args, **{"train_dataset": Rows(), "eval_dataset": Rows(), **options})
        )
        return made[-1]

    return make_trainer


def objective(arguments: dict[str, Any] | None = None, **options: Any) -> TrainerObjective:
    """Return an objective of it."""
    return from_trainer(trainer_of(arguments, **options))


def test_reports_come_at_the_wanted_samples_with_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 96, 192 and 384 samples, from 24 steps of two micro-batches of 8; nothing is written."""
    monkeypatch.chdir(tmp_path)
    points = (N, 2 * N, 4 * N)
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}

    reports = run(
        objective({**saving, "load_best_model_at_end": True}),
        spec_of(micro_batch_size=8, accumulation_steps=2, points=points, eval_batch_size=80),
    )

    assert [report.samples for report in reports] == list(points)
    (trainer,) = made
    assert trainer.model.sizes == [8] * 48
    assert trainer.model.val_sizes == [80, 16] * 3
    assert trainer.state.global_step == 24
    assert trainer.args.learning_rate == 0.01
    assert list(tmp_path.iterdir()) == []


def test_the_schedule_decays_to_the_end_of_the_trial() -> None:
    """The Trainer's default is linear, and a short trial is a short run."""
    one = objective()

    run(one, spec_of(end_samples=2 * N, points=(2 * N,)))

    assert one.describe().schedule == "linear"
    assert made[0].state.max_steps == 12
    assert made[0].lr_scheduler.get_last_lr() == [0.0, 0.0]  # Weights and biases are groups of their own.


def test_an_epoch_that_does_not_divide_counts_what_was_trained() -> None:
    """Micro-batches of 20 from 96 samples are four an epoch: steps of three and of one, as the Trainer has them."""
    reports = run(
        objective(),
        spec_of(micro_batch_size=20, accumulation_steps=3, global_batch_size=60, end_samples=360, points=(120, 360)),
    )

    assert [report.samples for report in reports] == [140, 380]
    assert made[0].model.sizes == [20] * 19


def test_a_stop_ends_the_run_at_once() -> None:
    """The user's own callbacks hear of the end; early stopping of theirs is off."""
    heard = []

    class Mine(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_end(self, *args: Any, **others: Any) -> None:
            heard.append("end")

    patience = transformers.EarlyStoppingCallback(1)
    reports = run(objective(callbacks=[Mine(), patience]), spec_of(), lambda _: "stop")

    assert [report.samples for report in reports] == [2 * N]
    assert sum(made[0].model.sizes) == 2 * N
    assert heard == ["end"]


def test_the_same_seed_is_the_same_run() -> None:
    """Another one is not."""
    first, again, other = (run(objective(), spec_of(seed=seed)) for seed in (3, 3, 4))

    assert [report.val_loss for report in first] == [report.val_loss for report in again]
    assert [report.val_loss for report in first] != [report.val_loss for report in other]


def test_the_space_may_have_other_fields() -> None:
    """By their names; what is none is refused."""
    run(objective(), spec_of(params={"weight_decay": 0.5}))

    assert made[0].args.weight_decay == 0.5
    with pytest.raises(bstune.ObjectiveError, match="'width': expected names of fields of TrainingArguments"):
        objective().try_params([{"weight_decay": 0.1}, {"width": 0.5}])


def test_arguments_from_elsewhere_are_found() -> None:
    """They cannot be filled in, and the trial would train at their size."""
    args = transformers.TrainingArguments("never_made", per_device_train_batch_size=2)
    elsewhere = from_trainer(lambda: transformers.Trainer(Classifier(), args, train_dataset=Rows()))

    with pytest.raises(bstune.ObjectiveError, match="TrainingArguments were made before"):
        run(elsewhere, spec_of())


def test_metrics_of_the_user_and_one_that_is_not_there() -> None:
    """What compute_metrics tells is recorded, and may be what is minimised."""

    def compute(predicted: Any) -> dict[str, float]:
        return {"error": float((predicted.predictions.argmax(1) != predicted.label_ids).mean())}

    reports = run(objective(compute_metrics=compute), spec_of())
    assert set(reports[0].metrics) == {"eval_error"}
    error = from_trainer(trainer_of(compute_metrics=compute), metric="eval_error")
    assert [report.val_loss for report in run(error, spec_of())] == [each.metrics["eval_error"] for each in reports]
    with pytest.raises(bstune.ObjectiveError, match=r"did not tell 'eval_other'.*It told: .*eval_loss"):
        run(from_trainer(trainer_of(), metric="eval_other"), spec_of())
    with pytest.raises(bstune.ArgumentError, match=r"metric='eval_f1' names a score, and bstune minimises"):
        from_trainer(trainer_of(), metric="eval_f1")


def test_a_probe_makes_the_steps_that_are_wanted() -> None:
    """Three whole steps, then three validation batches of the size that was asked for: they tell what all six take."""
    one, meter = objective(), Phases()

    notes = one.measure(MeasureSpec(8, 16, 2, 3, seed=0, params={"weight_decay": 0.5}), "cpu", meter)

    assert meter.said == ["build", "train", "step", "step", "step", "holds", "validation"]
    assert made[0].model.sizes == [8] * 6
    assert made[0].model.val_sizes == [16] * 3
    assert notes.start_s is not None
    assert notes.validation_s is not None
    assert made[0].args.weight_decay == 0.5
    assert (notes.samples, notes.eval_batch_size, notes.optimizer) == (48, 16, "AdamW")
    one.measure(MeasureSpec(32, 16, 2, 3, seed=0), "cpu", Phases())  # An epoch has three of these.
    assert made[1].model.sizes == [32] * 6


def test_a_probe_is_given_the_longest_sample() -> None:
    """In training and evaluation, in whatever order they are drawn; timed steps have ordinary batches."""
    longest = max(range(N), key=lambda index: float(DATA[index][0][0]))
    one = from_trainer(trainer_of(), length=lambda row: float(row["x"][0]))

    one.measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases())
    one.measure(MeasureSpec(8, 16, 1, 2, seed=0, timed_s=0.01, max_timed_steps=1), "cpu", Phases())
    objective().measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases())

    probed, timed, plain = (trainer.model.seen for trainer in made)
    assert [len(x) for x in probed] == [8, 8, 16, 16, 16]
    assert all(bool((x == DATA[longest][0]).all()) for x in probed)
    assert not any(bool((x == x[0]).all()) for x in [*timed, *plain])


def test_one_of_several_processes_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a launcher has started bstune itself this is said at once, and so is a Trainer of several processes."""
    monkeypatch.setattr(transformers.TrainingArguments, "world_size", 2)
    with pytest.raises(bstune.ObjectiveError, match=r"sees 2 processes.*bstune search -- torchrun --nproc-per-node N"):
        objective().describe()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(bstune.ObjectiveError, match=r"one of 2 processes .* the Trainer would wait .* Start bstune wi"):
        objective().prepare()


def test_a_model_that_is_to_be_sharded_is_refused() -> None:
    """By FSDP or ZeRO: a trial has one process, and the way to several is named."""
    for sharded in ({"fsdp": "full_shard"}, {"deepspeed": {"zero_optimization": {"stage": 2}}}):
        (name,) = sharded
        with pytest.raises(bstune.ObjectiveError, match=rf"have {name}: a trial is one process.*search -- torchrun"):
            objective(sharded).describe()


def test_wrong_arguments_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer that was already made, a schedule that is none; without the package the extra is named."""
    with pytest.raises(bstune.ArgumentError, match=r"name=3: .*is a Trainer: expected a function.*schedule='step'"):
        from_trainer(trainer_of()(), schedule="step", name=3)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(bstune.ArgumentError, match=r"pip install 'bstune\[transformers\]'"):
        from_trainer(trainer_of())


def test_a_recommendation_becomes_training_arguments() -> None:
    """With the other parameters of the space."""
    loss = LossEstimate(0.5, None, 1)
    best = Recommendation(
        micro_batch_size=8,
        accumulation_steps=4,
        world_size=1,
        global_batch_size=32,
        eval_batch_size=64,
        learning_rate=0.003,
        params={"weight_decay": 0.1},
        val_loss=loss,
        seconds_to_target=None,
        samples_to_target=None,
        samples_per_s=None,
        peak_bytes=None,
        verified=True,
        reason="",
        batch_interval=(32, 32),
        lr_rule=None,
        fastest=None,
        smallest_within_tolerance=None,
        alternatives=(),
    )

    args = transformers.TrainingArguments("never_made", use_cpu=True, **best.to_training_arguments())

    assert (args.train_batch_size, args.gradient_accumulation_steps, args.eval_batch_size) == (8, 4, 64)
    assert (args.learning_rate, args.weight_decay) == (0.003, 0.1)


def test_the_example_goes_from_nothing_to_a_trained_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns with what `to_training_arguments` says; guessing among four has a loss of 1.39."""
    known = "budget=1, n_trials=2, space={'batch_size': 32, 'learning_rate': 0.01}"

    run_example(
        root / "examples" / "hf_text.py", tmp_path, monkeypatch, {"budget=4": known, "EPOCHS = 10": "EPOCHS = 5"}
    )

    assert float(re.findall(r"batch 32: validation loss ([\d.]+)", capsys.readouterr().out)[0]) < 1.0


def test_the_own_search_of_transformers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With bstune's sampler and pruner: the first rates are those of its race, a factor 4 apart; the best trains on."""
    (tmp_path / "hf_text.py").write_text(
        (root / "examples" / "hf_text.py").read_text().replace("EPOCHS = 10", "EPOCHS = 5")
    )

    run_example(root / "examples" / "hf_hyperparameter_search.py", tmp_path, monkeypatch, {"else 15": "else 2"})

    said = capsys.readouterr().out
    found = re.findall(r"validation loss ([\d.]+) with .*'learning_rate': ([\d.]+)", said)
    (loss, rate) = found[0]
    assert float(loss) < 1.3
    assert float(rate) in (0.001, 0.004)
    assert float(re.findall(r"trained with them: validation loss ([\d.]+)", said)[0]) < 1.3
