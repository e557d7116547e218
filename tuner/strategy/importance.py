"""How much each dimension explains, alone, of how the loss that is expected of a full run varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .posterior import Model
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROWS = 64
"""Settings that each dimension is varied at."""
LEVELS = 8
"""Values of a dimension, at most."""
SETTINGS_EACH = 4
"""Fewer settings than so many for each dimension cannot tell what each of them does."""


@dataclass(frozen=True)
class _Axis:
    """A dimension at some of its values, as the surrogate sees it."""

    name: str
    values: Sequence[Any]
    coordinates: Array
    """(values, columns)."""
    centre: Array
    """(columns,): where a setting lies that has no such parameter."""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()


def importance(model: Model | None, space: Space) -> tuple[dict[str, float] | None, str | None]:
    """Return by name the share of each dimension, the largest first and 1 together; or None, and why.

    The surrogate's mean of the compressed loss at the end of a full run, so at equal samples, is taken over batch sizes
    and learning rates between the least and the most that were run, and over all of the other dimensions. A share is
    the variance of its average over all other dimensions (a first-order Sobol index), over the sum of these: what
    dimensions only do together is left out. A dimension with a condition counts by how often it is there.

    Source of the measure: Sobol 1993; for hyperparameters, Hutter et al. 2014 (functional ANOVA).
    """
    settings = {} if model is None else {run.key: run.setting for run in model.leaders}
    if model is None or not settings:
        return None, "no setting has a finite loss"
    batches = [setting.global_batch_size for setting in settings.values()]
    rates = [setting.learning_rate for setting in settings.values()]
    axes = [
        _octaves("batch_size", space.batches, batches, space.centre_batch),
        _octaves("learning_rate", space.learning_rates, rates, space.centre_learning_rate),
        *_extras(space),
    ]
    varied = [axis for axis in axes if len(axis.values) > 1]
    if not varied:
        return None, "no dimension has had two values"
    if len(settings) < SETTINGS_EACH * len(varied):
        were = "1 setting was" if len(settings) == 1 else f"{len(settings)} settings were"
        tell = "how much one dimension matters" if len(varied) == 1 else f"{len(varied)} dimensions apart"
        return None, f"{were} run, and {SETTINGS_EACH * len(varied)} or more are needed to tell {tell}"
    effects = _effects(model, axes, varied, space.fixed)
    total = sum(effects.values())
    if total <= 1e-12:
        return None, "the same loss is expected of all settings"
    return {name: effects[name] / total for name in sorted(effects, key=lambda name: -effects[name])}, None


def _octaves(name: str, known: Sequence[float], run: Sequence[float], centre: float) -> _Axis:
    """Return batch size or learning rate, between the least and the most that were run."""
    inside = _some([value for value in known if min(run) <= value <= max(run)] or [run[0]])
    return _Axis(name, inside, np.log2(np.array(inside, dtype=np.float64) / centre)[:, None], np.zeros(1))


def _extras(space: Space) -> list[_Axis]:
    axes = []
    for extra in space.extras:
        ladder = [extra.dimension.at((k + 0.5) / LEVELS) for k in range(LEVELS)]
        values = _some(list(extra.dimension.values) or list(dict.fromkeys(ladder)))
        coordinates = np.array([extra.coordinates(value) for value in values])
        axes.append(_Axis(extra.name, values, coordinates, np.array(extra.centre), extra.dimension.when))
    return axes


def _some(values: list[Any]) -> list[Any]:
    """Return at most `LEVELS` of the values, evenly spread."""
    if len(values) <= LEVELS:
        return values
    return [values[round(k * (len(values) - 1) / (LEVELS - 1))] for k in range(LEVELS)]


def _effects(
    model: Model, axes: Sequence[_Axis], varied: Sequence[_Axis], fixed: Mapping[str, Any]
) -> dict[str, float]:
    """Return by name the variance of what is expected at each value, averaged over the same settings of all others."""
    rng = np.random.default_rng(0)
    drawn = {axis.name: rng.permutation(np.arange(ROWS) % len(axis.values)) for axis in axes}
    moved = [{**drawn, axis.name: np.full(ROWS, i)} for axis in varied for i in range(len(axis.values))]
    expected = model.surface(np.concatenate([_rows(axes, chosen, fixed) for chosen in moved])).reshape(-1, ROWS)
    effects, first = {}, 0
    for axis in varied:
        there = _there(axis, axes, drawn, fixed)
        means = expected[first : first + len(axis.values), there]
        effects[axis.name] = float(there.mean() * means.mean(axis=1).var()) if there.any() else 0.0
        first += len(axis.values)
    return effects


def _rows(axes: Sequence[_Axis], chosen: Mapping[str, Any], fixed: Mapping[str, Any]) -> Array:
    """Return the coordinates of settings, by the number of the value that each dimension has."""
    columns = [
        np.where(_there(axis, axes, chosen, fixed)[:, None], axis.coordinates[chosen[axis.name]], axis.centre)
        for axis in axes
    ]
    return np.concatenate(columns, axis=1)


def _there(
    axis: _Axis, axes: Sequence[_Axis], chosen: Mapping[str, Any], fixed: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Return for each setting whether the condition of a dimension holds."""
    there = np.ones(ROWS, dtype=bool)
    values = {each.name: each.values for each in axes}
    for name, allowed in axis.when:
        holds = np.array([value in allowed for value in values.get(name, [fixed.get(name)])])
        there &= holds[chosen[name]] if name in values else holds[0]
    return there
