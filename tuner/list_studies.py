"""The studies of a storage, each with its date, objective, device and answer; read as `show` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .core.errors import StudyError
from .core.plain_text import one_line
from .core.record import Record
from .core.trials import Facts
from .show import show
from .studies.catalog import only_foreign, studies
from .studies.storage import read_storage


@dataclass(frozen=True)
class Listed(Record):
    """One study of a storage."""

    study: str
    date: str | None
    """When it was begun, or gone on with, last, as ISO 8601."""
    objective: str | None
    """The file that defines it, or None where it was called from Python."""
    device: str | None
    n_trials: int
    global_batch_size: int | None
    """Of the best so far; None while nothing was learned, as is the learning rate."""
    learning_rate: float | None
    verified: bool
    error: str | None = None
    """Why it cannot be read."""


def list_studies(*, storage: str | None = None) -> list[Listed]:
    """Return the studies that bstune made, the one that was used last first.

    Raises:
        StudyError: There is no such storage.
    """
    with read_storage(storage) as opened:
        found = [(study.name, dict(study.attributes)) for study in studies(opened, readable=True)]
    return [_listed(name, attributes, storage) for name, attributes in found]


def unlisted(*, storage: str | None = None) -> str | None:
    """Return in words why nothing is listed of a storage that holds studies; None where something is, or it is empty.

    Raises:
        StudyError: There is no such storage.
    """
    with read_storage(storage) as opened:
        return only_foreign(opened)


def _listed(name: str, attributes: dict[str, object], storage: str | None) -> Listed:
    used, target, device = attributes.get("used"), attributes.get("objective"), attributes.get("device")
    date = used if isinstance(used, str) else None
    objective = Path(target).name.removesuffix(":objective") if isinstance(target, str) else None
    kind = device.get("name") if isinstance(device, dict) else None
    on = kind if isinstance(kind, str) else None
    try:
        shown = show(name, storage=storage)
    except StudyError as error:  # One study that is damaged must not hide the others.
        return Listed(name, date, objective, on, 0, None, None, False, one_line(error, 300))
    best = None if shown.result is None else shown.result.recommendation
    return Listed(
        name,
        date,
        objective or _program(shown.facts) or _named(attributes.get("identity")),
        on,
        len(shown.records),
        None if best is None else best.global_batch_size,
        None if best is None else best.learning_rate,
        best is not None and best.verified,
    )


def _program(facts: Facts | None) -> str | None:
    """Return the script of a command, or its program where there is no script."""
    words = () if facts is None else facts.command
    return next((Path(word).name for word in words if word.endswith(".py")), words[0] if words else None)


def _named(identity: object) -> str | None:
    """Return the function or model that an objective from Python is made of."""
    return identity.rpartition(".")[2] if isinstance(identity, str) and not identity.startswith("/") else None
