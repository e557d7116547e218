"""Plans, spaces and facts as JSON, and read back; Optuna distributions may stand in a space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.specs import Plan
from ..core.trials import Facts


def encode_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space as JSON: a scalar or a list as it is, a range and an Optuna distribution as objects."""
    from optuna.distributions import BaseDistribution, distribution_to_json

    def encode(values: Any) -> Any:
        if isinstance(values, BaseDistribution):
            return {"distribution": distribution_to_json(values)}
        return {"range": list(values)} if isinstance(values, tuple) else values

    return {name: encode(space[name]) for name in sorted(space)}


def decode_space(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read back what `encode_space` wrote."""
    from optuna.distributions import json_to_distribution

    def decode(values: Any) -> Any:
        if isinstance(values, Mapping):
            return json_to_distribution(values["distribution"]) if "distribution" in values else tuple(values["range"])
        return values

    return {name: decode(values) for name, values in data.items()}


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
    return Facts(**{**values, "step_times": times})
