"""The short form of an objective: a model, a training set and a validation set. bstune owns the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ..tuner.core.errors import ArgumentError, ObjectiveError, TrialPruned
from ..tuner.core.plain_text import of_type
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialSpec
from .base import LEAST_TIMED, Meter, Trial
from .data import check_data, is_factory
from .fingerprint import HasSource, model_structure, optimizer_family
from .gradient_noise import moments
from .keywords import keywords_for
from .longest import LongestFirst, tokens_of
from .loss_scale import no_step_skipped
from .ranked_run import RankedRun
from .supervised_arguments import problems
from .training import TrainingRun, seed_everything

if TYPE_CHECKING:
    import torch

CACHED_STEPS = 3
"""Steps on one batch, to see what a step takes without its loader."""
QUICK_S = 0.2
"""A validation batch that takes less is timed twice."""


class Supervised(HasSource):
    """Train `model` on `train_data`, evaluate it on `val_data`.

    Args:
        model: A class or function that returns a fresh `torch.nn.Module`; it takes nothing but extra dimensions of the
            space, by keyword.
        train_data: A map-style Dataset, or a function without arguments that returns one; called once per search.
        val_data: The same, for validation. All of it is used at every validation.
        training_step: `(model, batch) -> loss`, the mean over the batch as one scalar tensor. Default: the loss of
            `(x, y)` pairs.
        validation_step: The same for validation, called under `eval()` and `no_grad`. Default: `training_step`.
        loss: `(output, target) -> scalar` for pairs. Default: cross-entropy for integer targets, mean squared error for
            float ones.
        optimizer: `(parameters, lr) -> torch.optim.Optimizer`, and extra dimensions by keyword. Default:
            `torch.optim.AdamW`.
        epochs: Passes over the training data in one full run.
        evals: Equal points of a full run at which it is validated, besides the rungs of the search.
        schedule: `constant`, `linear`, `cosine`, `wsd`, or a function of progress in [0, 1] that returns a factor.
            Progress is samples over the planned end of the run.
        precision: `fp32`, `bf16` or `fp16` (autocast; fp16 with loss scaling).
        metrics: `{name: (model, batch) -> float}`, recorded beside the validation loss as means weighted by samples.
        collate_fn: As in `torch.utils.data.DataLoader`.
        num_workers: As in `torch.utils.data.DataLoader`.
        length: `(sample) -> number`, for data of varying size: the probe measures with the longest samples. Default:
            `train_data.lengths` or its column `length` if it has that, or with a `collate_fn` the sizes of some
            samples.
        worst_batch: `(n) -> batch`: the n samples that take the most memory, where length does not tell.
        size_unit: What sizes count: `samples`, or `tokens` for samples of varying length. Batches then hold samples of
            like length, as many as a number of tokens holds, padding included, by `length` or what stands for it.
        clip_grad_norm: Largest norm of the gradient, or None.
        precise_batch_norm: Make BatchNorm's running statistics afresh before each validation, from 1,024 training
            samples: those of a few updates, as a large batch makes in short runs, say little about the weights.
            `auto`: only in the first updates of a run, from 256.
        world_size: Processes on this machine that train one model together, on CPU: each has micro-batches of its own,
            and gradients are averaged. A micro-batch size is that of one of them.
        name: Name of the study; default: the name of the file.

    Raises:
        ArgumentError: An argument is wrong on its face.
        ObjectiveError: The data cannot be used; the message says what to pass instead.

    Example:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
        >>> Supervised(model=lambda: torch.nn.Linear(4, 3), train_data=data, val_data=data, epochs=2).epochs
        2
    """

    kind = "supervised"

    def __init__(
        self,
        model: Callable[[], torch.nn.Module],
        train_data: Any,
        val_data: Any,
        *,
        training_step: Callable[[Any, Any], Any] | None = None,
        validation_step: Callable[[Any, Any], Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        epochs: float = 10,
        evals: int = 16,
        schedule: str | Callable[[float], float] = "constant",
        precision: str = "fp32",
        metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        length: Callable[[Any], float] | None = None,
        worst_batch: Callable[[int], Any] | None = None,
        size_unit: str = "samples",
        clip_grad_norm: float | None = None,
        precise_batch_norm: bool | Literal["auto"] = "auto",
        world_size: int = 1,
        name: str | None = None,
    ) -> None:
        """Check what can be checked without running anything."""
        wrong = problems(locals())  # All that was given, by name.
        if wrong:
            raise ArgumentError("Supervised: " + "; ".join(wrong) + ".")
        for data, role in ((train_data, "train_data"), (val_data, "val_data")):
            if not is_factory(data):
                check_data(data, role)
        self.model = model
        self.train_data = train_data
        self.val_data = val_data
        self.loss = loss or default_loss
        self.training_step = training_step or self._pair_step
        self.validation_step = validation_step or self.training_step
        self.optimizer = optimizer
        self.epochs = epochs
        self.evals = evals
        self.schedule = schedule
        self.precision = precision
        self.metrics = dict(metrics or {})
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.length = length
        self.worst_batch = worst_batch
        self.size_unit = size_unit
        self.train_tokens: list[int] | None = None
        self.val_tokens: list[int] | None = None
        self._longest = LongestFirst()
        self.clip_grad_norm = clip_grad_norm
        self.precise_batch_norm = precise_batch_norm
        self.world_size = world_size
        self.name = name
        parts = (model, training_step, validation_step, loss, optimizer, schedule, collate_fn, *self.metrics.values())
        ranks = [world_size] if world_size > 1 else []
        precise = ["precise_batch_norm"] if precise_batch_norm is True else []
        unit = [] if size_unit == "samples" else [size_unit]
        values = (epochs, evals, precision, clip_grad_norm, sorted(self.metrics), *ranks, *precise, *unit)
        self._parts = (*parts, *values)

    def prepare(self) -> None:
        """Call the data factories and check what they return."""
        for role in ("train_data", "val_data"):
            data = getattr(self, role)
            if is_factory(data):
                data = data()
                check_data(data, role)
                setattr(self, role, data)
        if len(self.val_data) < self.world_size:
            raise ObjectiveError(f"val_data has {len(self.val_data)} samples, fewer than world_size={self.world_size}.")
        if self.size_unit == "tokens":
            self.train_tokens = tokens_of(self.train_data, self.length, "train_data")
            self.val_tokens = tokens_of(self.val_data, self.length, "val_data")
        else:
            self._longest.look_at(self)

    def _run(self, **how: Any) -> TrainingRun:
        """Return a model in training, by one process or several; arguments as those of `TrainingRun`."""
        return TrainingRun(self, **how) if self.world_size == 1 else RankedRun(self, **how)

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Build the model and its optimizer once, on CPU, and say what this objective is."""
        seed_everything(0)
        model = self.build_model()
        optimizer, other = (self.build_optimizer(model, lr) for lr in (1e-3, 2e-3))
        n_train, n_val, tokens = len(self.train_data), len(self.val_data), self.train_tokens
        return Facts(
            name=self.name,
            kind=self.kind,
            n_samples=n_train if tokens is None else sum(tokens),
            n_val_samples=n_val if self.val_tokens is None else sum(self.val_tokens),
            size_unit=self.size_unit,
            longest=1 if tokens is None else max(tokens),
            mean_size=1.0 if tokens is None else sum(tokens) / n_train,
            epochs=self.epochs,
            evals=self.evals,
            schedule="callable" if callable(self.schedule) else self.schedule,
            optimizer=type(optimizer).__name__,
            optimizer_family=optimizer_family(type(optimizer).__name__),
            precision=self.precision,
            batch_norm=has_batch_norm(model),
            parameter_bytes=sum(parameter.nbytes for parameter in model.parameters()),
            can_continue=self.schedule == "constant",
            world_size=self.world_size,
            metrics=tuple(self.metrics),
            **self.source,
            structure_hash=model_structure(model, self.train_data[0] if n_train else None),
            ignores_rate=[group["lr"] for group in optimizer.param_groups]
            == [group["lr"] for group in other.param_groups],
        )

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run real optimizer steps at one micro-batch size, then a validation batch with gradients still there."""
        with no_step_skipped():
            return self._measure(spec, device, meter)

    def _measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        meter.phase("build")
        begun_s, start_s = time.perf_counter(), None
        # What is timed are the batches of training, and what is to fit are the worst of them.
        objective = self if spec.timed_s > 0 else self._longest.of(self)
        run = objective._run(
            device=device, learning_rate=1e-6, seed=spec.seed, horizon_samples=None, params=spec.params
        )
        meter.phase("data")
        run.open_stream(spec.micro_batch_size, spec.accumulation_steps, worst_batch=objective.worst_batch)
        meter.phase("train")
        for number in range(1, spec.n_steps + 1):
            # One accumulated step says all: the second, in which the optimizer's state is there beside gradients and
            # activations.
            run.accumulation_steps = spec.accumulation_steps if number == min(2, spec.n_steps) else 1
            run.step()
            meter.step_done()
            if number == 1 and spec.timed_s > 0:
                run.synchronize()
                start_s = time.perf_counter() - begun_s
        run.accumulation_steps = spec.accumulation_steps
        meter.holds(**run.held_bytes())
        meter.phase("validation")
        n_validated = run.validate_once(spec.eval_batch_size)
        validation_s = _validation_s(run, spec.eval_batch_size) if spec.times_validation else None
        wait_s, cached_step_s = self._time_steps(run, spec, meter) if spec.timed_s > 0 else (None, ())
        return MeasureNotes(
            samples=run.samples,
            eval_batch_size=n_validated,
            optimizer=type(run.optimizer).__name__,
            wait_s=wait_s,
            cached_step_s=cached_step_s,
            validation_s_per_sample=validation_s,
            start_s=start_s,
        )

    def _time_steps(self, run: TrainingRun, spec: MeasureSpec, meter: Meter) -> tuple[float, tuple[float, ...]]:
        """Time steps as training does them, then a few on a loaded batch: the difference is the loader's."""
        steps, before_s = 0, run.wait_s
        meter.phase("timing")
        end_s = time.perf_counter() + spec.timed_s
        while steps < spec.max_timed_steps and (time.perf_counter() < end_s or steps < LEAST_TIMED):
            run.step()
            meter.step_done()
            steps += 1
        waited_s = run.wait_s - before_s
        run.hold_batch()
        cached_step_s: list[float] = []
        while len(cached_step_s) < CACHED_STEPS and sum(cached_step_s) < spec.timed_s:
            start_s = run.clock()
            run.step()
            run.synchronize()
            cached_step_s.append(run.clock() - start_s)
        return waited_s, tuple(cached_step_s)

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial to its planned end, or until it is told to stop; then write the checkpoint if one is wanted."""
        run = self._run(
            device=trial.device,
            learning_rate=trial.learning_rate,
            seed=trial.seed,
            horizon_samples=spec.end_samples,
            params=trial.params,
        )
        if spec.resume_from:
            run.load(spec.resume_from)
        run.open_stream(spec.micro_batch_size, spec.accumulation_steps)
        noise = run.noise_design(spec.noise_samples, batch_norm=has_batch_norm(run.model))
        measuring = moments(spec.points, spec.start_samples, noise.n_points) if noise else []
        try:
            while run.samples < spec.end_samples:
                run.step()
                if not run.loss_is_finite():
                    trial.report(math.nan, samples=run.samples)
                if run.samples >= trial.next_report:
                    losses = run.validate(trial.eval_batch_size)
                    if noise and measuring and run.samples >= min(measuring[0], spec.end_samples):
                        trial.add_noise(run.measure_noise(noise))
                        measuring = [point for point in measuring if point > run.samples]
                    trial.report(samples=run.samples, **losses)
            trial.save(run.model)
        except TrialPruned:
            if spec.checkpoint_to and run.loss_is_finite():
                run.save(spec.checkpoint_to)
            raise

    def build_model(self, params: Mapping[str, Any] = MappingProxyType({})) -> torch.nn.Module:
        """Return a fresh model, by those extra parameters of the space that `model` takes as keywords.

        Raises:
            ObjectiveError: `model` returned something else than a module with parameters to train, or nobody takes a
                parameter.
        """
        import torch

        its, optimizers = keywords_for((self.model, self._make_optimizer), params)
        unknown = [name for name in params if name not in its and name not in optimizers]
        if unknown:
            raise ObjectiveError(
                f"The space has {', '.join(map(repr, unknown))}, and neither model() nor optimizer(params, lr) takes "
                "a keyword of that name. Add it to one of them, or leave it out of the space."
            )
        model = self.model(**its)
        if not isinstance(model, torch.nn.Module):
            raise ObjectiveError(f"model() returned {of_type(model)}: expected a torch.nn.Module.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ObjectiveError(
                "model() returned a module without parameters to train: expected at least one with requires_grad."
            )
        return model

    def try_params(self, tried: Sequence[Mapping[str, Any]]) -> None:
        """Build model and optimizer with each of these extra parameters; what they raise comes out as it is."""
        built: dict[str, torch.nn.Module] = {}
        for params in tried:
            its, _ = keywords_for((self.model, self._make_optimizer), params)
            model = built.get(repr(its)) or self.build_model(params)
            built = {repr(its): model}
            self.build_optimizer(model, 1e-3, params)

    @property
    def _make_optimizer(self) -> Callable[..., torch.optim.Optimizer]:
        import torch

        return self.optimizer or torch.optim.AdamW

    def build_optimizer(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any] = MappingProxyType({})
    ) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters, with the extra parameters of the space that it takes.

        Raises:
            ObjectiveError: `optimizer` returned something else than an Optimizer.
        """
        import torch

        _, its = keywords_for((self.model, self._make_optimizer), params)
        optimizer = self._make_optimizer([p for p in model.parameters() if p.requires_grad], learning_rate, **its)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ObjectiveError(f"optimizer() returned {of_type(optimizer)}: expected a torch.optim.Optimizer.")
        return optimizer

    def _pair_step(self, model: Any, batch: Any) -> Any:
        if not (isinstance(batch, (list, tuple)) and len(batch) == 2):
            raise ObjectiveError(
                f"A batch is {of_type(batch)}: without training_step, bstune expects pairs (x, y). Give "
                "training_step=(model, batch) -> loss."
            )
        return self.loss(model(batch[0]), batch[1])


