"""A Trainer of Transformers as an objective: it runs each trial itself."""

from __future__ import annotations

import importlib
import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..tuner.core.attributes import training_arguments
from ..tuner.core.errors import ArgumentError, ObjectiveError
from ..tuner.core.plain_text import of_type
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialSpec
from .base import Meter, Trial, run_problems
from .fingerprint import HasSource, optimizer_family, source_hash
from .longest import repeated_longest
from .loop import Enough, FrameworkWatch, MeasuredRun, check_ended
from .ranks import SEVERAL, refuse_launcher
from .schedule import SCHEDULES
from .scores import score_problems
from .supervised import has_batch_norm
from .training import seed_everything

SCHEDULE_OF = {"linear": "linear", "cosine": "cosine", "constant": "constant", "warmup_stable_decay": "wsd"}
"""What the Trainer's schedules are called here; others are taken for unknown."""
OFF = {
    "auto_find_batch_size": False,  # It would train at another size than the one that is measured.
    "dataloader_drop_last": True,
    "disable_tqdm": True,
    "eval_on_start": False,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "push_to_hub": False,
    "report_to": "none",
    "save_strategy": "no",
}
"""Arguments in every trial: nothing is written, uploaded or shown, and bstune says when to evaluate."""


def from_trainer(
    make_trainer: Callable[[], Any],
    *,
    metric: str = "eval_loss",
    evals: int = 16,
    schedule: str | None = None,
    n_samples: int | None = None,
    length: Callable[[Any], float] | None = None,
    name: str | None = None,
) -> TrainerObjective:
    """Make an objective of a function that builds a Trainer; each trial is one `trainer.train()`.

    While the function runs, bstune fills in the fields of the TrainingArguments that it makes: per-device sizes,
    accumulation, learning rate, length, seed and device.

    Args:
        make_trainer: A function without arguments that returns a fresh Trainer, with its model, data and
            TrainingArguments made in it.
        metric: Name of what is to be minimised among the metrics of an evaluation: no accuracy.
        evals: Equal points of a full run at which it is evaluated, besides the rungs of the search.
        schedule: `constant`, `linear`, `cosine`, `wsd` or `unknown`; default: by `lr_scheduler_type`.
        n_samples: Training samples in an epoch; default: those of the training data set.
        length: `(sample) -> number`, for data of varying size: the probe measures with the longest sample. Default: the
            column `length` or the attribute `lengths` of the data, or the sizes of some samples with `input_ids`.
        name: Name of the study; default: the name of the file.

    Raises:
        ArgumentError: An argument is wrong on its face, or Transformers is not installed.
    """
    wrong = run_problems(1, evals, name) + score_problems(metric)
    if not callable(make_trainer) or hasattr(make_trainer, "train_dataset"):
        wrong.append(
            f"make_trainer is {of_type(make_trainer)}: expected a function without arguments that returns a Trainer"
        )
    if schedule not in (None, *SCHEDULES, "unknown"):
        wrong.append(f"schedule={schedule!r}: expected {', '.join(SCHEDULES)}, or unknown where it is none of these")
    if n_samples is not None and n_samples < 1:
        wrong.append(f"n_samples={n_samples!r}: expected 1 or more")
    if wrong:
        raise ArgumentError("from_trainer: " + "; ".join(wrong) + ".")
    if not all(importlib.util.find_spec(package) for package in ("transformers", "accelerate")):
        raise ArgumentError(
            "from_trainer needs Transformers and Accelerate, which are not installed: pip install "
            "'bstune[transformers]'."
        )
    return TrainerObjective(
        make_trainer, metric=metric, evals=evals, schedule=schedule, n_samples=n_samples, length=length, name=name
    )


