"""Lightning: settings come where people keep them, reports where they are wanted, and the rest is Lightning's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bstune
import pytest
import torch
from bstune.objectives.lightning import LightningObjective, _n_batches, from_module
from bstune.objectives.lightning_package import load_longest
from bstune.tests.objectives.short_form import run_example
from bstune.tests.objectives.small import DATA, N, net, run, spec_of
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.trials import MeasureSpec
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from bstune.tests.objectives.lightning_small import Data, Net, lightning, made

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders, and what it imports.


@pytest.fixture(scope="module", autouse=True)
def _lightning() -> None:
    """Import it for the first test: this file is collected in several processes, and runs in one of them."""
    global Data, Net, lightning, made
    from bstune.tests.objectives.lightning_small import Data, Net, lightning, made


@pytest.fixture(autouse=True)
def _forget_modules() -> None:
    made.clear()


def objective(module: Callable[..., Any] | None = None, **options: Any) -> LightningObjective:
    """Return an objective of four epochs that is prepared."""
    one = from_module(module or Net, **{"datamodule_factory": Data, "max_epochs": 4, **options})
    one.prepare()
    return one


def test_reports_come_at_the_wanted_samples_with_accumulation() -> None:
    """At 96 and 192 of 384 samples, from 24 steps of two micro-batches of 8; what is set is used."""
    points = (N, 2 * N, 4 * N)
    reports = run(
        objective(num_sanity_val_steps=2),
        spec_of(micro_batch_size=8, accumulation_steps=2, points=points, eval_batch_size=48),
    )

    assert [report.samples for report in reports] == list(points)
    (module,) = made
    assert set(module.sizes) == {8}
    assert len(module.sizes) == 48
    assert module.trainer.global_step == 24
    assert set(module.val_sizes) == {48}
    assert module.optimizers().param_groups[0]["lr"] == 0.01


def test_an_uneven_epoch_has_whole_steps_only() -> None:
    """Batches of 40 from 96 samples: two steps an epoch, none of them smaller."""
    reports = run(objective(), spec_of(micro_batch_size=40, global_batch_size=40, end_samples=360, points=(120, 360)))

    assert [report.samples for report in reports] == [120, 360]
    assert made[0].sizes == [40] * 9


def test_a_stop_ends_the_run_at_once() -> None:
    """And Lightning ends as it does: the user's own callback hears of it."""
    heard: list[str] = []
    mine = lightning.pytorch.callbacks.LambdaCallback(on_train_end=lambda *_: heard.append("end"))

    reports = run(objective(callbacks=mine), spec_of(), lambda _: "stop")

    assert [report.samples for report in reports] == [2 * N]
    assert sum(made[0].sizes) == 2 * N
    assert heard == ["end"]


def test_the_same_seed_is_the_same_run() -> None:
    """Another one is not."""
    first, again, other = (run(objective(), spec_of(seed=seed)) for seed in (3, 3, 4))

    assert [report.val_loss for report in first] == [report.val_loss for report in again]
    assert [report.val_loss for report in first] != [report.val_loss for report in other]