def _validation_s(run: TrainingRun, eval_batch_size: int) -> float:
    """Return the seconds that a validation takes, over its samples or tokens."""
    tokens = run.objective.val_tokens
    n_all = len(run.objective.val_data) if tokens is None else sum(tokens)
    timed = _from_workers if run.objective.num_workers and run.world_size == 1 else _quicker
    each_s = timed(run, eval_batch_size, n_all)
    start_s = run.clock()
    if run.objective.precise_batch_norm is True:  # By default few validations of a full run need it.
        run.prepare_validation()
    return each_s + (run.clock() - start_s) / n_all


def _quicker(run: TrainingRun, eval_batch_size: int, n_all: int) -> float:
    """Return the seconds for each sample of a validation: of a whole one where that is quick, else of a batch.

    A whole one has what a batch does not tell: its last batch is smaller, and costs nearly as much. Of a
    batch that is quick the fewer of two count.
    """
    seconds: list[float] = []
    while not seconds or (len(seconds) < 2 and seconds[0] < QUICK_S):
        start_s = run.clock()
        n_samples = run.validate_once(eval_batch_size)  # It reads the loss, and so waits for the device.
        seconds.append(run.clock() - start_s)
    each_s = min(seconds) / (n_samples * run.world_size)
    if run.world_size > 1 or each_s * n_all > QUICK_S:
        return each_s
    start_s = run.clock()
    for _, batch in run.validation(eval_batch_size):
        run.validate_batch(batch)
    run.model.train()
    return (run.clock() - start_s) / n_all