class TrainerObjective(HasSource):
    """A Trainer with its model and data; made by `from_trainer`."""

    kind = "transformers"

    def __init__(
        self,
        make_trainer: Callable[[], Any],
        *,
        metric: str,
        evals: int,
        schedule: str | None,
        n_samples: int | None,
        length: Callable[[Any], float] | None,
        name: str | None,
    ) -> None:
        """Keep what a trial is made of."""
        self.make_trainer = make_trainer
        self.metric = metric
        self.evals = evals
        self.schedule = schedule
        self.n_samples = n_samples
        self.length = length
        self.name = name
        self._parts = (make_trainer, metric, evals, schedule, n_samples)

    def prepare(self) -> None:
        """Load nothing: the function makes its data, or its file has done so.

        Raises:
            ObjectiveError: A launcher has started this process as one of several.
        """
        refuse_launcher("the Trainer")

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Build the Trainer once, on CPU, and say what this objective is.

        Raises:
            ObjectiveError: It is none, or its samples cannot be counted.
        """
        seed_everything(0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._made({"use_cpu": True, "output_dir": folder})
        args, model = trainer.args, trainer.model
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        return Facts(
            name=self.name,
            kind=self.kind,
            n_samples=self.n_samples or _count_samples(trainer),
            n_val_samples=len(trainer.eval_dataset) if _is_counted(trainer.eval_dataset) else None,
            epochs=float(args.num_train_epochs),
            evals=self.evals,
            schedule=self.schedule or SCHEDULE_OF.get(_value(args.lr_scheduler_type), "unknown"),
            optimizer_family=optimizer_family(_value(args.optim)),
            precision=precision,
            batch_norm=has_batch_norm(model),
            parameter_bytes=sum(parameter.nbytes for parameter in model.parameters()),
            **self.source,
            structure_hash=source_hash(
                [(name, tuple(parameter.shape), str(parameter.dtype)) for name, parameter in model.named_parameters()]
            ),
        )

    def try_params(self, tried: Sequence[Mapping[str, Any]]) -> None:
        """Build the Trainer with each of these extra parameters; what they raise comes out as it is."""
        with tempfile.TemporaryDirectory() as folder:
            for params in tried:
                self._made({**params, "use_cpu": True, "output_dir": folder})

    def _made(self, fields: Mapping[str, Any]) -> Any:
        """Return a fresh Trainer whose TrainingArguments have these fields.

        Raises:
            ObjectiveError: It is none, or its TrainingArguments were not made in the function.
        """
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        fields = {**OFF, **fields}
        with _filled(transformers.TrainingArguments, fields):
            trainer = self.make_trainer()
        if not isinstance(trainer, transformers.Trainer):
            raise ObjectiveError(f"make_trainer returned {of_type(trainer)}: expected a transformers.Trainer.")
        size = fields.get("per_device_train_batch_size", trainer.args.per_device_train_batch_size)
        if trainer.args.auto_find_batch_size or trainer.args.per_device_train_batch_size != size:
            raise ObjectiveError(
                "make_trainer returned a Trainer whose TrainingArguments were made before, or changed after: expected "
                "TrainingArguments(...) within the function, where bstune fills in its sizes."
            )
        if trainer.args.world_size > 1:
            raise ObjectiveError(
                f"The Trainer sees {trainer.args.world_size} processes: a trial is one. To train with several, "
                f"{SEVERAL}"
            )
        # The first would end trials, which bstune does itself; the other prints each evaluation.
        for kind in (transformers.EarlyStoppingCallback, transformers.PrinterCallback):
            trainer.remove_callback(kind)
        return trainer

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial.

        Raises:
            TrialPruned: It was told to stop.
            ObjectiveError: Nothing was reported, or a callback ended the run.
        """
        seed_everything(trial.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._made({**trial.params, **_fields(spec, trial.device, folder, trial.eval_batch_size)})
            trainer.args.max_steps = _steps(spec, self.n_samples or _count_samples(trainer))
            watch = TrainerWatch(trial, spec, self.metric)
            trainer.add_callback(watch.as_callback())
            trainer.train()
        if watch.pruned is not None:
            raise watch.pruned
        check_ended(
            trial,
            spec,
            unreported=_no_evaluation(self.metric),
            early=f"The Trainer ended the run after {watch.samples} of {spec.end_samples} samples: does a callback set "
            "control.should_training_stop? Leave it out in trials; bstune stops them itself.",
        )
        trial.save(trainer.model)

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run a few real steps by the Trainer, and an evaluation of a few batches.

        Raises:
            ObjectiveError: Fewer steps were made, or the evaluation did not tell the metric.
        """
        meter.phase("build")
        seed_everything(spec.seed)
        run = MeasuredRun(spec, device, meter)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._made({**spec.params, **_fields(run.spec, device, folder, spec.eval_batch_size)})
            trainer.args.max_steps = run.spec.n_steps
            watch = TrainerWatch(run.trial, run.spec, self.metric)
            trainer.add_callback(watch.as_callback())
            longest, n_val = None, len(trainer.eval_dataset) if _is_counted(trainer.eval_dataset) else None
            if spec.timed_s <= 0:  # What is timed are the batches of training.
                longest = repeated_longest(trainer.train_dataset, self.length)
                trainer.eval_dataset = _longest(trainer.eval_dataset, self.length)
            trainer.train_dataset = _epoch_of(trainer.train_dataset, run.spec.end_samples, longest)
            trainer.eval_dataset = _first(trainer.eval_dataset, watch.PROBED * spec.eval_batch_size)
            meter.phase("train")
            with run.watch.hooked(), suppress(Enough):
                trainer.train()
        run.check(spec, "The Trainer", _no_evaluation(self.metric))
        # A validation of nothing but the longest samples would take too long.
        n_batches = None if n_val is None or longest is not None else math.ceil(n_val / spec.eval_batch_size)
        return MeasureNotes(
            samples=run.samples,
            eval_batch_size=spec.eval_batch_size,
            optimizer=run.watch.optimizer_name,
            start_s=run.watch.start_s,
            validation_s=run.validation_of(n_batches, watch.ends_s),
        )


class TrainerWatch(FrameworkWatch):
    """What the Trainer calls in a trial: counts samples, has it evaluate where a report is due, and carries reports."""

    def as_callback(self) -> Any:
        """Return a TrainerCallback, made here as its base is not there to be named before it is needed."""
        base = importlib.import_module("transformers").TrainerCallback
        hooks = {
            name: getattr(self, name) for name in ("on_train_begin", "on_substep_end", "on_step_end", "on_evaluate")
        }
        hooks["on_prediction_step"] = self._validated
        return type("BstuneCallback", (base,), {name: staticmethod(hook) for name, hook in hooks.items()})()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep the last batch of an evaluation; the training batches are already being loaded, without theirs."""
        args.dataloader_drop_last = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Count a micro-batch without a step."""
        self._micro_batches += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Count one with a step, and see whether an evaluation is due."""
        self._micro_batches += 1
        control.should_evaluate = self._is_due
        if self._is_over:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **others: Any) -> None:
        """Report what was measured."""
        if self._metric not in metrics:
            if isinstance(others.get("eval_dataloader"), dict) or self._micro_batches == 0:
                return
            raise ObjectiveError(f"{_no_evaluation(self._metric)} It told: {', '.join(sorted(metrics))}.")
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        kept = {name: value for name, value in numbers.items() if name not in (self._metric, "val_loss", "samples")}
        shown = {name: value for name, value in kept.items() if not name.endswith(_NO_METRIC)}
        if not self._reported(metrics[self._metric], shown):
            control.should_training_stop = True


