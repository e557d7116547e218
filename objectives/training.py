"""One model in training, where bstune owns the loop: built from a seed, stepped, validated, saved and loaded."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..tuner.core.errors import ObjectiveError
from ..tuner.core.plain_text import of_type
from ..tuner.core.trials import NoisePoint
from ..tuner.device.memory import free_on_disk_bytes
from ..tuner.device.run_clock import RunClock
from ..tuner.theory.gradient_noise import NoiseDesign, design
from .data import made_batches, noise_batches, to_device, training_batches, validation_batches
from .gradient_noise import measure_noise
from .precise_norms import SAMPLES, make_precise, samples_wanted
from .schedule import learning_rate_factor

if TYPE_CHECKING:
    import torch

FINITE_CHECK_STEPS = 20
"""On a GPU the training loss is looked at every so many steps only: each look waits for the device."""


class Recipe(Protocol):
    """What a run is made from; `Supervised` is one."""

    train_data: Any
    val_data: Any
    train_tokens: list[int] | None
    """Of each sample, where sizes count tokens; None: they count samples."""
    val_tokens: list[int] | None
    training_step: Callable[[Any, Any], Any]
    validation_step: Callable[[Any, Any], Any]
    schedule: str | Callable[[float], float]
    precision: str
    metrics: dict[str, Callable[[Any, Any], float]]
    collate_fn: Callable[[list[Any]], Any] | None
    num_workers: int
    clip_grad_norm: float | None
    precise_batch_norm: bool | Literal["auto"]
    epochs: float

    def build_model(self, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return a fresh model."""

    def build_optimizer(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        """Return the optimizer of its trainable parameters."""


class TrainingRun:
    """One model in training: built from a seed, stepped, validated, saved and loaded.

    Attributes:
        rank: Place of this process among those that train the model together.
        world_size: How many these are; see `ranked_run`.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        objective: Recipe,
        *,
        device: str,
        learning_rate: float,
        seed: int,
        horizon_samples: int | None,
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Build everything from the seed and the extra parameters.

        The schedule ends at `horizon_samples`; None means a constant rate.
        """
        import torch

        seed_everything(seed)
        self.objective = objective
        self.device = device
        self.seed = seed
        self.samples = 0
        self.steps = 0
        self.horizon_samples = horizon_samples
        self.cuda = device.startswith("cuda")
        self.model = objective.build_model(params).to(device)
        self.optimizer = objective.build_optimizer(self.model, learning_rate, params)
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._scaler = torch.amp.GradScaler("cuda") if objective.precision == "fp16" and self.cuda else None
        self.last_loss: torch.Tensor | None = None
        self.clock = RunClock(alone=not (self.cuda or objective.num_workers or self.world_size > 1))
        self.wait_s = 0.0
        """Seconds spent waiting for training batches."""
        self.model.train()

    def open_stream(
        self, micro_batch_size: int, accumulation_steps: int, *, worst_batch: Callable[[int], Any] | None = None
    ) -> None:
        """Start the endless stream of training micro-batches where this run is."""
        self._micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        if worst_batch is not None:
            self._batches: Iterator[Any] = made_batches(worst_batch, micro_batch_size)
            return
        self._batches = training_batches(
            self.objective.train_data,
            micro_batch_size,
            seed=self.seed,
            start_samples=self.samples,
            collate_fn=self.objective.collate_fn,
            num_workers=self.objective.num_workers,
            pin_memory=self.cuda,
            rank=self.rank,
            n_ranks=self.world_size,
            tokens=self.objective.train_tokens,
        )

    def step(self) -> None:
        """Do one optimizer step. Gradients stay until the next one begins, as they do in most training loops."""
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.accumulation_steps):
            start_s = self.clock()
            batch = next(self._batches)
            self.wait_s += self.clock() - start_s
            self._backward(to_device(batch, self.device))
        self._share_gradients()
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        if self.objective.clip_grad_norm is not None:
            import torch

            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.objective.clip_grad_norm)
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            self.optimizer.step()
        self.steps += 1
        self.samples += self._micro_batch_size * self.accumulation_steps * self.world_size

    def _share_gradients(self) -> None:
        """Average them over the processes that train the model together."""

    def hold_batch(self, batch: Any = None) -> None:
        """Train on one batch from here on, already loaded: this one, or the next of the stream."""
        held = next(self._batches) if batch is None else batch
        self._batches = itertools.repeat(held)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        if self.cuda:
            import torch

            torch.cuda.synchronize(self.device)

    def training_loss(self, batch: Any, *, needs_grad: bool = True) -> torch.Tensor:
        """Return the training loss of a batch that is on the device."""
        with self._autocast():
            loss: torch.Tensor = self.objective.training_step(self.model, batch)
        check_loss(loss, "training_step", needs_grad=needs_grad)
        return loss

    def _backward(self, batch: Any) -> None:
        loss = self.training_loss(batch).reshape(()) / self.accumulation_steps
        (self._scaler.scale(loss) if self._scaler else loss).backward()
        self.last_loss = loss.detach()

    def _set_learning_rate(self) -> None:
        if self.horizon_samples is None:
            return
        factor = learning_rate_factor(self.objective.schedule, min(1.0, self.samples / self.horizon_samples))
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor  # All groups are scaled by one factor, so their ratios stay.

    def loss_is_finite(self) -> bool:
        """Tell whether the last training loss is a number; on a GPU only every few steps, since each look waits."""
        if self.last_loss is None or (self.cuda and self.steps % FINITE_CHECK_STEPS):
            return True
        return bool(self.last_loss.isfinite())

    def validate(self, eval_batch_size: int) -> dict[str, float]:
        """Return the mean loss (key `val_loss`) and metrics over all validation data, weighted by samples."""
        self.prepare_validation()
        total, sums = 0, dict.fromkeys(("val_loss", *self.objective.metrics), 0.0)
        for n_samples, batch in self.validation(eval_batch_size):
            total += n_samples
            for name, value in self.validate_batch(batch).items():
                sums[name] += n_samples * value
        self.model.train()
        n_all, *of_all = self._sum_over_ranks([float(total), *sums.values()])
        return {name: value / n_all for name, value in zip(sums, of_all, strict=True)}

    def _sum_over_ranks(self, numbers: list[float]) -> list[float]:
        """Add up numbers over the processes that train the model together."""
        return numbers

    def prepare_validation(self) -> None:
        """Do what comes before each validation: make the statistics of BatchNorm afresh, where they would mislead."""
        objective, tokens = self.objective, self.objective.train_tokens
        full = objective.epochs * (len(objective.train_data) if tokens is None else sum(tokens))
        updates = self.samples / (self._micro_batch_size * self.world_size)
        n_samples = samples_wanted(objective.precise_batch_norm, self.model, updates, self.samples / full)
        if n_samples:
            self.make_norms_precise(self._samples_at_once, n_samples)

    def make_norms_precise(self, size: int, n_samples: int = SAMPLES) -> bool:
        """Make the running statistics of BatchNorm afresh from batches of this size; return whether there are any."""
        data = self.objective.train_data
        batches: Any = noise_batches(
            data,
            size,
            max(1, min(n_samples, len(data)) // size),
            seed=self.seed,
            at_samples=self.samples,
            collate_fn=self.objective.collate_fn,
        )
        return make_precise(
            self.model,
            lambda batch: self.training_loss(batch, needs_grad=False),
            (to_device(batch, self.device) for batch in batches),
        )

    def validate_once(self, eval_batch_size: int) -> int:
        """Run one validation batch, as the probe wants it, or the two largest by tokens; return their size."""
        n_samples = 0
        n_batches = 1 if self.objective.val_tokens is None else 2
        for n, batch in itertools.islice(self.validation(eval_batch_size), n_batches):
            self.validate_batch(batch)
            n_samples += n
        self.model.train()
        return n_samples

    @property
    def loss_scale(self) -> float:
        """The factor on the loss that keeps small gradients from vanishing in half precision."""
        return float(self._scaler.get_scale()) if self._scaler else 1.0

    def noise_design(self, allowance: int, *, batch_norm: bool) -> NoiseDesign | None:
        """Return how gradient noise is measured with so many samples or tokens along the run: always by samples."""
        n_samples = len(self.objective.train_data)
        return design(int(allowance / self._mean_size), self._samples_at_once, n_samples, batch_norm=batch_norm)

    def measure_noise(self, noise: NoiseDesign) -> NoisePoint:
        """Measure gradient noise here, on samples drawn beside the training stream."""
        data, mean = self.objective.train_data, self._mean_size
        drawn = noise_batches(
            data,
            noise.microbatch_size,
            noise.n_microbatches,
            seed=self.seed,
            at_samples=self.samples,
            collate_fn=self.objective.collate_fn,
            rank=self.rank,
            n_ranks=self.world_size,
        )
        batches = (to_device(batch, self.device) for batch in drawn)
        found = measure_noise(
            self.model,
            self.training_loss,
            batches,
            noise,
            at_samples=self.samples,
            population=len(data),
            scale=self.loss_scale,
            share=self._share_noise,
        )
        trace = found.covariance_trace
        return replace(
            found,
            microbatch_size=max(1, round(mean * found.microbatch_size)),
            covariance_trace=None if trace is None else mean * trace,
        )

    def _share_noise(self, sums: list[torch.Tensor | None], squared_norms: list[float], n: int) -> list[float]:
        """Add up what the processes that train together have measured."""
        return squared_norms

    @property
    def _samples_at_once(self) -> int:
        """Samples that fit, whichever they are, where a micro-batch does."""
        tokens = self.objective.train_tokens
        return self._micro_batch_size if tokens is None else max(1, self._micro_batch_size // max(tokens))

    @property
    def _mean_size(self) -> float:
        """What a sample is in the unit of sizes."""
        tokens = self.objective.train_tokens
        return 1.0 if tokens is None else sum(tokens) / len(tokens)

    def validation(self, eval_batch_size: int) -> Iterator[tuple[int, Any]]:
        """Yield (samples, batch) over the validation data, with the model in evaluation mode."""
        self.model.eval()
        objective = self.objective
        return validation_batches(
            objective.val_data,
            eval_batch_size,
            collate_fn=objective.collate_fn,
            num_workers=objective.num_workers,
            pin_memory=self.cuda,
            tokens=objective.val_tokens,
        )

    def validate_batch(self, batch: Any) -> dict[str, float]:
        """Return the loss (key `val_loss`) and metrics of one validation batch."""
        import torch

        batch = to_device(batch, self.device)
        with torch.no_grad(), self._autocast():
            loss = self.objective.validation_step(self.model, batch)
            check_loss(loss, "validation_step", needs_grad=False)
            return {"val_loss": float(loss)} | {
                name: float(metric(self.model, batch)) for name, metric in self.objective.metrics.items()
            }

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        if self.objective.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.objective.precision == "bf16" else torch.float16
        return torch.autocast(self.device.split(":")[0], dtype=dtype)

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters (and buffers), gradients and optimizer state."""
        return optimizer_bytes([self.optimizer], [*self.model.parameters(), *self.model.buffers()])

    def save(self, path: str) -> None:
        """Write everything that the rest of the run depends on, if it can be read back without running code."""
        import torch

        held = TrainingRun.held_bytes(self)  # Of this rank.
        if free_on_disk_bytes(path) < 2 * (held["parameters_bytes"] + held["optimizer_state_bytes"]):
            return  # The study is on that disk, too, and each run that is stopped leaves as much.
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler else None,
            "samples": self.samples,
            "steps": self.steps,
            **self._generators(),
            "other_ranks": self._other_generators(),
        }
        new = f"{path}.new"
        try:
            with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "wb") as file:
                torch.save(state, file)
            torch.load(new, weights_only=True, mmap=True)
            os.replace(new, path)  # A link of that name is replaced, and not written through.
        # A full disk, or an optimizer that keeps objects of its own: a stopped run then starts again.
        except Exception:
            Path(new).unlink(missing_ok=True)

    def load(self, path: str) -> None:
        """Go on where `save` was called. Nothing in the file can run code."""
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.samples, self.steps = state["samples"], state["steps"]
        self._set_generators(state)

    def _generators(self) -> dict[str, Any]:
        """Return the states of this process's generators, as a checkpoint takes them."""
        import numpy
        import torch

        numpy_rng: Any = numpy.random.get_state(legacy=False)
        numpy_rng["state"]["key"] = torch.from_numpy(numpy_rng["state"]["key"].astype("int64"))
        return {
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.cuda else None,
            "python_rng": random.getstate(),
            "numpy_rng": numpy_rng,
        }

    def _other_generators(self) -> list[dict[str, Any]]:
        """Return those of the other processes that train together."""
        return []

    def _set_generators(self, state: dict[str, Any]) -> None:
        """Put this process's generators back as a checkpoint has them."""
        import numpy
        import torch

        torch.set_rng_state(state["torch_rng"])
        if self.cuda and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        random.setstate(state["python_rng"])
        numpy_rng = state["numpy_rng"]
        numpy_rng["state"]["key"] = numpy_rng["state"]["key"].numpy().astype("uint32")
        numpy.random.set_state(numpy_rng)


def seed_everything(seed: int) -> None:
    """Seed the generators that user code draws from: Python's, NumPy's and torch's."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def optimizer_bytes(optimizers: list[Any], extra: list[Any]) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimizer state; tensors in `extra` count as parameters, once."""
    import torch

    parameters = {id(tensor): tensor for tensor in extra}
    state_bytes = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            parameters.update((id(tensor), tensor) for tensor in group["params"])
        for state in optimizer.state.values():
            state_bytes += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    return {
        "parameters_bytes": sum(tensor.nbytes for tensor in parameters.values()),
        "gradients_bytes": sum(tensor.grad.nbytes for tensor in parameters.values() if tensor.grad is not None),
        "optimizer_state_bytes": state_bytes,
    }


def check_loss(loss: Any, where: str, *, needs_grad: bool) -> None:
    """Raise an ObjectiveError unless `loss` is one scalar, and part of the graph where it is to be trained on."""
    import torch

    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        if not needs_grad or loss.requires_grad:
            return
        raise ObjectiveError(
            f"{where} returned a loss without a gradient: expected one computed from the model's output, not detached."
        )
    if not needs_grad and isinstance(loss, (int, float)):
        return
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else of_type(loss)
    raise ObjectiveError(f"{where} returned {found}: expected the mean loss over the batch, one scalar tensor.")
