"""Whether the tables of a database are those of Optuna."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import StudyError

_SIGN = {"studies": {"study_id", "study_name"}, "trials": {"trial_id", "study_id"}, "version_info": {"schema_version"}}
"""What every version of Optuna has had."""


def check_tables(where: str, columns: Mapping[str, set[str]]) -> None:
    """Refuse a database without Optuna's tables, whatever else is in it.

    Args:
        where: The file or the address, as it may be shown.
        columns: The columns of each table that is there.

    Raises:
        StudyError: They belong to another program, or to another version of Optuna.
    """
    if any(not names <= columns.get(table, set()) for table, names in _SIGN.items()):
        found = ", ".join(sorted(set(columns) - {"sqlite_sequence"})[:3]) or "none"
        raise StudyError(
            f"{where} is a database of something else (tables {found}): expected an Optuna storage. Name another with "
            "--storage."
        )
    if any(not names <= columns.get(table, set()) for table, names in expected_columns().items()):
        raise StudyError(
            f"The storage {where} cannot be used: another version of Optuna made its tables. Install that version, or "
            "name another with --storage."
        )


def expected_columns() -> dict[str, set[str]]:
    """Return the columns of the tables that Optuna makes."""
    from optuna.storages._rdb import models

    return {
        table.name: {column.name for column in table.columns} for table in models.BaseModel.metadata.tables.values()
    }
