"""Reads all trials of a study out of Optuna's tables at once.

Through Optuna's own objects ten thousand of them take ten seconds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass
class StoredTrial:
    """What bstune reads of one trial.

    Attributes:
        id: Optuna's own, across studies.
        number: Within the study.
        finished: It has ended.
        user_attrs: As they were stored.
        intermediate_values: Validation loss by samples; not a number where it was not finite.
    """

    id: int
    number: int
    finished: bool
    user_attrs: dict[str, Any] = field(default_factory=dict)
    intermediate_values: dict[int, float] = field(default_factory=dict)


def read_trials(backend: BaseStorage, study_id: int) -> dict[int, StoredTrial]:
    """Return the trials of a study by number."""
    from optuna.storages import RDBStorage

    if isinstance(backend, RDBStorage):
        return _from_tables(backend, study_id)
    found = backend.get_all_trials(study_id, deepcopy=False)
    return {
        t.number: StoredTrial(t._trial_id, t.number, t.state.is_finished(), t.user_attrs, t.intermediate_values)
        for t in found
    }


def _from_tables(backend: Any, study_id: int) -> dict[int, StoredTrial]:
    from optuna.storages._rdb import models
    from sqlalchemy import select

    trial, attribute, value = models.TrialModel, models.TrialUserAttributeModel, models.TrialIntermediateValueModel
    infinite = value.TrialIntermediateValueType
    special = {infinite.INF_POS: math.inf, infinite.INF_NEG: -math.inf, infinite.NAN: math.nan}
    own = select(trial.trial_id).where(trial.study_id == study_id)
    with backend.engine.connect() as connection:
        rows = connection.execute(select(trial.trial_id, trial.number, trial.state).where(trial.study_id == study_id))
        trials = {id_: StoredTrial(id_, number, state.is_finished()) for id_, number, state in rows}
        for id_, key, text in connection.execute(
            select(attribute.trial_id, attribute.key, attribute.value_json).where(attribute.trial_id.in_(own))
        ):
            trials[id_].user_attrs[key] = json.loads(text)
        for id_, step, loss, kind in connection.execute(
            select(value.trial_id, value.step, value.intermediate_value, value.intermediate_value_type).where(
                value.trial_id.in_(own)
            )
        ):
            trials[id_].intermediate_values[step] = special.get(kind, loss)
    return {stored.number: stored for stored in trials.values()}
