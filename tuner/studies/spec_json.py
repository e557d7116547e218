"""Plans, spaces, facts and runs as JSON, and read back; Optuna distributions may be in a space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.arguments import check_space
from ..core.dimension import Dimension, When, distribution
from ..core.probe_results import StepTimeLine
from ..core.specs import Learned, Plan
from ..core.trials import Facts, Split, TrialSpec


def encode_space(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return a space as JSON: scalars and lists as they are; ranges, distributions and conditions as objects."""
    from optuna.distributions import distribution_to_json

    def encode(given: Any) -> Any:
        if isinstance(given, When):
            return {"when": {name: list(v) for name, v in given.conditions.items()}, "values": encode(given.values)}
        if distribution(given) is not None:
            return {"distribution": distribution_to_json(given)}
        return {"range": list(given)} if isinstance(given, tuple) else given

    return {name: encode(space[name].raw) for name in sorted(space)}


def decode_space(data: Mapping[str, Any]) -> dict[str, Dimension]:
    """Read back what `encode_space` wrote.

    Raises:
        ArgumentError: It holds what no user may ask for.
    """
    from optuna.distributions import json_to_distribution

    def decode(stored: Any) -> Any:
        if isinstance(stored, Mapping) and "when" in stored:
            return When(values=decode(stored["values"]), **stored["when"])
        if isinstance(stored, Mapping):
            return json_to_distribution(stored["distribution"]) if "distribution" in stored else tuple(stored["range"])
        return stored

    return check_space({name: decode(stored) for name, stored in data.items()})


def encode_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON."""
    return {**dataclasses.asdict(dataclasses.replace(plan, space={})), "space": encode_space(plan.space)}


def decode_plan(data: Mapping[str, Any]) -> Plan:
    """Read back what `encode_plan` wrote."""
    names = {field.name for field in dataclasses.fields(Plan)}
    values = {name: value for name, value in data.items() if name in names}
    baseline = values.get("baseline")
    return Plan(
        **{
            **values,
            "space": decode_space(data["space"]),
            "baseline": baseline and (int(baseline[0]), float(baseline[1])),
        }
    )


def decode_facts(data: Mapping[str, Any]) -> Facts:
    """Read back the facts of an objective."""
    names = {field.name for field in dataclasses.fields(Facts)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in names
    }
    times = tuple((int(size), float(seconds)) for size, seconds in values.get("step_times", ()))
    parts = {
        key: tuple((str(name), str(code)) for name, code in values.get(key, ()))
        for key in ("code_parts", "code_arguments")
    }
    return Facts(**{**values, "step_times": times, **parts})


def decode_learned(data: Mapping[str, Any] | None) -> Learned | None:
    """Read back what a study began with, as `dataclasses.asdict` wrote it; None: with nothing."""
    if data is None:
        return None
    line = data["step_time_line"]
    return Learned(
        study=str(data["study"]),
        batch_size=int(data["batch_size"]),
        learning_rate=float(data["learning_rate"]),
        slope=None if data["slope"] is None else float(data["slope"]),
        slope_sd=None if data["slope_sd"] is None else float(data["slope_sd"]),
        step_time_line=None if line is None else StepTimeLine.from_dict(line),
        differs=str(data.get("differs", "data")),
    )


def encode_spec(spec: TrialSpec) -> dict[str, Any]:
    """Return a run as JSON."""
    return {**dataclasses.asdict(spec), "points": list(spec.points)}


def decode_spec(data: Mapping[str, Any]) -> TrialSpec:
    """Read back what `encode_spec` wrote.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is something else.
    """
    numbers: dict[str, Any] = {
        name: None if data.get(name) is None else int(data[name])
        for name in ("eval_batch_size", "most_samples", *_NUMBERS)
        if name in data
    }
    texts: dict[str, Any] = {
        name: None if data.get(name) is None else str(data[name]) for name in ("resume_from", "checkpoint_to")
    }
    return TrialSpec(
        **numbers,
        **texts,
        stage=str(data["stage"]),
        learning_rate=float(data["learning_rate"]),
        points=tuple(int(point) for point in data["points"]),
        params=dict(data.get("params", {})),
        splits={device: Split(**split) for device, split in data.get("splits", {}).items()},
    )


_NUMBERS = (
    "number",
    "global_batch_size",
    "micro_batch_size",
    "accumulation_steps",
    "seed",
    "end_samples",
    "start_samples",
    "noise_samples",
    "world_size",
)