def test_schedulers_are_told_where_the_trial_ends() -> None:
    """The one-cycle schedule that Lightning's manual shows; precision is kept."""

    class Cycle(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
            self.told = self.trainer.estimated_stepping_batches, self.trainer.max_epochs, self.trainer.precision
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.told[0])
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    run(objective(Cycle, precision="bf16-mixed", schedule="linear"), spec_of(end_samples=2 * N, points=(2 * N,)))

    assert made[0].told == (12, 2, "bf16-mixed")
    assert made[0].optimizers().param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_nothing_is_written_and_nothing_else_ends_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and early stopping are off, also those that the module adds itself."""
    monkeypatch.chdir(tmp_path)
    callbacks = lightning.pytorch.callbacks

    class Stopping(Net):
        def configure_callbacks(self) -> Any:
            return [callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1), callbacks.ModelCheckpoint()]

        def on_validation_end(self) -> None:
            self.logger.experiment.add_scalar("mine", 1.0)  # Of a logger that a trial does not have.

    mine = [callbacks.ModelCheckpoint(dirpath=tmp_path), callbacks.LearningRateMonitor()]
    reports = run(objective(Stopping, callbacks=mine, logger=True), spec_of(points=(N, 2 * N, 3 * N, 4 * N)))

    assert len(reports) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_setting_comes_by_keyword_or_attribute() -> None:
    """What a factory names is passed to it, extra dimensions too; the rest is set where it is found."""
    got = []

    def module(learning_rate: float, width: int) -> Any:
        got.append((learning_rate, width))
        return Net(learning_rate)

    run(objective(module), spec_of(params={"width": 7}))

    assert got == [(0.01, 7)]
    with pytest.raises(bstune.ObjectiveError, match=r"no place for the parameter 'depth' in Net or Data.*self\.depth"):
        objective().try_params([{}, {"depth": 7}])


def test_a_module_without_a_place_is_told_what_was_looked_for() -> None:
    """By the names that were tried."""

    class Nowhere(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.hparams["lr"]

    with pytest.raises(bstune.ObjectiveError, match=r"no place for the learning rate.*self\.learning_rate or self\.lr"):
        objective(Nowhere).describe()


def test_a_loader_that_ignores_the_batch_size_is_found() -> None:
    """Or the search would compare runs that are all the same."""

    class Fixed(Data):
        def train_dataloader(self) -> Any:
            return DataLoader(DATA, batch_size=32)

    with pytest.raises(bstune.ObjectiveError, match="batches of 32 where 16 was set"):
        run(objective(datamodule_factory=Fixed), spec_of())


def test_a_metric_that_is_not_logged_is_named_with_those_that_are() -> None:
    """The user sees the right name at once."""
    with pytest.raises(bstune.ObjectiveError, match=r"logged no 'val/loss'.*Logged were: val_loss"):
        run(objective(metric="val/loss"), spec_of())


def test_a_score_is_refused_as_what_is_minimised() -> None:
    """Or the worst setting would be recommended."""
    with pytest.raises(bstune.ArgumentError, match=r"'val_accuracy' names a score, and bstune minimises.*1 - score"):
        objective(metric="val_accuracy")


def test_manual_optimization_with_two_optimizers_ends_where_it_should() -> None:
    """Lightning counts the steps of both; samples are the clock."""

    class Gan(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> Any:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=self.hparams.lr) for _ in range(2)]

    gan = objective(Gan)
    reports = run(gan, spec_of())

    assert [report.samples for report in reports] == [2 * N, 4 * N]
    assert not gan.describe().accumulates


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    """Before the next validation."""

    class Broken(Net):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch, index) * float("nan")

    (report,) = run(objective(Broken), spec_of(), lambda _: "stop")

    assert report.samples == 16


def test_a_probe_makes_the_steps_that_are_wanted() -> None:
    """Three whole steps, then three validation batches at the size that was asked for, with gradients resident."""
    one, meter = objective(), Phases()

    notes = one.measure(MeasureSpec(8, 16, 2, 3, seed=0), "cpu", meter)

    assert meter.said == ["build", "train", "step", "step", "step", "holds", "validation"]
    assert made[0].sizes == [8] * 6
    assert made[0].val_sizes == [16] * 3
    assert notes.start_s is not None
    assert notes.validation_s is not None
    assert (notes.samples, notes.eval_batch_size, notes.optimizer) == (48, 16, "SGD")
    timed = Phases()
    notes = one.measure(MeasureSpec(8, 16, 1, 2, seed=0, timed_s=30, max_timed_steps=5), "cpu", timed)
    assert timed.said.count("step") == 7
    with pytest.raises(bstune.ObjectiveError, match="parameter 'depth'"):
        one.measure(MeasureSpec(8, 16, 1, 2, seed=0, params={"depth": 3}), "cpu", Phases())


def test_validations_are_as_long_as_those_of_trials() -> None:
    """By all loaders, within the user's own limit; unknown where one of them streams."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(DATA)

    loader = DataLoader(DATA, batch_size=16)  # Of 96 samples.
    assert _n_batches(loader, 1.0) == 6
    assert _n_batches([loader, loader], 4) == 8
    assert _n_batches({"one": loader, "two": loader}, 0.5) == 6
    assert _n_batches([loader, DataLoader(Stream(), batch_size=16)], 1.0) is None


