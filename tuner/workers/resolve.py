"""An objective as the caller gave it, checked; a path is turned into a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...objectives.command import Command
from ...objectives.command_line import check_program
from ...objectives.load import ObjectiveRef, is_objective, load
from ..core.errors import ArgumentError


def check_objective(objective: Any, *, isolation: str = "process") -> Any:
    """Return the objective, a path turned into a reference.

    Raises:
        ArgumentError: It is no objective, or none that can run in this process.
        ObjectiveError: The path names no Python file, or one that fails when it is run in this process.
    """
    if isinstance(objective, (str, Path)):
        objective = load(objective)
    if isolation == "none" and isinstance(objective, ObjectiveRef):
        objective = _resolve_here(objective)
    if isinstance(objective, Command):
        check_program(objective.words[0])  # Before anything is started.
    if not isinstance(objective, ObjectiveRef) and not is_objective(objective):
        raise ArgumentError(
            f"{objective!r} is not an objective: expected a bstune.Supervised, a function under @bstune.objective, "
            "a bstune.Command, or bstune.load('model.py')."
        )
    if isolation == "none" and getattr(objective, "kind", None) != "loop":
        raise ArgumentError(
            "isolation='none' runs a function under @bstune.objective; leave it out for any other objective."
        )
    return objective


def with_places(objective: Any, space: Mapping[str, Any], *, rate_is_fixed: bool) -> Any:
    """Return the objective; a command as one that has a place for all that is searched.

    Raises:
        ArgumentError: It has none.
    """
    return objective.for_space(space, rate_is_fixed=rate_is_fixed) if isinstance(objective, Command) else objective


def _resolve_here(reference: ObjectiveRef) -> Any:
    """Execute the file in this process, and say what goes wrong as if it were a worker's."""
    from .fork_server import error_of
    from .worker import failure_of

    try:
        found = reference.resolve()
    except (Exception, SystemExit) as error:
        failure = dataclasses.replace(failure_of(error), outcome="error")  # There is no budget of memory here.
        raise error_of(failure, "loading the objective", output=None) from error
    # As a reference it would tell them itself: its study is named after the file.
    found.default_study_name, found.place = reference.default_study_name, reference.place
    return found
