"""A LightningModule and its data as an objective: Lightning's own Trainer runs each trial."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..tuner.core.attributes import BATCH_SIZE, EVAL_BATCH_SIZE, LEARNING_RATE, no_place, set_attributes
from ..tuner.core.errors import ArgumentError, ObjectiveError
from ..tuner.core.plain_text import of_type
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialSpec
from .base import Meter, Trial, run_problems
from .fingerprint import HasSource, optimizer_family, source_hash
from .keywords import keywords_for
from .lightning_package import kept, load_longest, package_of, quiet
from .loop import Enough, FrameworkWatch, MeasuredRun, check_ended
from .ranks import SEVERAL, refuse_launcher
from .schedule import SCHEDULES
from .scores import score_problems
from .supervised import has_batch_norm
from .training import FINITE_CHECK_STEPS, seed_everything

OURS = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "enable_checkpointing",
    "fast_dev_run",
    "limit_train_batches",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "overfit_batches",
    "val_check_interval",
)
"""Arguments of the Trainer that bstune sets itself in a trial, whatever the user's are."""
NEVER = 1 << 62
"""Batches to the next validation, until one is due."""
PACKAGES = ("lightning", "pytorch_lightning")


def from_module(
    module_factory: Callable[..., Any],
    datamodule_factory: Callable[..., Any] | None = None,
    *,
    metric: str = "val_loss",
    epochs: float | None = None,
    evals: int = 16,
    schedule: str = "unknown",
    n_samples: int | None = None,
    length: Callable[[Any], float] | None = None,
    name: str | None = None,
    **trainer_kwargs: Any,
) -> LightningObjective:
    """Make an objective of a LightningModule; each trial is one `Trainer.fit`.

    Batch size and learning rate are set where Lightning users keep them: keywords of the factories, attributes of
    module and data module, and their `hparams`, by the names `batch_size` and `learning_rate` or `lr`. A validation
    batch size of its own is called `eval_batch_size` or `val_batch_size`.

    Args:
        module_factory: A class or function that returns a fresh LightningModule.
        datamodule_factory: The same for a LightningDataModule; None where the module has the loaders itself.
        metric: What the module logs in validation (`self.log(metric, ...)`), to be minimised: no accuracy.
        epochs: Passes over the training data in one full run; default: the Trainer's `max_epochs`.
        evals: Equal points of a full run at which it is validated, besides the rungs of the search.
        schedule: `constant`, `linear`, `cosine` or `wsd`: how the module's scheduler changes the learning rate until
            the Trainer's last step (`self.trainer.estimated_stepping_batches`); `unknown` is taken for constant.
        n_samples: Training samples in an epoch; default: those of the training loader's data set.
        length: `(sample) -> number`, for data of varying size: the probe measures with the longest sample. Default: the
            column `length` or the attribute `lengths` of the data set, or the sizes of some samples with `input_ids`.
        name: Name of the study; default: the name of the file.
        trainer_kwargs: As in `Trainer`: precision, callbacks, gradient clipping and so on are kept. In a trial bstune
            chooses length, validation, accumulation and device; loggers, checkpoints and early stopping are off.

    Raises:
        ArgumentError: An argument is wrong on its face, or Lightning is not installed.
    """
    epochs = trainer_kwargs.pop("max_epochs", None) if epochs is None else epochs
    trainer_kwargs.pop("max_epochs", None)
    wrong = _problems(module_factory, datamodule_factory, schedule, trainer_kwargs)
    if epochs is None or epochs == -1:
        wrong.append("max_epochs is missing: expected the epochs of one full run, such as max_epochs=10")
        epochs = 1
    wrong += run_problems(epochs, evals, name) + score_problems(metric)
    if n_samples is not None and n_samples < 1:
        wrong.append(f"n_samples={n_samples!r}: expected 1 or more")
    if wrong:
        raise ArgumentError("from_module: " + "; ".join(wrong) + ".")
    if not any(importlib.util.find_spec(package) for package in PACKAGES):
        raise ArgumentError("from_module needs Lightning, which is not installed: pip install 'bstune[lightning]'.")
    return LightningObjective(
        module_factory,
        datamodule_factory,
        metric=metric,
        epochs=float(epochs),
        evals=evals,
        schedule=schedule,
        n_samples=n_samples,
        length=length,
        name=name,
        trainer_kwargs={key: value for key, value in trainer_kwargs.items() if key not in OURS},
    )