def _from_workers(run: TrainingRun, eval_batch_size: int, n_all: int) -> float:
    """Return the same where a loader has workers: they start once, and each loads a batch while the others do."""
    start_s, first_s, now_s, first, seen = run.clock(), 0.0, 0.0, 0, 0
    for number, (n_samples, batch) in enumerate(run.validation(eval_batch_size)):
        run.validate_batch(batch)
        now_s, seen = run.clock() - start_s, seen + n_samples
        if number == 0:
            first_s, first = now_s, n_samples
        elif number >= run.objective.num_workers or now_s > 2 * first_s:
            break
    run.model.train()
    later_s = 0.0 if seen == first else (now_s - first_s) / (seen - first)
    return (first_s + (n_all - first) * later_s) / n_all


def default_loss(output: Any, target: Any) -> Any:
    """Return cross-entropy for integer targets and mean squared error for float ones of the output's shape.

    Raises:
        ObjectiveError: Neither applies.
    """
    import torch

    if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor):
        if not target.is_floating_point():
            return torch.nn.functional.cross_entropy(output, target)
        if target.shape == output.shape:
            return torch.nn.functional.mse_loss(output, target)
    shapes = f"output {_shape(output)}, target {_shape(target)}"
    raise ObjectiveError(
        f"No default loss fits ({shapes}): it is cross-entropy for integer targets and mean squared error for float "
        "targets of the output's shape. Give loss= or training_step=."
    )


def _shape(value: Any) -> str:
    return (
        f"{value.dtype} {tuple(value.shape)}"
        if hasattr(value, "dtype") and hasattr(value, "shape")
        else type(value).__name__
    )


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Tell whether a model has layers that couple the samples of a batch."""
    import torch

    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