_NO_METRIC = ("epoch", "_runtime", "_per_second", "_preparation_time")
"""Ends of the names of what an evaluation tells of itself."""


def _fields(spec: TrialSpec, device: str, folder: str, eval_batch_size: int | None) -> dict[str, Any]:
    """Return the fields of TrainingArguments for a trial."""
    return {
        **training_arguments(
            spec.micro_batch_size, spec.accumulation_steps, spec.learning_rate, eval_batch_size or spec.micro_batch_size
        ),
        "seed": spec.seed % 2**32,
        "data_seed": spec.seed % 2**32,
        "use_cpu": device == "cpu",
        "output_dir": folder,
    }


@contextmanager
def _filled(kind: Any, fields: Mapping[str, Any]) -> Iterator[None]:
    """Have all TrainingArguments that are made while the block runs take these fields, before they are looked at.

    Raises:
        ObjectiveError: There is no such field, or the model is to be sharded.
    """
    unknown = [name for name in fields if name not in kind.__dataclass_fields__]
    if unknown:
        raise ObjectiveError(
            f"The space has {', '.join(map(repr, unknown))}: expected names of fields of TrainingArguments, such as "
            "weight_decay."
        )
    looked_at = kind.__post_init__

    def fill(self: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        if sharded := [name for name in ("fsdp", "deepspeed") if getattr(self, name, None)]:
            raise ObjectiveError(
                f"TrainingArguments have {sharded[0]}: a trial is one process, on one device, so there is nothing to "
                f"share it with. To train with several, {SEVERAL}"
            )
        looked_at(self)
        if not self.use_cpu and self.n_gpu > 1:
            self._n_gpu = 1  # It would spread each batch over all cards.

    kind.__post_init__ = fill
    try:
        yield
    finally:
        kind.__post_init__ = looked_at


def _steps(spec: TrialSpec, n_samples: int) -> int:
    """Return the steps of a trial: the last one of an epoch may have fewer micro-batches, as the Trainer does it."""
    an_epoch = max(1, n_samples // spec.micro_batch_size)
    epochs, rest = divmod(spec.end_samples // spec.micro_batch_size, an_epoch)
    return epochs * -(-an_epoch // spec.accumulation_steps) + -(-rest // spec.accumulation_steps)


def _first(data: Any, n: int) -> Any:
    """Return the first samples of a data set, or of each in a mapping."""
    if isinstance(data, dict):
        return {name: _first(each, n) for name, each in data.items()}
    return _taken(data, range(min(n, len(data)))) if hasattr(data, "__len__") else data


def _longest(data: Any, length: Callable[[Any], float] | None) -> Any:
    """Return a data set that has nothing but the longest sample, or each in a mapping; as it is where none is known."""
    if isinstance(data, dict):
        return {name: _longest(each, length) for name, each in data.items()}
    indices = repeated_longest(data, length)
    return data if indices is None else _taken(data, indices)


def _epoch_of(data: Any, n: int, indices: Sequence[int] | None) -> Any:
    """Return a data set of so many samples, so that no step at the end of an epoch has fewer micro-batches."""
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return data
    these = range(len(data)) if indices is None else indices
    return _taken(data, [these[place % len(these)] for place in range(n)])


def _taken(data: Any, indices: Sequence[int]) -> Any:
    if hasattr(data, "select"):
        return data.select(indices)  # It keeps its columns, which the Trainer looks at.
    from torch.utils.data import Subset

    return Subset(data, indices)


def _is_counted(data: Any) -> bool:
    """Tell whether this is one data set with a length."""
    return hasattr(data, "__len__") and not isinstance(data, dict)


def _count_samples(trainer: Any) -> int:
    """Return the samples in the training data set.

    Raises:
        ObjectiveError: They cannot be counted.
    """
    try:
        return len(trainer.train_dataset)
    except TypeError as error:
        raise ObjectiveError(
            f"The Trainer's train_dataset is {of_type(trainer.train_dataset)} whose samples cannot be counted: "
            "give n_samples=, the training samples of an epoch."
        ) from error


def _value(setting: Any) -> str:
    """Return the text of one of the Trainer's enumerations."""
    return str(getattr(setting, "value", setting))


def _no_evaluation(metric: str) -> str:
    return (
        f"The evaluation did not tell {metric!r}: expected an eval_dataset with labels, or compute_metrics that "
        "returns it. Say metric= if it has another name."
    )