class LightningObjective(HasSource):
    """A LightningModule with its data; made by `from_module`."""

    kind = "lightning"

    def __init__(
        self,
        module_factory: Callable[..., Any],
        datamodule_factory: Callable[..., Any] | None,
        *,
        metric: str,
        epochs: float,
        evals: int,
        schedule: str,
        n_samples: int | None,
        length: Callable[[Any], float] | None,
        name: str | None,
        trainer_kwargs: dict[str, Any],
    ) -> None:
        """Keep what a trial is made of."""
        self.module_factory = module_factory
        self.datamodule_factory = datamodule_factory
        self.metric = metric
        self.epochs = epochs
        self.evals = evals
        self.schedule = schedule
        self.n_samples = n_samples
        self.length = length
        self.name = name
        self.trainer_kwargs = trainer_kwargs
        settings = sorted((key, value) for key, value in trainer_kwargs.items() if isinstance(value, (int, float, str)))
        self._parts = (module_factory, datamodule_factory, metric, epochs, evals, schedule, n_samples, settings)

    def prepare(self) -> None:
        """Let the data module fetch its data and count the training samples, once.

        Raises:
            ObjectiveError: They cannot be counted.
        """
        refuse_launcher("Lightning")
        if self.datamodule_factory is None:
            return  # A module may start threads when it is built, and a process with threads cannot be copied safely.
        data = self.datamodule_factory(**_settings(self.datamodule_factory, 1, 1e-3, 1))
        data.prepare_data()
        if self.n_samples is None:
            self.n_samples = _count_samples(data)

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Build module and data once, count the training samples, and say what this objective is.

        Raises:
            ObjectiveError: There is no place for a setting, or the samples cannot be counted.
        """
        seed_everything(0)
        module, _ = self.build(micro_batch_size=1, learning_rate=1e-3, eval_batch_size=1, params={})
        package_of(module)
        return Facts(
            name=self.name,
            kind=self.kind,
            n_samples=self.n_samples or _count_samples(module),
            epochs=self.epochs,
            evals=self.evals,
            schedule=self.schedule,
            precision=str(self.trainer_kwargs.get("precision", "fp32")),
            batch_norm=has_batch_norm(module),
            parameter_bytes=sum(parameter.nbytes for parameter in module.parameters()),
            **self.source,
            structure_hash=source_hash(
                [(name, tuple(parameter.shape), str(parameter.dtype)) for name, parameter in module.named_parameters()]
            ),
            optimizer_family=optimizer_family(None),
            accumulates=module.automatic_optimization,  # Lightning accumulates only where it steps itself.
        )

    def build(
        self, *, micro_batch_size: int, learning_rate: float, eval_batch_size: int | None, params: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return a fresh module and data module (or None) with this setting.

        Raises:
            ObjectiveError: There is no place for a setting.
        """
        makers = [make for make in (self.module_factory, self.datamodule_factory) if make is not None]
        keywords = [
            {**_settings(make, micro_batch_size, learning_rate, eval_batch_size), **extra}
            for make, extra in zip(makers, keywords_for(makers, params), strict=True)
        ]
        built = [make(**its) for make, its in zip(makers, keywords, strict=True)]
        given = {name for its in keywords for name in its}
        for what, names, value in (
            ("batch size", BATCH_SIZE, micro_batch_size),
            ("learning rate", LEARNING_RATE, learning_rate),
        ):
            if not set_attributes(built, names, value) and not given.intersection(names):
                raise ObjectiveError(f"{no_place(what, names, built)} A keyword of that name of the factory will do.")
        if eval_batch_size:
            set_attributes(built, EVAL_BATCH_SIZE, eval_batch_size)
        for name, value in params.items():
            if not set_attributes(built, (name,), value) and name not in given:
                raise ObjectiveError(f"{no_place(f'parameter {name!r}', (name,), built)} Or leave it out of the space.")
        return built[0], built[1] if len(built) > 1 else None

    def try_params(self, tried: Sequence[Mapping[str, Any]]) -> None:
        """Build module and data with each of these extra parameters; what they raise comes out as it is."""
        for params in tried:
            self.build(micro_batch_size=1, learning_rate=1e-3, eval_batch_size=1, params=dict(params))

    def _trainer(self, module: Any, watch: LightningWatch, spec: TrialSpec, device: str, **options: Any) -> Any:
        """Return the user's Trainer, with what a trial needs in it."""
        pl = package_of(module)
        # An epoch has whole steps only, so that each is of the global batch size; the rest is as with drop_last.
        steps = max(1, (self.n_samples or _count_samples(module)) // spec.global_batch_size)
        automatic = module.automatic_optimization
        kwargs = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **{key: value for key, value in self.trainer_kwargs.items() if key != "accelerator"},
            "devices": [int(device.partition(":")[2] or 0)] if device.startswith("cuda") else 1,
            "accelerator": "gpu" if device.startswith("cuda") else "cpu",
            "logger": pl.loggers.logger.DummyLogger(),  # The user's code may call it; nothing is written.
            "enable_checkpointing": False,
            "accumulate_grad_batches": spec.accumulation_steps,
            "limit_train_batches": steps * spec.accumulation_steps,
            # For schedulers that ask how long the run will be. A module that steps itself may do so several times a
            # batch, and Lightning counts each.
            "max_steps": spec.n_steps if automatic else -1,
            "max_epochs": math.ceil(spec.n_steps / steps),
            "check_val_every_n_epoch": None,
            "val_check_interval": NEVER,
            **options,
        }
        hooks = {name: getattr(watch, name) for name in ("setup", "on_train_batch_end", "on_validation_end")}
        hooks["on_validation_batch_end"] = watch._validated
        given = kwargs.pop("callbacks", None) or []
        callbacks = kept(pl, given if isinstance(given, (list, tuple)) else [given])
        return pl.Trainer(**kwargs, callbacks=[*callbacks, pl.callbacks.LambdaCallback(**hooks)])

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial.

        Raises:
            TrialPruned: It was told to stop.
            ObjectiveError: Nothing was reported, or a callback ended the run.
        """
        seed_everything(trial.seed)
        module, data = self.build(
            micro_batch_size=spec.micro_batch_size,
            learning_rate=trial.learning_rate,
            eval_batch_size=trial.eval_batch_size,
            params=dict(trial.params),
        )
        watch = LightningWatch(trial, spec, self.metric)
        with quiet():
            trainer = self._trainer(module, watch, spec, trial.device)
            trainer.fit(module, datamodule=data)
        if watch.pruned is not None:
            raise watch.pruned
        check_ended(
            trial,
            spec,
            unreported=_no_validation(self.metric),
            early=f"Lightning ended the run after {watch.samples} of {spec.end_samples} samples: does one of the "
            "callbacks, or the module, set trainer.should_stop? Leave that out in trials; bstune stops them itself.",
        )
        trial.save(module)

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run a few real steps by Lightning's loop, and a few validation batches.

        Raises:
            ObjectiveError: Fewer steps were made, or validation logged nothing.
        """
        meter.phase("build")
        begun_s = time.perf_counter()
        seed_everything(spec.seed)
        module, data = self.build(
            micro_batch_size=spec.micro_batch_size,
            learning_rate=1e-6,
            eval_batch_size=spec.eval_batch_size,
            params=dict(spec.params),
        )
        if spec.timed_s <= 0:  # What is timed are the batches of training.
            load_longest(module if data is None else data, self.length)
        run = MeasuredRun(spec, device, meter, accumulates=module.automatic_optimization, begun_s=begun_s)
        watch = LightningWatch(run.trial, run.spec, self.metric)
        with quiet(), run.watch.hooked(), suppress(Enough):
            trainer = self._trainer(module, watch, run.spec, device, limit_val_batches=watch.PROBED)
            meter.phase("train")
            trainer.fit(module, datamodule=data)
        run.check(spec, "Lightning", _no_validation(self.metric))
        limit = self.trainer_kwargs.get("limit_val_batches", 1.0)
        n_batches = None if self.length else _n_batches(trainer.val_dataloaders, 1.0 if limit is None else limit)
        own_size = set_attributes([module, data], EVAL_BATCH_SIZE, spec.eval_batch_size)
        return MeasureNotes(
            samples=run.samples,
            eval_batch_size=spec.eval_batch_size if own_size else None,
            optimizer=run.watch.optimizer_name,
            start_s=run.watch.start_s,
            validation_s=run.validation_of(n_batches, watch.ends_s),
            warnings=run.watch.unstated(self.schedule),
        )


