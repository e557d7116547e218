"""Storages beside the SQLite file: a journal for network file systems, a database server, and attributes of another version."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import optuna
import pytest
from bstune.tuner import storage as storage_module
from bstune.tuner import study as study_module
from bstune.tuner.journal import cut_torn_line
from bstune.tuner.storage import locate, open_storage, read_storage
from bstune.tuner.study import find_study, make_study

SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate; best at 0.01."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
            trial.report(val_loss=loss + 0.001 * trial.seed, samples=samples)


def search(url: str, **changes: Any) -> bstune.SearchResult:
    """Search the formula in this process."""
    arguments: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": 3, "storage": url}
    return bstune.search(formula, **(arguments | changes))


def timeless(records: tuple[Any, ...]) -> list[Any]:
    """What does not depend on the clock."""
    return [dataclasses.replace(record, seconds=None) for record in records]


# --- a journal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal that does not exist yet."""
    return tmp_path / "runs.journal"


def test_a_journal_holds_what_sqlite_holds(journal: Path, tmp_path: Path) -> None:
    """The same search, the same records, read back by the next call and by plain Optuna; nothing else is left."""
    first = search(f"journal:///{journal}")
    assert timeless(first.records) == timeless(search(f"sqlite:///{tmp_path}/bstune.db").records)
    again = search(f"journal:///{journal}")
    assert again.records == first.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "runs.journal"]
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    ordinary = optuna.load_study(study_name="formula", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in ordinary.trials] == [record.number for record in first.records]


@pytest.mark.parametrize("torn", [b'{"op_code":4,"worker', b'{"op_code":4}', b"\x00\x00\x00\n", b'{"op_code"\n'])
def test_a_torn_last_line_is_cut(journal: Path, torn: bytes) -> None:
    """What a killed writer left of a line is no part of the record; left there, it would spoil the line that is written next."""
    whole = search(f"journal:///{journal}").records
    before = journal.read_bytes()
    journal.write_bytes(before + torn)
    assert search(f"journal:///{journal}").records == whole
    assert journal.read_bytes()[: len(before)] == before
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


def test_a_long_journal_is_read_from_its_end(journal: Path) -> None:
    """Also where its last line is longer than what is read at once."""
    line = json.dumps({"a": "b" * 200_000}).encode() + b"\n"
    journal.write_bytes(line * 2 + line[:150_000])
    assert cut_torn_line(journal) == 150_000
    assert journal.read_bytes() == line * 2


def test_a_stale_lock_costs_seconds_and_not_half_a_minute(journal: Path) -> None:
    """Optuna's lock, left by a writer that was killed, is removed by the one who may."""
    search(f"journal:///{journal}")
    (journal.parent / "runs.journal.lock").touch()
    start_s = time.monotonic()
    search(f"journal:///{journal}", budget=4)
    assert time.monotonic() - start_s < 15
    assert sorted(path.name for path in journal.parent.iterdir()) == ["runs.journal"]


def test_a_journal_has_one_writer_and_readers_beside(journal: Path) -> None:
    """As a SQLite file has."""
    with open_storage(f"journal:///{journal}") as storage:
        make_study(storage, "digits")
        with pytest.raises(bstune.StudyError, match=rf"in use: process {os.getpid()} on"):
            open_storage(f"journal:///{journal}")
        with read_storage(f"journal:///{journal}") as reader:
            assert reader.names() == ["digits"]
            assert str(os.getpid()) in str(reader.writer())


def test_a_file_that_is_no_journal_is_left_alone(journal: Path) -> None:
    """It is named, and not touched."""
    journal.write_text("my thesis\n" * 10)
    for attempt in (open_storage, read_storage):
        with pytest.raises(bstune.StudyError, match="is not a journal of Optuna"):
            attempt(f"journal:///{journal}")
    assert journal.read_text() == "my thesis\n" * 10
    assert [path.name for path in journal.parent.iterdir()] == ["runs.journal"]


