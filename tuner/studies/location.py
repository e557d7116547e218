"""Where a storage is: a file, a journal, a database server, or nowhere but in memory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from ..core.errors import StudyError
from ..core.plain_text import hide_secrets, one_line, secrets_in
from . import database_server, journal

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

DEFAULT_URL = "sqlite:///bstune.db"
EXPECTED = "sqlite:///FILE, journal:///FILE, postgresql://... or mysql://..."
VARIABLE = "BSTUNE_STORAGE"
MOST_NAME_BYTES = 100
"""A longer name of a study is not the name of a folder: file systems take 255 bytes for the whole."""


@dataclass(frozen=True)
class Location:
    """Where a storage is."""

    url: str
    """As it may be shown and stored: without a password."""
    path: Path | None
    """The file, with links resolved, so that all paths to it have one lock.

    None for a storage in memory or in a server.
    """
    kind: Literal["sqlite", "journal", "server", "memory"] = "sqlite"
    server: URL | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What must not be shown, in case a driver repeats it."""
    read_only: bool = False

    @property
    def lock_path(self) -> Path | None:
        """The sidecar lock of the one writer; Optuna's own lock of a journal has the plain name."""
        return self.path and self.path.with_name(
            self.path.name + (".writer.lock" if self.kind == "journal" else ".lock")
        )

    def checkpoint_path(self, study: str) -> Path | None:
        """The folder for the checkpoints of a study, beside the file."""
        return self._beside("checkpoints", study)

    def log_path(self, study: str) -> Path | None:
        """The folder for what the trials of a study print, beside the file."""
        return self._beside("logs", study)

    def _beside(self, kind: str, study: str) -> Path | None:
        name = quote(study, safe=" ")
        if len(name) > MOST_NAME_BYTES:
            name = f"{name[:MOST_NAME_BYTES]}-{hashlib.sha256(study.encode(errors='surrogatepass')).hexdigest()[:16]}"
        return self.path and self.path.with_name(f"{self.path.name}.{kind}-{name}")


def locate(url: str | None) -> Location:
    """Find the storage: the one given, else `$BSTUNE_STORAGE`, else `bstune.db` in the working directory.

    Raises:
        StudyError: The URL is none of SQLite, PostgreSQL, MySQL or a journal file.
    """
    text = url or os.environ.get(VARIABLE) or DEFAULT_URL
    shown = one_line(text)
    if text.startswith(journal.SCHEME):
        rest = text.removeprefix(journal.SCHEME)
        name = rest.removeprefix("///")
        if not name or (name == rest and rest.startswith("//")):  # What follows two slashes is a host.
            raise StudyError(f"{shown!r} names no file: expected journal:///FILE, with three slashes.")
        return Location(shown, _resolved(name, shown), "journal")
    import sqlalchemy  # Not for a journal: it takes as long as all else that shows a study.
    from sqlalchemy.engine import make_url

    try:
        parsed = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        if "@" in text:  # It may contain a password.
            raise StudyError(f"The storage is not a URL that can be read: expected {EXPECTED}.") from None
        raise StudyError(
            f"{shown!r} is not a storage URL: expected {EXPECTED}; for a file, sqlite:///{shown}."
        ) from error
    backend = parsed.get_backend_name()
    if backend in database_server.DRIVERS:
        secrets = (*secrets_in(text), *filter(None, [parsed.password and str(parsed.password)]))
        return Location(hide_secrets(parsed.render_as_string(hide_password=True)), None, "server", parsed, secrets)
    if backend != "sqlite":
        raise StudyError(f"The storage {shown} is of an unknown kind: expected {EXPECTED}.")
    if parsed.host:  # What follows two slashes is one.
        raise StudyError(f"{shown!r} names no file: expected sqlite:///FILE, with three slashes.")
    name = parsed.database or ":memory:"
    if name == ":memory:" or parsed.query.get("mode") == "memory":
        return Location(shown, None, "memory")
    name = name.removeprefix("file:") if parsed.query.get("uri") else name
    return Location(shown, _resolved(name, shown), read_only=parsed.query.get("mode") == "ro")


def _resolved(name: str, shown: str) -> Path:
    """Return the path that links lead to.

    Raises:
        StudyError: It is no path, or a link that leads nowhere: a file would be made in a place that nobody named.
    """
    try:
        path = Path(os.path.realpath(name))
        if os.path.islink(name.rstrip("/")) and not os.path.exists(path):
            raise StudyError(
                f"The storage {shown} is a link that leads to no file ({one_line(path)}): remove it, or name another "
                "file."
            )
    except (OSError, ValueError) as error:
        raise StudyError(f"The storage {shown} cannot be used: {error}. Name another file with --storage.") from error
    return path
