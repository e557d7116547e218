"""What a storage knows of a model already: where a study of other data, or of another size of it, may begin."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.errors import BstuneError
from ..core.probe_results import DeviceInfo
from ..core.results import LrRule
from ..core.specs import Learned
from ..core.trials import Facts
from ..studies.catalog import same_source, source_of, studies
from ..studies.study import Study, intact
from .result import stored_strategy

HALF_WIDTH = 1.645
"""Standard deviations in half of a 90 % interval."""
SAME = ("structure_hash", "optimizer", "schedule", "precision")
"""Facts that a best learning rate depends on, whatever the data."""


def remember(study: Study, facts: Facts, device: DeviceInfo) -> Learned | None:
    """Store in a new study what the others of its storage know of its model, and return it; None: nothing."""
    learned = known_of(study, facts, device)
    if learned is not None:
        study.set(learned=dataclasses.asdict(learned))
    return learned


def known_of(study: Study, facts: Facts, device: DeviceInfo) -> Learned | None:
    """Return what the study of the same model that was used last has found, and verified.

    The model is the same by the structure of its modules and of a sample; code, data, their number or the epochs are
    others, or the name alone. The same objective is no news: its study would go on, or was left aside on purpose.
    """
    if facts.structure_hash is None:
        return None
    for other in studies(study.storage, readable=True):
        if other.name == study.name or (learned := _learned(other, facts, device)) is None:
            continue
        if learned.differs != "name" or _has_other_name(other, study):
            return learned
    return None


def _learned(other: Study, facts: Facts, device: DeviceInfo) -> Learned | None:
    """Return what a study has verified, if it is of the same model; one that cannot be read says nothing."""
    stored: dict[str, Any] = other.attributes.get("facts") or {}
    if stored.get("size_unit", "samples") != facts.size_unit:
        return None  # Its batch sizes are other numbers.
    if any(stored.get(name) != getattr(facts, name) for name in SAME):
        return None
    try:
        with intact(other.name):
            found = stored_strategy(other).recommend()
            line = None if other.probe is None or not _same_device(other, device) else other.probe.step_time_line
    except BstuneError:
        return None
    if not found.verified:
        return None
    slope, slope_sd = _slope(found.lr_rule)
    return Learned(
        other.name, found.global_batch_size, found.learning_rate, slope, slope_sd, line, _differs(stored, facts)
    )


def _differs(stored: dict[str, Any], facts: Facts) -> str:
    """Return what the training of a study has another of: the first of data, epochs and code, else its name at most."""
    made_with = stored.get("code_arguments")  # An older bstune has stored none.
    old = {
        "source": stored.get("source_hash"),
        "code": stored.get("code_hash"),
        "arguments": None if made_with is None else dict(made_with),
    }
    if stored.get("n_samples") != facts.n_samples:
        return "data"
    if stored.get("epochs") != facts.epochs:
        return "epochs"
    return "name" if same_source(old, source_of(facts)) else "code"


def _has_other_name(other: Study, study: Study) -> bool:
    """Tell whether two studies are of objectives with names of their own: a file that was moved, or a copy."""
    names = other.attributes.get("identity"), study.attributes.get("identity")
    return None not in names and names[0] != names[1]


def _same_device(other: Study, device: DeviceInfo) -> bool:
    stored = other.attributes.get("device") or {}
    return (stored.get("kind"), stored.get("name")) == (device.kind, device.name)


def _slope(rule: LrRule | None) -> tuple[float | None, float | None]:
    """Return the slope that was learned and its standard deviation; None where its interval is not known."""
    if rule is None or rule.low is None or rule.high is None:
        return None, None
    return rule.alpha, max((rule.high - rule.low) / (2 * HALF_WIDTH), 0.05)
