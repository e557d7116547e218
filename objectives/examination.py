"""A model looked at while it trains: what is measured on the way changes neither its weights nor its random numbers.

Each look runs with the model as the training left it, and puts buffers, gradients and generators back. One that fails
says why, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..tuner.core.examination import Examined, ExamineSpec, Look
from .gradient_noise import untouched
from .look_at_curvature import curvature
from .look_at_gradients import agreement, gradients, layers
from .look_at_norms import batch_norm, running_statistics
from .look_at_optimizers import two_optimizers
from .look_at_sizes import crossed_pairs, side_by_side
from .look_at_strata import strata
from .look_at_structure import structure
from .look_at_training import at_full_batch, early_losses, ghost_batches, grown_batch, step_times
from .training import Recipe, TrainingRun

Figures = tuple[Mapping[str, tuple[float, ...]], Mapping[str, tuple[str, ...]]]
LOOKS: Mapping[str, Callable[[TrainingRun, ExamineSpec], Figures]] = {
    "structure": structure,
    "gradients": gradients,
    "agreement": agreement,
    "layers": layers,
    "strata": strata,
    "batch_norm": batch_norm,
    "running_statistics": running_statistics,
    "curvature": curvature,
}
"""Looks at a model as it is, on the way of one run."""
RUNS: Mapping[str, Callable[[TrainingRun, ExamineSpec], Figures]] = {
    "step_times": step_times,
    "early_losses": early_losses,
    "grown_batch": grown_batch,
    "at_full_batch": at_full_batch,
    "ghost_batches": ghost_batches,
    "crossed_pairs": crossed_pairs,
    "side_by_side": side_by_side,
    "two_optimizers": two_optimizers,
}
"""These train a model of their own to the end; each has a process to itself."""
MOST_REASON = 300


def examine(objective: Recipe, spec: ExamineSpec, device: str) -> Examined:
    """Train one setting from a fresh model, and look at it at each point of the specification.

    Raises:
        ObjectiveError: The user's code cannot train.
    """
    start_s = time.perf_counter()
    run = _new_run(objective, spec, device)
    looks: list[Look] = []
    for point in spec.points:
        while run.samples < point and run.loss_is_finite():
            run.step()
        for name in spec.measurements:
            looks.append(_look(name, run, spec))
    return Examined(tuple(looks), run.samples, time.perf_counter() - start_s)


def _new_run(objective: Recipe, spec: ExamineSpec, device: str) -> TrainingRun:
    run = TrainingRun(
        objective,
        device=device,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        horizon_samples=spec.full_samples or None,
        params=spec.params,
    )
    run.open_stream(spec.micro_batch_size, spec.accumulation_steps)
    return run


def _look(name: str, run: TrainingRun, spec: ExamineSpec) -> Look:
    """Return what one look finds; whatever user code or torch raises in it is the reason why it found nothing."""
    start_s, at_samples = time.perf_counter(), run.samples
    values: Mapping[str, tuple[float, ...]] = {}
    texts: Mapping[str, tuple[str, ...]] = {}
    failed = None
    try:
        if not run.loss_is_finite():
            raise ArithmeticError(f"training diverged at a learning rate of {spec.learning_rate:.3g}")
        if name in RUNS:
            values, texts = RUNS[name](run, spec)
        else:
            with untouched(run.model):
                try:
                    values, texts = LOOKS[name](run, spec)
                finally:
                    run.optimizer.zero_grad(set_to_none=True)
                    run.model.train()
    except Exception as error:
        said = str(error).strip().splitlines()
        # Our own reasons are whole sentences.
        kind = "" if type(error) is ArithmeticError else f"{type(error).__name__}: "
        failed = f"{kind}{said[0] if said else 'no more is known'}"[:MOST_REASON]
    return Look(name, at_samples, spec.seed, time.perf_counter() - start_s, values, texts, failed)
