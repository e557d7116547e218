"""What a database, a file system or a driver can say, as one clear error that says what to do."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator

from ..core.errors import BstuneError, StudyError
from ..core.plain_text import hide_secrets, one_line
from . import database_server
from .location import Location


@contextlib.contextmanager
def guard(location: Location) -> Iterator[None]:
    """Turn what a database can say into one clear StudyError, and leave Python's random numbers as they were."""
    # When a write fails Optuna draws the pause before the next try from the global generator.
    state = random.getstate()
    try:
        yield
    except BstuneError:
        raise
    except database_errors() as error:
        raise study_error(error, location) from error
    finally:
        random.setstate(state)


@contextlib.contextmanager
def reading(location: Location) -> Iterator[None]:
    """Turn errors from values that Optuna did not write into one clear StudyError."""
    with guard(location):
        try:
            yield
        except BstuneError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            said = one_line(error)[:200]
            raise StudyError(
                f"The storage {location.path or location.url} cannot be used: what is stored in it is damaged, or was "
                f"changed by another program ({type(error).__name__}: {said}). Restore a copy, or name another file "
                "with --storage."
            ) from error


def database_errors() -> tuple[type[BaseException], ...]:
    """Return the types of what a database, a driver or the file system may raise."""
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    return (
        StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        json.JSONDecodeError,
        UnicodeDecodeError,
        ImportError,
        RuntimeError,
        OSError,
        OverflowError,
        TypeError,  # Of a driver, for a parameter in the address that it does not know.
    )


_SAYINGS = {
    "disk is full": "the disk is full. Free some space and run the same command again: it goes on after the last "
    "finished trial",
    "not a database": "it is not a database. Name another file with --storage",
    "codec can't decode": "the database is damaged. Restore a copy, or name another file with --storage",
    "malformed": "the database is damaged. Restore a copy, or name another file with --storage",
    "readonly": "it cannot be written (read-only). Name another file with --storage",
    "read-only": "it cannot be written (read-only). Name another file with --storage",
    "recursion": "what is stored is nested too deep; another program may have changed it. Restore a copy, or name "
    "another file",
    "interrupted": "one statement took longer than two minutes: it holds too much, or what another program put "
    "there. Name another file with --storage",
    "is locked": "another program holds a lock on the database. End it, or name another file with --storage",
    "unable to open": "it cannot be opened. Check that the folder exists and can be written, or name another file "
    "with --storage",
    "no such file": "its folder does not exist. Make it, or name another file with --storage",
    "no space left": "the disk is full. Free some space and run the same command again: it goes on after the last "
    "finished trial",
    "permission denied": "permission denied. Name another file with --storage",
    "no longer compatible": "another version of Optuna made its tables. Install that version, or name another file "
    "with --storage",
    "connection refused": "no database server answers there. Start it, or check the address",
    "timeout expired": "the database server does not answer. Check the address",
    "name or service not known": "there is no such host. Check the address",
    "could not translate host": "there is no such host. Check the address",
    "password authentication failed": "the server refuses the user or the password. Check both",
    "to database": "the server has no such database, or keeps this user out of it. Make it first: bstune makes only "
    "the tables",
    "access denied": "the server refuses the user or the password. Check both",
    "unknown database": "the server has no such database. Make it first: bstune makes the tables, not the database",
    "does not exist": "the server has no such database or user. Make it first: bstune makes the tables, not the "
    "database",
    "incorrect string value": "the database cannot store these letters. Make it with CHARACTER SET utf8mb4, or use "
    "another name",
    **dict.fromkeys(
        (
            "server closed the connection",
            "terminating connection",
            "the connection is lost",
            "lost connection",
            "gone away",
        ),
        "the database server went away. Run the same command again when it is back",
    ),
    "too large for the file system": "the disk is full. Free some space and run the same command again",
    "file too large": "the file may not grow further (a limit of the system). Raise it, or name another file with "
    "--storage",
    "i/o error": "the disk could not be read or written (I/O error). Check it and run the same command again",
}


def study_error(error: BaseException, location: Location) -> StudyError:
    """Say what happened to the storage, from the innermost cause."""
    cause: BaseException | None = error
    texts = []
    while cause is not None:
        texts.append(f"{cause} {getattr(cause, 'sqlite_errorname', '')}".strip())
        cause = cause.__cause__ or getattr(cause, "orig", None)
    said = " ".join(texts).lower()
    plain = f"{hide_secrets(one_line(texts[-1]), location.secrets)}. Name another storage with --storage"
    meaning = next((meaning for saying, meaning in _SAYINGS.items() if saying in said), plain)
    if isinstance(error, json.JSONDecodeError):
        meaning = "the journal is damaged. Restore a copy, or name another file with --storage"
    elif isinstance(error, ImportError) and location.server is not None:
        driver = database_server.DRIVERS[location.server.get_backend_name()]
        meaning = f"the driver of its database is not installed. Install it: {driver}"
    return StudyError(f"The storage {location.path or location.url} cannot be used: {meaning}.")
