"""Storages beside the SQLite file.

A journal for network file systems, and a database server.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bstune
import optuna
import pytest
from bstune.tests.studies.written import AXES, finished, opened, report, run_one, spec
from bstune.tuner.studies import database_server as database_server_module
from bstune.tuner.studies import journal as journal_module
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.catalog import find_study, forget_study, make_study
from bstune.tuner.studies.journal import cut_torn_line
from bstune.tuner.studies.location import locate
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.studies.storage_errors import study_error

pytestmark = pytest.mark.usefixtures("formulas_take_no_time")
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


@pytest.mark.parametrize("torn", [b'{"op_code":4,"worker', b'{"op_code":4}'])
def test_a_torn_last_line_is_cut(journal: Path, torn: bytes) -> None:
    """What a killed writer left of a line is not part of the record, and would spoil the next line if it stayed."""
    whole = search(f"journal:///{journal}").records
    before = journal.read_bytes()
    journal.write_bytes(before + torn)
    assert search(f"journal:///{journal}").records == whole
    assert journal.read_bytes()[: len(before)] == before
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x00\x00\n",
        b"\x00\x00\x00",
        b'{"op_code"\n' * 12,
        b'{"op_code":11,"worker_id":"a"}\n',
        b"[" * 200_000 + b"\n",
    ],
)
def test_whole_lines_that_are_damaged_are_not_cut(journal: Path, damage: bytes) -> None:
    """A killed writer leaves half a line. Whatever else is there was made by others, and may be their only copy."""
    search(f"journal:///{journal}")
    with open(journal, "ab") as file:
        file.write(damage)
    before = journal.read_bytes()
    for attempt in (open_storage, read_storage):
        with pytest.raises(bstune.StudyError, match="the journal is damaged at line"):
            attempt(f"journal:///{journal}")
    assert journal.read_bytes() == before
    assert [path.name for path in journal.parent.iterdir()] == ["runs.journal"]


def test_a_long_journal_is_read_from_its_end(journal: Path) -> None:
    """Also where its last line is longer than what is read at once."""
    line = json.dumps({"a": "b" * 200_000}).encode() + b"\n"
    journal.write_bytes(line * 2 + line[:150_000])
    assert cut_torn_line(journal) == 150_000
    assert journal.read_bytes() == line * 2


def test_the_lock_of_a_write_that_was_killed_costs_nothing(journal: Path) -> None:
    """It says whose it is, and the one writer may remove it."""
    search(f"journal:///{journal}")
    code = "import os, pathlib; from bstune.tuner.studies.journal import _WriteLock; "
    code += f"_WriteLock(pathlib.Path({str(journal)!r})).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (journal.parent / "runs.journal.lock").exists()
    search(f"journal:///{journal}", budget=4)
    assert sorted(path.name for path in journal.parent.iterdir()) == ["runs.journal"]


@pytest.mark.parametrize("content", [b"", b"# This file is automatically @generated by Poetry.\n"])
def test_the_lock_of_another_program_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """`journal:///poetry` would be locked by `poetry.lock`, which may well be somebody's."""
    monkeypatch.setattr(journal_module, "PATIENCE_S", 0.1)
    (tmp_path / "poetry.lock").write_bytes(content)
    with pytest.raises(bstune.StudyError, match=r"poetry\.lock keeps bstune from writing .* was not made by bstune"):
        search(f"journal:///{tmp_path}/poetry")
    assert (tmp_path / "poetry.lock").read_bytes() == content


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


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_slashes_name_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """They would name a host: nothing is made in the root folder, and nothing is kept in memory unsaid."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bstune.StudyError, match=f"names no file: expected {kind}:///FILE, with three slashes"):
        open_storage(f"{kind}://runs.db")


def test_a_journal_that_is_damaged_inside_is_said(journal: Path) -> None:
    """Only the end can be repaired without losing what came after."""
    search(f"journal:///{journal}")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[5] = b"{{{\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(bstune.StudyError, match="the journal is damaged"):
        search(f"journal:///{journal}")


# --- a server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [open_storage, read_storage])
def test_a_server_that_is_not_there_is_said_without_the_password(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the message nor what is stored of the URL contains it, whether the driver or the server is missing."""
    for missing in ("psycopg", "psycopg2", "pymysql", "MySQLdb"):
        monkeypatch.setitem(sys.modules, missing, None)
    for url, said in (
        ("postgresql://me:s3cret@127.0.0.1:1/runs", "'psycopg"),
        ("mysql://me:s3cret@127.0.0.1:1/runs", "mysqlclient"),
    ):
        with pytest.raises(bstune.StudyError, match=f"not installed. Install it: pip install {said}") as caught:
            attempt(url)
        assert "s3cret" not in str(caught.value)
        assert "me:***@127.0.0.1" in str(caught.value)
        assert "s3cret" not in repr(locate(url))