def _n_batches(loaders: Any, limit: Any) -> int | None:
    """Return the batches of a validation by one or more loaders; None where one of them has no length."""
    found = loaders.values() if isinstance(loaders, dict) else loaders if isinstance(loaders, list) else [loaders]
    try:
        return sum(int(len(each) * limit) if isinstance(limit, float) else min(len(each), limit) for each in found)
    except TypeError:
        return None


class LightningWatch(FrameworkWatch):
    """What Lightning calls in a trial: counts samples, has it validate where a report is due, and carries reports."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Leave out the callbacks that the module itself adds, as those that it was given."""
        trainer.callbacks = kept(package_of(module), trainer.callbacks)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and see whether a validation is due after this batch."""
        if self._micro_batches == 0:
            _check_size(trainer.train_dataloader, self._spec.micro_batch_size)
        self._micro_batches += 1
        steps, rest = divmod(self._micro_batches, self._spec.accumulation_steps)
        due = not rest and self._is_due
        trainer.val_check_batch = 1 if due else NEVER
        if not due and not rest and (module.device.type == "cpu" or steps % FINITE_CHECK_STEPS == 0):
            loss: Any = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if hasattr(loss, "isfinite") and not bool(loss.isfinite().all()):
                self._report(trainer, math.nan, {})

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Report what was logged."""
        if trainer.sanity_checking or self.pruned is not None:
            return
        logged = dict(trainer.callback_metrics)
        if self._metric not in logged:
            raise ObjectiveError(
                f"{_no_validation(self._metric)} Logged were: {', '.join(sorted(logged)) or 'nothing'}."
            )
        value = logged.pop(self._metric)
        others = {name: float(each) for name, each in logged.items() if name not in ("val_loss", "samples")}
        self._report(trainer, value, others)
        if self._is_over:
            trainer.should_stop = True

    def _report(self, trainer: Any, value: Any, metrics: dict[str, float]) -> None:
        if not self._reported(value, metrics):
            trainer.should_stop = True  # Lightning ends by itself, with the hooks of the user's at its end.