def test_a_journal_that_is_damaged_inside_is_said(journal: Path) -> None:
    """Only the end can be mended without losing what came after."""
    search(f"journal:///{journal}")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[5] = b"{{{\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(bstune.StudyError, match="the journal is damaged"):
        search(f"journal:///{journal}")


# --- a server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [open_storage, read_storage])
def test_a_server_that_is_not_there_is_said_without_the_password(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the message nor what is stored of the URL holds it, whether the driver or the server is missing."""
    for missing in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
        monkeypatch.setitem(sys.modules, missing, None)
    for url, said in (("postgresql://me:s3cret@127.0.0.1:1/runs", "'psycopg"), ("mysql://me:s3cret@127.0.0.1:1/runs", "mysqlclient")):
        with pytest.raises(bstune.StudyError, match=f"not installed. Install it: pip install {said}") as caught:
            attempt(url)
        assert "s3cret" not in str(caught.value)
        assert "me:***@127.0.0.1" in str(caught.value)
        assert "s3cret" not in repr(locate(url))


def test_what_a_driver_repeats_is_not_shown() -> None:
    """A server's message may hold the very password that it refuses."""
    location = locate("postgresql://me:s3cret@127.0.0.1:1/runs")
    error = storage_module._study_error(OSError("what is s3cret doing here"), location)
    assert "what is *** doing here" in str(error)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this test's own, on loopback."""
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed: pip install 'psycopg[binary]'")
    programs = [
        shutil.which(name) or next(iter(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
        for name in ("initdb", "postgres")
    ]
    if None in programs:
        pytest.skip("PostgreSQL is not installed here")
    folder = Path("/tmp") / f"bstune-pg-{os.getpid()}"
    folder.mkdir()
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = str(folder / "data")
    subprocess.run([*as_user, str(programs[0]), "-D", data, "-U", user, "--auth=trust"], check=True, capture_output=True, cwd="/")
    process = subprocess.Popen(
        [*as_user, str(programs[1]), "-D", data, "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        wait_for_port(port)
        yield f"postgresql://{user}:s3cret@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            time.sleep(0.5)
            return
        time.sleep(0.1)


def test_a_server_holds_what_a_file_holds(server: str, tmp_path: Path) -> None:
    """The same records; the second search is refused while the first runs; the password is stored nowhere."""
    first = search(server)
    assert timeless(first.records) == timeless(search(f"sqlite:///{tmp_path}/bstune.db").records)
    assert search(server).records == first.records
    assert "s3cret" not in first.to_json()
    assert "s3cret" not in repr(first)
    with open_storage(server) as storage:
        study = find_study(storage, "formula")
        assert study is not None
        assert "s3cret" not in json.dumps(study.attributes)
        with pytest.raises(bstune.StudyError, match="in use"):
            search(server)
        with read_storage(server) as reader:
            assert reader.writer() == "another process uses it"
    with read_storage(server) as reader:
        assert reader.writer() is None


# --- attributes of another version --------------------------------------------------------------------------------


def test_an_older_study_is_upgraded_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version by version, in memory; the writer then stores the new version."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    first = search(url)

    def rename(attributes: dict[str, Any]) -> dict[str, Any]:
        return {**attributes, "renamed": attributes["stopped_by"]}

    monkeypatch.setattr(study_module, "SCHEMA", study_module.SCHEMA + 1)
    monkeypatch.setattr(study_module, "UPGRADES", {study_module.SCHEMA - 1: rename})
    with read_storage(url) as storage:
        study = find_study(storage, "formula")
        assert study is not None
        assert study.attributes["renamed"] == first.stopped_by
        assert study.attributes["bstune_schema"] == study_module.SCHEMA
    search(url)
    attributes = optuna.load_study(study_name="formula", storage=url).user_attrs
    assert attributes["bstune_schema"] == study_module.SCHEMA
    assert attributes["renamed"] == first.stopped_by