def test_what_a_driver_repeats_is_not_shown() -> None:
    """A server's message may contain the very password that it refuses."""
    location = locate("postgresql://me:s3cret@127.0.0.1:1/runs")
    error = study_error(OSError("what is s3cret doing here"), location)
    assert "what is *** doing here" in str(error)


def program(name: str, *places: str) -> str:
    """Find a program of a server; the test is skipped where there is none."""
    found = shutil.which(name) or next(
        (str(path) for place in places for path in Path("/").glob(f"{place}/{name}")), None
    )
    if found is None:
        pytest.skip(f"the database server is not installed here: there is no program {name}")
    return found


IDLE_S = 5
"""After so long a silence the servers end a connection.

It is longer than a busy machine takes from one statement to the next.
"""


class Server:
    """A database server of a test's own, on loopback, that soon ends connections on which nothing is said."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Make its files."""
        user, self._as_user = getpass.getuser(), list[str]()
        if kind == "postgresql" and os.getuid() == 0:  # It will not run as root.
            user, self._as_user = "postgres", ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, user, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        make, self._serve, login = getattr(self, f"_{kind}")(folder, user)
        subprocess.run([*self._as_user, *make], check=True, capture_output=True, cwd="/")
        self.url = f"{login}:s3cret@127.0.0.1:{self._port}/runs"

    def _postgresql(self, folder: Path, user: str) -> tuple[list[str], list[str], str]:
        initdb, postgres = (program(name, "usr/lib/postgresql/*/bin") for name in ("initdb", "postgres"))
        data = str(folder / "data")
        (folder / "password").write_text("s3cret")
        make = f"{initdb} -D {data} -U {user} --auth=scram-sha-256 --pwfile={folder}/password"
        make += f" && echo 'CREATE DATABASE runs' | {postgres} --single -D {data} postgres"
        serve = [postgres, "-D", data, "-p", str(self._port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
        return ["sh", "-c", make], [*serve, "-c", f"idle_session_timeout={IDLE_S}s"], f"postgresql://{user}"

    def _mysql(self, folder: Path, user: str) -> tuple[list[str], list[str], str]:
        install, mariadbd = program("mariadb-install-db", "usr/bin"), program("mariadbd", "usr/sbin")
        options = ["--no-defaults", f"--datadir={folder}/data", f"--user={user}"]
        start = folder / "start.sql"
        start.write_text(
            "CREATE DATABASE IF NOT EXISTS runs;\nCREATE USER IF NOT EXISTS me IDENTIFIED BY 's3cret';\nGRANT ALL ON "
            "runs.* TO me;\n"
        )
        listen = [
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            f"--socket={folder}/socket",
            f"--init-file={start}",
        ]
        make = [install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
        return make, [mariadbd, *options, *listen, f"--wait-timeout={IDLE_S}"], "mysql+pymysql://me"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [*self._as_user, *self._serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        deadline_s = time.monotonic() + 30
        while "There are no studies yet" not in (answer := self._answer()) and answer:
            assert time.monotonic() < deadline_s, answer
            time.sleep(0.1)

    def _answer(self) -> str:
        """Return what it answers a reader: nothing where there are studies."""
        try:
            read_storage(self.url).close()
        except bstune.StudyError as error:
            return str(error)
        return ""

    def stop(self) -> None:
        """End it, whoever is connected."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)


@pytest.fixture(scope="module", params=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """PostgreSQL, and MariaDB for MySQL."""
    driver = {"postgresql": "psycopg", "mysql": "pymysql"}[request.param]
    pytest.importorskip(driver, reason=f"the driver of the database is not installed: {driver}")
    with tempfile.TemporaryDirectory(
        prefix="bstune-", dir="/tmp"
    ) as folder:  # Not in pytest's folder, which is closed to other users.
        server = Server(request.param, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def test_a_server_holds_what_a_file_holds(server: Server, tmp_path: Path) -> None:
    """The same records, to the last bit; the password is stored nowhere."""
    first = search(server.url)
    assert timeless(first.records) == timeless(search(f"sqlite:///{tmp_path}/bstune.db").records)
    assert search(server.url).records == first.records
    assert "s3cret" not in first.to_json()
    assert "s3cret" not in repr(first)
    with read_storage(server.url) as reader:
        study = find_study(reader, "formula")
        assert study is not None
        assert "s3cret" not in json.dumps(study.attributes)


def test_one_transaction_writes_what_optunas_own_calls_write(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a server and in a file: the same trials, once however often they are said, and nothing of one that is over."""
    own, stored = trial_writes.DATABASES, list[Any]()
    for url in (server.url, f"sqlite:///{tmp_path}/bstune.db"):
        for databases in (own, ()):
            monkeypatch.setattr(trial_writes, "DATABASES", databases)
            with opened(url, f"written-{len(databases)}") as study:
                whole, lost = run_one(study), study.begin(spec(learning_rate=0.5), AXES)
                lost = study.report(report(lost.number, (64, 320), math.nan))
                backend, trial_id = study.storage.backend, study._ids[lost.number]
                for loss in (0.5, math.inf, 0.25):
                    trial_writes.write_trial(backend, trial_id, {640: loss}, {"samples": 640, "noise": [loss > 0.3]})
                study.finish(finished(lost, state="failed", val_loss=None, cause="killed"))
                with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
                    trial_writes.write_trial(backend, trial_id, {641: 0.5}, {"late": True})
                with pytest.raises(KeyError):
                    trial_writes.write_trial(backend, 10**6, attributes={"nowhere": True})
                trials = backend.get_all_trials(study._id)
                forget_study(study)
            dicts = ("params", "distributions", "user_attrs", "intermediate_values")
            stored.append(
                [[t.state, t.values, *(repr(sorted(getattr(t, name).items())) for name in dicts)] for t in trials]
            )
            assert [trial.number for trial in trials] == [whole.number, lost.number] == [0, 1]
    assert stored == [stored[0]] * 4


def test_trials_that_are_made_at_the_same_time_have_numbers_of_their_own(server: Server, tmp_path: Path) -> None:
    """Others may add trials to a study of bstune, such as Optuna's own workers."""
    new = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    for url in (server.url, f"sqlite:///{tmp_path}/bstune.db"):
        with opened(url, "together") as study, ThreadPoolExecutor(4) as threads:
            made = [threads.submit(trial_writes.create_trial, study.storage.backend, study._id, new) for _ in range(12)]
            assert sorted(each.result()[1] for each in made) == list(range(12))


def test_a_server_has_one_writer_however_long_it_is_silent(server: Server) -> None:
    """A second search is refused while the first runs, also after the server has ended idle connections."""
    with open_storage(server.url) as storage:
        study = make_study(storage, "silent")
        time.sleep(1.5 * IDLE_S)
        with pytest.raises(bstune.StudyError, match="in use"):
            search(server.url)
        with read_storage(server.url) as reader:
            assert reader.writer() == "another process uses it"
        study.set(heard=True)
    with read_storage(server.url) as reader:
        assert reader.writer() is None


def test_tables_of_another_program_are_not_added_to(server: Server) -> None:
    """A table `studies` of its own is no reason for Optuna to make the others."""
    import sqlalchemy

    search(server.url)
    url = server.url.replace("postgresql:", "postgresql+psycopg:")  # SQLAlchemy 2.0 would look for psycopg2.
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def run(*statements: str) -> list[str]:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))
            return sorted(sqlalchemy.inspect(connection).get_table_names())

    before = run("ALTER TABLE studies RENAME TO aside", "CREATE TABLE studies (id INTEGER, title VARCHAR(20))")
    try:
        for attempt in (open_storage, read_storage):
            with pytest.raises(bstune.StudyError, match=r"database of something else \(tables .*studies"):
                attempt(server.url)
        assert run() == before
    finally:
        run("DROP TABLE studies", "ALTER TABLE aside RENAME TO studies")


def test_a_lock_that_the_server_has_ended_ends_the_search(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted server knows nothing of it: from then on another search could write, too."""
    monkeypatch.setattr(database_server_module, "LOOK_S", 0.0)
    storage = open_storage(server.url)
    server.stop()
    server.start()
    with pytest.raises(bstune.StudyError, match="has lost the lock of this search"):
        storage.names()
    with pytest.raises(bstune.StudyError, match="has lost the lock of this search"):
        storage.close()
    open_storage(server.url).close()


def test_a_server_that_goes_away_is_said_and_the_search_goes_on_when_it_is_back(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One error, and no more; what was finished is stored."""
    finished = []

    def stop_after_two(progress: Any) -> None:
        if progress.kind == "finish":
            finished.append(progress.trial)
            if len(finished) == 2:
                server.stop()

    with pytest.raises(
        bstune.StudyError, match=r"no database server answers there|the database server went away"
    ) as caught:
        search(server.url, study="away", callbacks=[stop_after_two])
    assert "s3cret" not in str(caught.value)
    assert caplog.messages == []
    server.start()
    assert list(search(server.url, study="away").records[:2]) == finished[:2]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (":s3cret@", ":wr0ng@", "refuses the user or the password"),
        ("/runs", "/walks", "the server has no such database"),
        ("127.0.0.1", "nowhere.invalid", "there is no such host"),
    ],
)
def test_a_server_that_refuses_is_said(server: Server, old: str, new: str, said: str) -> None:
    """In the words of either server, one error says what to do."""
    for attempt in (open_storage, read_storage):
        with pytest.raises(bstune.StudyError, match=said):
            attempt(server.url.replace(old, new))
