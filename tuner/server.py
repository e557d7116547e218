"""A storage in a database server, PostgreSQL or MySQL: how it is opened, and the lock of its one writer.

There is no file to put a lock beside, so the server holds it: an advisory lock on a connection of its own, which goes when that
connection does, however the search ends.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from .errors import BstuneError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL, Connection

CONNECT_S = 10
_MYSQL = "pip install mysqlclient, or pip install PyMySQL and begin the URL with {}+pymysql://"
DRIVERS = {"postgresql": "pip install 'psycopg[binary]'", "mysql": _MYSQL.format("mysql"), "mariadb": _MYSQL.format("mariadb")}
"""How to come by a driver, by SQLAlchemy's name of the server."""


class HeldError(BstuneError):
    """Another session of the server holds the lock of the writer."""


def open_server(url: URL, *, create: bool) -> BaseStorage:
    """Open Optuna's tables in a server, made first if there are none and `create`."""
    from optuna.storages import RDBStorage

    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna fills in {SCHEMA_VERSION}.
    return RDBStorage(text, engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_args(url)}, skip_table_creation=not create)


def _connect_args(url: URL) -> dict[str, Any]:
    """Keep a server that is not there from being waited for."""
    return {"connect_timeout": CONNECT_S} if "connect_timeout" not in url.query else {}


class ServerLock:
    """The lock of the one writer, held by the server for as long as the connection lives."""

    def __init__(self, url: URL) -> None:
        """Take the lock.

        Raises:
            HeldError: Somebody else has it.
        """
        import sqlalchemy

        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_connect_args(url))
        self._connection: Connection = self._engine.connect()
        number = zlib.crc32(f"bstune {url.database}".encode())
        if url.get_backend_name() == "postgresql":
            taken = self._connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:number)"), {"number": number}).scalar()
        else:
            taken = self._connection.execute(sqlalchemy.text("SELECT GET_LOCK(:name, 0)"), {"name": f"bstune {number}"}).scalar()
        self._connection.commit()
        if not taken:
            self.close()
            raise HeldError("another session of the database server holds the lock of the writer")

    def close(self) -> None:
        """Let go."""
        self._connection.close()
        self._engine.dispose()
