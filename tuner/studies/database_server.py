"""A storage in a database server, PostgreSQL or MySQL: how it is opened, and the lock of its one writer.

There is no file to put a lock beside, so the server has it: an advisory lock on a connection of its own, which goes
when that connection does, however the search ends.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..core.errors import BstuneError
from .optuna_tables import check_tables, expected_columns

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL, Connection, Engine

CONNECT_S = 10
LOOK_S = 5.0
"""Time between two looks at whether the lock is still ours."""
_MYSQL = "pip install mysqlclient, or pip install 'PyMySQL[rsa]' and begin the URL with {}+pymysql://"
DRIVERS = {
    "postgresql": "pip install 'psycopg[binary]'",
    "mysql": _MYSQL.format("mysql"),
    "mariadb": _MYSQL.format("mariadb"),
}
"""How to install a driver, by SQLAlchemy's name of the server."""

_TAKE = {
    "postgresql": "SELECT pg_try_advisory_lock(:number)",
    "mysql": "SELECT GET_LOCK(CONCAT('bstune ', :number), 0)",
}
_LET_GO = {
    "postgresql": "SELECT pg_advisory_unlock(:number)",
    "mysql": "SELECT RELEASE_LOCK(CONCAT('bstune ', :number))",
}
_STAY = {
    # Since PostgreSQL 14.
    "postgresql": "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'",
    "mysql": "SET SESSION wait_timeout = 2147483",  # Seconds; the most that MySQL takes on every platform.
}
"""Keeps the server from closing an idle connection, and the lock with it."""


class HeldError(BstuneError):
    """Another session of the server has the lock of the writer."""


def open_server(url: URL, *, create: bool) -> BaseStorage:
    """Open Optuna's tables in a server, made first if there are none and `create`."""
    from optuna.storages import RDBStorage

    if create:
        has_tables(url)
    text = (
        _driven(url).render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    )  # Optuna fills in {SCHEMA_VERSION}.
    return RDBStorage(
        text, engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_args(url)}, skip_table_creation=not create
    )


def has_tables(url: URL) -> bool:
    """Tell whether Optuna's tables are there.

    Raises:
        StudyError: Tables of another program have their names: Optuna would add its own to them.
    """
    import sqlalchemy

    with _engine(url).connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        named = sorted(expected_columns().keys() & {*inspector.get_table_names(), *inspector.get_view_names()})
        columns = {table: {str(column["name"]) for column in inspector.get_columns(table)} for table in named}
    if named:
        check_tables(url.render_as_string(hide_password=True), columns)
    return bool(named)


def _engine(url: URL) -> Engine:
    """Return what opens a connection that is closed after its use, and not kept for another."""
    import sqlalchemy

    return sqlalchemy.create_engine(_driven(url), poolclass=sqlalchemy.NullPool, connect_args=_connect_args(url))


def _driven(url: URL) -> URL:
    """Name the driver psycopg where it is the only one: SQLAlchemy 2.0 looks for psycopg2, and 2.1 for psycopg."""
    if url.drivername == "postgresql" and find_spec("psycopg2") is None and find_spec("psycopg") is not None:
        return url.set(drivername="postgresql+psycopg")
    return url


def _connect_args(url: URL) -> dict[str, Any]:
    """Limit the wait for a server that is not there."""
    return {"connect_timeout": CONNECT_S} if "connect_timeout" not in url.query else {}


class ServerLock:
    """The lock of the one writer, kept by the server for as long as the connection lives."""

    def __init__(self, url: URL) -> None:
        """Take the lock.

        Raises:
            HeldError: Somebody else has it.
        """
        self._connection: Connection = _engine(url).connect()
        self._kind = "postgresql" if url.get_backend_name() == "postgresql" else "mysql"
        self._number = zlib.crc32(f"bstune {url.database}".encode())
        self._lives, self._looked_s = True, time.monotonic()
        self._ask(_STAY)
        if not self._ask(_TAKE):
            self._connection.close()
            raise HeldError("another session of the database server holds the lock of the writer")

    def _ask(self, question: dict[str, str]) -> Any:
        import sqlalchemy

        answer = self._connection.execute(sqlalchemy.text(question[self._kind]), {"number": self._number})
        said = answer.scalar() if answer.returns_rows else None
        self._connection.commit()
        return said

    def is_held(self) -> bool:
        """Tell whether the connection that has the lock still lives; the server is asked every few seconds at most."""
        import sqlalchemy

        if time.monotonic() - self._looked_s > LOOK_S:
            self._looked_s = time.monotonic()
            try:
                self._connection.execute(sqlalchemy.text("SELECT 1"))
                self._connection.commit()
            except sqlalchemy.exc.SQLAlchemyError:
                self._lives = False
        return self._lives

    def close(self) -> None:
        """Release it explicitly: a server may take a moment to see that a connection is closed."""
        import sqlalchemy

        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # Where the server has gone, so has the lock.
            self._ask(_LET_GO)
        self._connection.close()