def _problems(module_factory: Any, datamodule_factory: Any, schedule: str, trainer_kwargs: dict[str, Any]) -> list[str]:
    """Return what is wrong with the arguments of `from_module`, a sentence each."""
    wrong = []
    for name, given in (("module_factory", module_factory), ("datamodule_factory", datamodule_factory)):
        built = hasattr(given, "prepare_data_per_node") and not isinstance(given, type)
        if built or (given is not None and not callable(given)):
            wrong.append(f"{name} is {of_type(given)} that was already built: expected a class or function")
    if module_factory is None:
        wrong.append("module_factory=None: expected a class or function that returns a LightningModule")
    if schedule not in (*SCHEDULES, "unknown"):
        wrong.append(f"schedule={schedule!r}: expected {', '.join(SCHEDULES)}, or unknown where it is none of these")
    devices, strategy = trainer_kwargs.get("devices", 1), trainer_kwargs.get("strategy", "auto")
    many = len(devices) > 1 if isinstance(devices, (list, tuple)) else str(devices) not in ("1", "auto", "-1")
    if many or trainer_kwargs.get("num_nodes", 1) != 1 or strategy != "auto":
        wrong.append(
            f"devices={devices!r}, strategy={strategy!r}: a trial runs on one device. Leave them out here; to train "
            f"with several, {SEVERAL}"
        )
    return wrong


def _settings(
    make: Callable[..., Any], batch_size: int, learning_rate: float, eval_batch_size: int | None
) -> dict[str, Any]:
    """Return the settings that a factory takes by name; what it takes besides is left to its attributes."""
    values = {
        **dict.fromkeys(BATCH_SIZE, batch_size),
        **dict.fromkeys(LEARNING_RATE, learning_rate),
        **(dict.fromkeys(EVAL_BATCH_SIZE, eval_batch_size) if eval_batch_size else {}),
    }
    return keywords_for([lambda **others: None, make], values)[1]


def _count_samples(holder: Any) -> int:
    """Return the samples in the training loader's data set of a data module, or of a module.

    Raises:
        ObjectiveError: They cannot be counted.
    """
    with quiet():
        holder.setup("fit")
        loader = holder.train_dataloader()
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError) as error:
        raise ObjectiveError(
            f"train_dataloader() returned {of_type(loader)} whose samples cannot be counted: give "
            "n_samples=, the training samples of an epoch."
        ) from error


def _check_size(loader: Any, wanted: int) -> None:
    """Raise an ObjectiveError for a loader that does not follow the batch size that was set."""
    size = getattr(loader, "batch_size", None)
    if isinstance(size, int) and size != wanted:
        raise ObjectiveError(
            f"train_dataloader() has batches of {size} where {wanted} was set: expected "
            "DataLoader(..., batch_size=self.batch_size), with the batch size read when the loader is made."
        )


def _no_validation(metric: str) -> str:
    return (
        f"Validation logged no {metric!r}: expected self.log({metric!r}, loss) in validation_step, and a "
        "val_dataloader. Say metric= if it has another name."
    )
