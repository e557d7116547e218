"""Writes what happens to a trial into Optuna's tables: one short transaction for each event. And deletes a study.

Optuna's own calls load the trial before each value that they store, which takes ten times as long. Where a storage has
no tables, or those of another database, Optuna's calls are used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial, TrialState

DATABASES = ("sqlite", "postgresql")
"""Those whose `INSERT` can say what is to become of a row that is there already."""


def create_trial(backend: BaseStorage, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
    """Store a new trial that runs, and return Optuna's id of it and its number in the study."""
    if not _has_tables(backend):
        trial_id = backend.create_new_trial(study_id, template_trial=trial)
        return trial_id, backend.get_trial_number_from_id(trial_id)
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models
    from sqlalchemy import func, insert, select, update

    table, locks_by_writing = models.TrialModel, backend.engine.name == "sqlite"
    with backend.engine.begin() as connection:
        # Others may add trials to our study: one after the other, also where a server lets them write at the same time.
        # There the lock comes first, since an insert takes a weaker one, from which two could not go on.
        if not locks_by_writing:
            _require_study(connection, study_id)
        made = connection.execute(
            insert(table).values(study_id=study_id, state=trial.state, datetime_start=trial.datetime_start)
        )
        assert made.inserted_primary_key is not None
        trial_id = int(made.inserted_primary_key[0])
        if locks_by_writing:
            _require_study(connection, study_id)
        earlier = select(func.count()).where(table.study_id == study_id, table.trial_id < trial_id)
        number = int(connection.execute(earlier).scalar_one())
        connection.execute(update(table).where(table.trial_id == trial_id).values(number=number))
        if trial.params:
            rows = [
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": trial.distributions[name].to_internal_repr(value),
                    "distribution_json": distribution_to_json(trial.distributions[name]),
                }
                for name, value in trial.params.items()
            ]
            connection.execute(insert(models.TrialParamModel), rows)
        _write(backend, connection, trial_id, trial.intermediate_values, trial.user_attrs)
    return trial_id, number


def write_trial(
    backend: BaseStorage, trial_id: int, values: Mapping[int, float] | None = None, attributes: Any = None
) -> None:
    """Store intermediate values by step, and user attributes by name, of a trial that runs.

    Raises:
        KeyError: There is no such trial any more.
    """
    values, attributes = values or {}, attributes or {}
    if not _has_tables(backend):
        for step, value in values.items():
            backend.set_trial_intermediate_value(trial_id, step, value)
        for name, content in attributes.items():
            backend.set_trial_user_attr(trial_id, name, content)
        return
    with backend.engine.begin() as connection:
        _write(backend, connection, trial_id, values, attributes)
        _require_running(connection, trial_id)


def end_trial(
    backend: BaseStorage, trial_id: int, state: TrialState, value: float | None, attributes: Mapping[str, Any]
) -> None:
    """Store how a trial has ended: first the attributes that say so, which are enough to take it up.

    Raises:
        KeyError: There is no such trial any more.
    """
    if not _has_tables(backend):
        write_trial(backend, trial_id, attributes=attributes)
        backend.set_trial_state_values(trial_id, state, None if value is None else [value])
        return
    from optuna.storages._rdb import models
    from sqlalchemy import update

    table, final = models.TrialModel, models.TrialValueModel
    with backend.engine.begin() as connection:
        _write(backend, connection, trial_id, {}, attributes)
        _require_running(connection, trial_id)
        if value is not None:
            stored, kind = final.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
            _put(backend, connection, final, [row], ("trial_id", "objective"))
        ended = {"state": state, "datetime_complete": datetime.now()}
        connection.execute(update(table).where(table.trial_id == trial_id).values(**ended))


def delete_study(backend: BaseStorage, study_id: int) -> None:
    """Delete a study and all that is in it; Optuna's own call loads each value first, while all others wait.

    Raises:
        KeyError: There is no such study any more.
    """
    if not _has_tables(backend):
        backend.delete_study(study_id)
        return
    from optuna.storages._rdb import models
    from sqlalchemy import delete, select

    trials = select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study_id)
    with backend.engine.begin() as connection:
        for table in reversed(models.BaseModel.metadata.sorted_tables):  # What belongs to something goes before it.
            its = table.c.get("study_id")
            if its is not None:
                gone = connection.execute(delete(table).where(its == study_id))
                if table.name == "studies" and not gone.rowcount:
                    raise KeyError(f"The study of id {study_id} is no longer there.")
            elif "trial_id" in table.c:
                connection.execute(delete(table).where(table.c.trial_id.in_(trials)))


def _has_tables(backend: BaseStorage) -> TypeGuard[RDBStorage]:
    from optuna.storages import RDBStorage

    return isinstance(backend, RDBStorage) and backend.engine.name in DATABASES


def _write(
    backend: Any, connection: Any, trial_id: int, values: Mapping[int, float], attributes: Mapping[str, Any]
) -> None:
    from optuna.storages._rdb import models

    value, attribute = models.TrialIntermediateValueModel, models.TrialUserAttributeModel
    rows: list[dict[str, Any]] = []
    if values:
        for step, loss in values.items():
            stored, kind = value.intermediate_value_to_stored_repr(loss)
            row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
            rows.append(row)
        _put(backend, connection, value, rows, ("trial_id", "step"))
    if attributes:
        rows = [
            {"trial_id": trial_id, "key": name, "value_json": json.dumps(content)}
            for name, content in attributes.items()
        ]
        _put(backend, connection, attribute, rows, ("trial_id", "key"))


def _put(backend: Any, connection: Any, table: Any, rows: list[dict[str, Any]], key: tuple[str, str]) -> None:
    """Insert rows; one that is there already gets the new content."""
    from sqlalchemy.exc import IntegrityError

    names = tuple(name for name in rows[0] if name not in key)
    try:
        connection.execute(_statement(backend.engine.name, table, key, names), rows)
    except IntegrityError as error:  # SQLite leaves it to `_require_running`.
        raise KeyError("The trial is no longer there.") from error


@functools.cache
def _statement(database: str, table: Any, key: tuple[str, str], names: tuple[str, ...]) -> Any:
    """Return the statement of `_put`; to compose one takes longer than to execute it."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = (sqlite if database == "sqlite" else postgresql).insert(table)
    content = {name: insert.excluded[name] for name in names}
    return insert.on_conflict_do_update(index_elements=list(key), set_=content)


def _require_study(connection: Any, study_id: int) -> None:
    """Refuse to add to a study that somebody else has removed; where a server can, lock it for this transaction."""
    from optuna.storages._rdb import models
    from sqlalchemy import select

    found = select(models.StudyModel.study_id).where(models.StudyModel.study_id == study_id)
    if connection.execute(found.with_for_update()).first() is None:
        raise KeyError(f"The study of id {study_id} is no longer there.")


def _require_running(connection: Any, trial_id: int) -> None:
    """Refuse to have written to a trial that somebody else has removed or ended; the transaction is undone then."""
    from optuna.exceptions import UpdateFinishedTrialError

    found = connection.execute(_state_of_trial(), {"trial": trial_id}).first()
    if found is None:
        raise KeyError(f"The trial of id {trial_id} is no longer there.")
    if found[0].is_finished():
        raise UpdateFinishedTrialError(f"The trial of id {trial_id} was ended by somebody else.")


@functools.cache
def _state_of_trial() -> Any:
    """Return the question for the state of a trial; to compose it takes longer than to ask it."""
    from optuna.storages._rdb import models
    from sqlalchemy import bindparam, select

    return select(models.TrialModel.state).where(models.TrialModel.trial_id == bindparam("trial"))