def test_a_probe_is_given_the_longest_sample() -> None:
    """In training and validation, by a length function or what the data set says; timed steps have ordinary batches."""
    batches: list[Any] = []

    class Seeing(Net):
        def training_step(self, batch: Any, index: int) -> Any:
            batches.append(batch[0])
            return super().training_step(batch, index)

        def validation_step(self, batch: Any, index: int) -> None:
            batches.append(batch[0])
            super().validation_step(batch, index)

    longest = max(range(N), key=lambda index: float(DATA[index][0][0]))
    one = objective(Seeing, length=lambda sample: float(sample[0][0]))
    one.measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases())
    assert [len(batch) for batch in batches] == [8, 8, 16, 16, 16]
    assert all(bool((batch == DATA[longest][0]).all()) for batch in batches)
    batches.clear()
    one.measure(MeasureSpec(8, 16, 1, 2, seed=0, timed_s=0.01, max_timed_steps=1), "cpu", Phases())
    objective(Seeing).measure(MeasureSpec(8, 16, 1, 2, seed=0), "cpu", Phases())
    assert not any(bool((batch == batch[0]).all()) for batch in batches)


def test_the_loader_of_a_probe_is_the_users_in_all_else() -> None:
    """A worker that is not set up as the user's are may not be able to read the data."""
    options: dict[str, Any] = {
        "batch_size": 8,
        "num_workers": 2,
        "collate_fn": list,
        "pin_memory": True,
        "drop_last": True,
        "timeout": 30,
        "worker_init_fn": len,
        "multiprocessing_context": "spawn",
        "generator": torch.Generator(),
        "prefetch_factor": 3,
        "persistent_workers": True,
    }

    class Loading:
        def train_dataloader(self) -> Any:
            return DataLoader(DATA, **options)

    own, holder = DataLoader(DATA, **options), Loading()
    load_longest(holder, length=lambda sample: float(sample[0][0]))
    loader = holder.train_dataloader()

    assert loader.dataset is not DATA
    assert {name: getattr(loader, name) for name in options} == {name: getattr(own, name) for name in options}


def test_pytorch_lightning_is_served_as_well() -> None:
    """Its modules are of other classes, which the Trainer of `lightning` refuses."""
    old = pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")

    class Old(old.LightningModule):  # type: ignore[misc, name-defined]
        batch_size, learning_rate = 1, 0.1

        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Any:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.training_step(batch, index))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

        def train_dataloader(self) -> Any:
            return DataLoader(DATA, batch_size=self.batch_size)

        val_dataloader = train_dataloader

    one = objective(Old, datamodule_factory=None)

    assert one.describe().n_samples == N
    assert [report.samples for report in run(one, spec_of())] == [2 * N, 4 * N]


def test_wrong_arguments_are_named_at_once() -> None:
    """A module that was already built, several devices, no length, a name that is none."""
    with pytest.raises(bstune.ArgumentError) as raised:
        from_module(Net(), Data(), devices=2, strategy="ddp", schedule="step", name=3)  # type: ignore[arg-type]

    said = str(raised.value)
    assert "module_factory is a Net that was already built" in said
    assert "datamodule_factory is a Data that was already built" in said
    assert "devices=2, strategy='ddp': a trial runs on one device" in said
    assert "bstune search -- torchrun --nproc-per-node N train.py" in said
    assert "schedule='step'" in said
    assert "max_epochs is missing" in said
    assert "name=3: expected a text" in said


def test_one_of_several_processes_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a launcher has started bstune itself, this is said at once."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(bstune.ObjectiveError, match=r"one of 2 processes .* Lightning would wait .* Start bstune wi"):
        objective()


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an ImportError from the depths of a worker."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(bstune.ArgumentError, match=r"pip install 'bstune\[lightning\]'"):
        from_module(Net, Data, max_epochs=1)


def test_the_example_goes_from_nothing_to_a_trained_module(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns with what `apply` has set, and leaves nothing but the study."""
    known = "budget=1, n_trials=2, space={'batch_size': 32, 'learning_rate': 0.1}"
    changed = {"budget=4": known, "max_epochs=20": "max_epochs=3"}

    run_example(root / "examples" / "lightning_mnist.py", tmp_path, monkeypatch, changed)

    assert float(re.findall(r"validation accuracy ([\d.]+)%", capsys.readouterr().out)[0]) > 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "lightning_mnist.py"]
