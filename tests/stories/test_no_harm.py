"""Whatever lies around, and whatever is typed: bstune leaves it as it was, or says in one message why not to begin."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import stat
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from bstune.cli import main
from bstune.objectives import seal
from bstune.tuner.testing.fake_device import known_probe
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

LOOP = """
import bstune

@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)
"""
NET = """
import bstune, torch

def data(seed):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

objective = bstune.Supervised(
    model=lambda: torch.nn.Linear(4, 1),
    train_data=data(0),
    val_data=data(1),
    loss=torch.nn.functional.mse_loss,
    epochs=4,
    name="formula",
)
"""
SEARCH = (
    "--isolation",
    "none",
    "--space",
    "batch_size=16",
    "--space",
    "learning_rate=0.001,0.01",
    "--budget",
    "2",
    "--confirm",
    "0",
)
BLOCKED_S = 30.0
pytestmark = pytest.mark.filterwarnings(r"ignore:.*multi-threaded, use of fork\(\):DeprecationWarning")


# --- what may lie around ------------------------------------------------------------------------------------------

TEXTS = {
    "text": b"my notes\n",
    "text without a last newline": b"my notes",
    "empty": b"",
    "lines of JSON": b'{"epoch": 1}\n{"epoch": 2}\n',
    "lines of JSON with operations": b'{"op_code": 99, "worker_id": "x"}\n{"op_code": "create"}\n',
    "JSON": b'{"epoch": 1}',
    "a list": b"[1, 2]\n",
    "almost a database": b"SQLite format 3\0" + b"x" * 184,
}
ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) AS study_id, 'x' AS study_name FROM n"
)
FOREIGN = {
    "notes": "CREATE TABLE notes (t); INSERT INTO notes VALUES ('mine');",
    "notes in write-ahead mode": "PRAGMA journal_mode=WAL; CREATE TABLE notes (t); INSERT INTO notes VALUES ('mine');",
    "studies of something else": "CREATE TABLE studies (id INTEGER PRIMARY KEY, title TEXT); INSERT INTO studies "
    "VALUES (1, 'mine');",
    "studies and trials of something else": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name TEXT);"
    "CREATE TABLE trials (trial_id INTEGER PRIMARY KEY, study_id INTEGER); INSERT INTO studies VALUES (1, 'mine');",
    "a view without an end": f"CREATE VIEW studies AS {ENDLESS};",
    "a table of studies and a view without an end": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name "
    f"TEXT);CREATE VIEW version_info AS {ENDLESS}; CREATE VIEW alembic_version AS {ENDLESS};",
    "a trigger": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name TEXT); CREATE TABLE mine (t); "
    "INSERT INTO mine VALUES (1);CREATE TRIGGER t AFTER INSERT ON studies BEGIN DELETE FROM mine; END;",
    "no tables": "VACUUM;",
}
DATABASES = ("optuna.db", "bstune.db", "optuna with a trigger.db")
JOURNALS = ("optuna.journal", "bstune.journal")
NAMES = (
    "bstune.db",
    "bstune.db.lock",
    "bstune.db-wal",
    "bstune.db-shm",
    "bstune.db-journal",
    "bstune.db.checkpoints-formula",
    "runs.journal",
    "runs.journal.lock",
    "runs.journal.writer.lock",
    "runs.journal.checkpoints-formula",
    "probe.png",
    "bstune",
    "bstune/key",
)
URLS = (
    "sqlite:///bstune.db",
    "journal:///runs.journal",
    "sqlite:///runs.journal",
    "journal:///bstune.db",
    "sqlite:///bstune.db.lock",
    "sqlite:///bstune.db-wal",
    "sqlite:///probe.png",
    "journal:///bstune.db.checkpoints-formula",
)


@dataclass(frozen=True)
class Thing:
    """One thing in the folder: a file, a link, a hard link, a folder or a pipe."""

    kind: str
    content: str | bytes = "text"
    mode: int = 0o644


CONTENTS = st.sampled_from([*TEXTS, *FOREIGN, *DATABASES, *JOURNALS]) | st.binary(min_size=1, max_size=40)
THINGS = (
    st.builds(Thing, st.just("file"), CONTENTS, st.sampled_from([0o644, 0o600, 0o444, 0o666]))
    | st.builds(Thing, st.sampled_from(["link", "hard link"]), CONTENTS)
    | st.builds(Thing, st.sampled_from(["folder", "link to a folder", "link to nothing", "pipe"]))
)
LYING = st.dictionaries(st.sampled_from(NAMES), THINGS, min_size=1, max_size=4)


class Stock(dict[str, bytes]):
    """The contents of files, by name."""

    def __repr__(self) -> str:
        """Say it in a word, since Hypothesis shows what a failed test was given."""
        return "stock"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """Files of all kinds."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "loop.py").write_text(LOOP)
    found = Stock(TEXTS)
    for number, (name, script) in enumerate(FOREIGN.items()):
        path = folder / f"{number}.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        found[name] = path.read_bytes()
    for scheme, name in (
        ("sqlite", "optuna.db"),
        ("journal", "optuna.journal"),
        ("sqlite", "bstune.db"),
        ("journal", "bstune.journal"),
    ):
        path = folder / name
        fill(opened(path, scheme))
        if name.startswith("bstune"):
            search = ("search", str(folder / "loop.py"), *SEARCH, "--storage", f"{scheme}:///{path}")
            assert CliRunner().invoke(main, search).exit_code == 0
        found[name] = path.read_bytes()
    path = Path(shutil.copy(folder / "optuna.db", folder / "trigger.db"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TRIGGER t AFTER INSERT ON studies BEGIN DELETE FROM trials; DELETE FROM trial_params; END;"
        )
    CliRunner().invoke(
        main, ("doctor", "--storage", f"sqlite:///{folder}/bstune.db")
    )  # Loads here what each process would load again.
    found["optuna with a trigger.db"] = path.read_bytes()
    return found


def opened(path: Path, scheme: str) -> optuna.storages.BaseStorage:
    """Open a storage as plain Optuna does."""
    if scheme == "sqlite":
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def fill(storage: optuna.storages.BaseStorage) -> None:
    """Add a study of another program: one trial that has ended, one that has failed and one that runs."""
    study = optuna.create_study(storage=storage, study_name="somebody's")
    study.set_user_attr("note", "mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.ask()
    close(storage)


def close(storage: optuna.storages.BaseStorage) -> None:
    """Let go of a storage's file."""
    storage.remove_session()
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.engine.dispose()


class Place:
    """A folder with things in it, victims outside of it, and what is known of every file."""

    def __init__(self, base: Path, lying: dict[str, Thing], stock: Stock) -> None:
        """Lay the things out."""
        self.base = base
        self.here = base / "here"
        self.outside = base / "outside"
        self.here.mkdir(parents=True)
        self.outside.mkdir()
        self.stock = stock
        self.storages: dict[int, str] = {}
        """By inode: the scheme of a file that is a true storage of Optuna, or `any` for an empty one."""
        for name in sorted(lying):
            path = self.here / name
            path.parent.mkdir(exist_ok=True) if not os.path.lexists(path.parent) else None
            if path.parent.is_dir() and not path.parent.is_symlink():
                self._lay(path, lying[name])

    def _lay(self, path: Path, thing: Thing) -> None:
        victim = self.outside / path.name
        if thing.kind == "file":
            self._write(path, thing)
        elif thing.kind in ("link", "hard link"):
            self._write(victim, thing)
            path.symlink_to(victim) if thing.kind == "link" else path.hardlink_to(victim)
        elif thing.kind in ("folder", "link to a folder"):
            folder = path if thing.kind == "folder" else victim
            (folder / "inner").mkdir(parents=True)
            for name in ("trial-0.pt", "notes.txt", ".hidden", "inner/thesis.txt"):
                (folder / name).write_text("mine")
            path.symlink_to(folder) if thing.kind == "link to a folder" else None
        elif thing.kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(self.outside / "nothing")

    def _write(self, path: Path, thing: Thing) -> None:
        content = thing.content if isinstance(thing.content, bytes) else self.stock[thing.content]
        path.write_bytes(content)
        path.chmod(thing.mode)
        if thing.content in (
            *DATABASES,
            "no tables",
        ):  # Without tables, as a search leaves it that is killed as it begins.
            self.storages[path.stat().st_ino] = "sqlite"
        elif thing.content in JOURNALS:
            self.storages[path.stat().st_ino] = "journal"
        elif not content:
            self.storages[path.stat().st_ino] = "any"

    def contents(self) -> dict[str, tuple[Any, ...]]:
        """Return what lies here and outside: kind, mode, owner, inode, links, and its bytes or where it leads."""
        found: dict[str, tuple[Any, ...]] = {}
        for path in sorted(self.base.rglob("*")):
            at = path.lstat()
            is_file, is_link = stat.S_ISREG(at.st_mode), stat.S_ISLNK(at.st_mode)
            inside = path.read_bytes() if is_file else os.readlink(path) if is_link else None
            found[str(path.relative_to(self.base))] = (
                inside,
                at.st_mode,
                at.st_uid,
                at.st_ino,
                at.st_nlink if is_file else 0,
            )
        return found

    def run(self, command: tuple[str, ...]) -> None:
        """Run a command, and compare what it has left with what was there."""
        before = self.contents()
        url = command[command.index("--storage") + 1] if "--storage" in command else "sqlite:///bstune.db"
        scheme, _, name = url.partition(":///")
        storage = (self.here / name).resolve()
        said, typed = answer(command), " ".join(command)
        after = self.contents()
        for path, was in before.items():
            now = after.get(path)
            assert now is not None, f"{typed}: {path} is gone; {said}"
            if now != was:
                assert now[1:] == was[1:], f"{typed}: {path} was {was[1:]}, is {now[1:]}; {said}"
                assert is_same(self.base / path, storage), f"{typed}: {path} was written to; {said}"
                assert self.storages.get(was[3]) in (scheme, "any"), (
                    f"{typed}: {path} was no storage, and was written to; {said}"
                )
                self._holds_all(was[0], now[0], scheme)
                self.storages[was[3]] = scheme
        new = {self.base / path for path in after.keys() - before.keys()}
        mine = {storage, self.here / "bstune", self.here / "bstune" / "key"}
        assert new <= mine, f"{typed}: left {sorted(map(str, new - mine))}; {said}"
        if storage in new:
            self.storages[storage.stat().st_ino] = scheme

    def _holds_all(self, was: bytes, now: bytes, scheme: str) -> None:
        """Assert that all studies and trials of a storage are still there."""
        if was:
            old, new = (self._read(content, scheme) for content in (was, now))
            lost = {study: rest for study, rest in old.items() if not set(rest) <= set(new.get(study, ()))}
            assert not lost, f"lost of {lost}: now {new}"

    def _read(self, content: bytes, scheme: str) -> dict[str, list[str]]:
        """Return the trials of all studies as text, and the attributes of those that bstune did not make."""
        copy = self.base.with_name("copy")
        copy.write_bytes(content)
        storage = opened(copy, scheme)
        found = {}
        for study in storage.get_all_studies():
            trials = [repr(trial) for trial in storage.get_all_trials(study._study_id)]
            found[study.study_name] = [
                *trials,
                *([] if "bstune_schema" in study.user_attrs else [repr(study.user_attrs)]),
            ]
        close(storage)
        copy.unlink()
        return found


def is_same(path: Path, storage: Path) -> bool:
    """Whether two paths lead to the same file."""
    return path.exists() and storage.exists() and path.samefile(storage)


# --- what is done there -------------------------------------------------------------------------------------------


def answer(command: tuple[str, ...]) -> str:
    """Return what a command says; it succeeds, or there is one message and its exit code."""
    typed = " ".join(command)
    forking = multiprocessing.get_context(
        "fork"
    )  # In a process of its own, since what waits inside of SQLite cannot be interrupted.
    ours, theirs = forking.Pipe(duplex=False)
    process = forking.Process(target=answer_here, args=(command, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(BLOCKED_S), f"{typed} still runs after {BLOCKED_S:g} s"
        exit_code, stdout, stderr, exception = ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()
    said = f"exit {exit_code}, {stdout!r}, {stderr!r} {exception}"
    assert not exception, f"{typed}: {exception}"
    assert exit_code in (0, 1, 2), f"{typed}: {said}"
    assert "Traceback" not in stdout + stderr, f"{typed}: {said}"
    if exit_code != 0 and command[0] not in ("doctor", "seal"):
        assert stdout == "", f"{typed}: {said}"
        assert stderr.count("Error: ") == 1, f"{typed}: {said}"
    return said


def answer_here(command: tuple[str, ...], connection: Any) -> None:
    """Send what a command says: exit code, stdout, stderr, and the traceback of what it should have caught."""
    if command == ("seal",):  # What every search of a file does first.
        with contextlib.suppress(seal._NoKeyError):
            seal._make_key()
        connection.send((0, "", "", ""))
        return
    result = CliRunner().invoke(main, command)
    unforeseen = result.exception is not None and not isinstance(result.exception, SystemExit)
    connection.send(
        (
            result.exit_code,
            result.stdout,
            result.stderr,
            "".join(traceback.format_exception(result.exception)) if unforeseen else "",
        )
    )


FULL = ("search", "../../loop.py", *SEARCH)
PROBE = ("probe", "../../bad.py", "--plot", "probe.png")
JOURNAL = ("--storage", "journal:///runs.journal")
# A probe starts a process of its own, which takes seconds.
OTHERS: tuple[tuple[str, ...], ...] = (
    ("show",),
    ("show", "formula"),
    ("show", "--json"),
    ("doctor",),
    ("search",),
    ("search", "--yes"),
)
VERBS = [FULL] * 10 + [*OTHERS, *OTHERS, ("seal",), PROBE]


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, ...]:
    """Return a command line with a storage, mostly the default or the journal; or make a key, as a search does."""
    verb = draw(st.sampled_from(VERBS))
    if verb == ("seal",):
        return verb
    more = (
        draw(st.sampled_from(["", "", "", "--fresh", "--dry-run", "--study other", "--json"])) if verb == FULL else ""
    )
    url = draw(st.sampled_from([*URLS, *[None, URLS[1]] * 4]))
    return (*verb, *more.split(), *(("--storage", url) if url else ()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above all places, with the models."""
    base = tmp_path_factory.mktemp("places")
    (base / "loop.py").write_text(LOOP)
    (base / "net.py").write_text(NET)
    (base / "bad.py").write_text("objective = 3\n")
    (base / "probe.json").write_text(known_probe(16, step_s=None, n_train_samples=64).to_json())
    return base


def named(value: dict[str, Thing] | list[tuple[str, ...]]) -> str:
    """Return what pytest calls a case."""
    if isinstance(value, dict):
        return " and ".join(f"{name} is a {thing.kind} of {thing.content!s}" for name, thing in value.items())
    return ", ".join(command[0] for command in value)


CASES: list[tuple[dict[str, Thing], list[tuple[str, ...]]]] = [
    ({"bstune.db.lock": Thing("link")}, [FULL]),
    ({"bstune.db.lock": Thing("hard link", "JSON")}, [FULL]),
    ({"bstune.db.lock": Thing("file", "empty")}, [FULL]),
    ({"bstune.db.lock": Thing("pipe")}, [FULL, ("show",), ("doctor",)]),
    ({"poetry.lock": Thing("file", "lines of JSON")}, [(*FULL, "--storage", "sqlite:///poetry")]),
    ({"bstune.db": Thing("pipe")}, [FULL, ("show",), ("doctor",)]),
    ({"bstune.db": Thing("link to nothing")}, [("doctor",), ("show",), FULL, FULL]),
    ({"bstune.db": Thing("file", "studies of something else")}, [("show",), ("doctor",), ("search",), FULL]),
    ({"bstune.db": Thing("file", "studies and trials of something else")}, [("show",), ("doctor",), ("search",), FULL]),
    ({"bstune.db": Thing("file", "a trigger")}, [("show",), ("doctor",), FULL]),
    ({"bstune.db": Thing("file", "a view without an end")}, [FULL]),
    ({"bstune.db": Thing("file", "a view without an end")}, [("show",)]),
    ({"bstune.db": Thing("file", "a table of studies and a view without an end")}, [FULL]),
    ({"bstune.db": Thing("file", "notes in write-ahead mode")}, [("show",), ("doctor",), FULL]),
    ({"bstune.db": Thing("file", "optuna with a trigger.db")}, [FULL]),
    ({"bstune.db": Thing("file", "optuna.db", 0o444)}, [("show",), ("doctor",), FULL, FULL, (*FULL, "--fresh")]),
    ({"bstune.db": Thing("link", "bstune.db")}, [("show",), ("search",), FULL]),
    ({"bstune.db": Thing("file", "bstune.db"), "bstune.db-wal": Thing("file")}, [("show",), ("doctor",), FULL]),
    ({"bstune.db": Thing("file", "bstune.db"), "bstune.db-journal": Thing("file")}, [("show",), ("doctor",), FULL]),
    ({"bstune.db": Thing("file", "bstune.db"), "bstune.db-shm": Thing("file")}, [("show",), ("doctor",), FULL]),
    ({"bstune.db-wal": Thing("link"), "bstune.db-journal": Thing("hard link")}, [FULL]),
    ({"runs.journal": Thing("file", "text without a last newline")}, [(*FULL, *JOURNAL), ("doctor", *JOURNAL)]),
    ({"runs.journal": Thing("file", "JSON")}, [(*FULL, *JOURNAL), ("show", *JOURNAL)]),
    ({"runs.journal": Thing("file", "lines of JSON")}, [("show", *JOURNAL), (*FULL, *JOURNAL)]),
    ({"runs.journal": Thing("file", "lines of JSON with operations")}, [("show", *JOURNAL), (*FULL, *JOURNAL)]),
    ({"runs.journal": Thing("file", "bstune.journal"), "runs.journal.lock": Thing("file")}, [(*FULL, *JOURNAL)]),
    ({"runs.journal": Thing("pipe")}, [("show", *JOURNAL), (*FULL, *JOURNAL)]),
    ({"runs.journal.writer.lock": Thing("link", "empty")}, [(*FULL, *JOURNAL)]),
    ({"runs.journal": Thing("file", "optuna.journal", 0o600)}, [(*FULL, *JOURNAL), (*FULL, *JOURNAL)]),
    (
        {"bstune.db": Thing("folder"), "runs.journal": Thing("link to a folder")},
        [FULL, (*FULL, *JOURNAL), ("doctor",), ("show",)],
    ),
    ({"bstune": Thing("link to a folder")}, [("seal",)]),
    ({"bstune": Thing("folder"), "bstune/key": Thing("link", "empty")}, [("seal",)]),
    ({"bstune.db": Thing("file", "text")}, [PROBE]),
]


def check_harmless(base: Path, stock: Stock, lying: dict[str, Thing], typed: list[tuple[str, ...]]) -> None:
    """Type commands where these things lie: each leaves every byte, mode and link, here and outside, or refuses.

    A true storage that is named keeps all its studies and trials.
    """
    folder = base / "place"
    shutil.rmtree(folder, ignore_errors=True)
    place = Place(folder, lying, stock)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.here)
        patch.setenv("XDG_STATE_HOME", str(place.here))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        patch.delenv("BSTUNE_STORAGE", raising=False)
        for command in typed:
            place.run(command)


@pytest.mark.parametrize(("lying", "typed"), CASES, ids=lambda value: named(value))
def test_what_was_there_stays_as_it_was(
    base: Path, stock: Stock, lying: dict[str, Thing], typed: list[tuple[str, ...]]
) -> None:
    """What is known to go wrong with tools that write beside other people's files."""
    check_harmless(base, stock, lying, typed)


@settings(
    max_examples=50,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # A case is small as it is, and one that hangs would be tried a hundred times.
    suppress_health_check=[HealthCheck.too_slow],
)
@given(LYING, st.lists(commands(), min_size=1, max_size=3))
def test_whatever_lies_there_stays_as_it_was(
    base: Path, stock: Stock, lying: dict[str, Thing], typed: list[tuple[str, ...]]
) -> None:
    """And what nobody has thought of."""
    note(f"in a folder with {lying}: {typed}")
    check_harmless(base, stock, lying, typed)


@pytest.mark.parametrize(
    "thing",
    [Thing("link to a folder"), Thing("folder"), Thing("file"), Thing("link"), Thing("pipe"), Thing("link to nothing")],
    ids=lambda thing: thing.kind,
)
def test_a_folder_that_bears_the_name_of_checkpoints_is_left_alone(base: Path, stock: Stock, thing: Thing) -> None:
    """A model that bstune trains leaves checkpoints beside the storage while it runs."""
    options = ("--space", "batch_size=8,16", "--budget", "3", "--confirm", "0", "--device", "cpu")
    check_harmless(
        base,
        stock,
        {"bstune.db.checkpoints-formula": thing},
        [("search", "../../net.py", "--probe", "../../probe.json", *options)],
    )


def test_the_check_sees_harm(base: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of harm, done by a stand-in for a command, is found; so is a storage that has lost a trial."""
    harm: dict[str, Any] = {
        "is gone": lambda here: (here / "runs.journal").unlink(),
        "was written to": lambda here: (here / "runs.journal").write_text("other"),
        r"was \(": lambda here: (here / "runs.journal").chmod(0o600),
        "left": lambda here: (here / "new").touch(),
        "lost of": lambda here: shorten(here / "bstune.db"),
    }
    for number, (said, do) in enumerate(harm.items()):
        place = Place(
            base / f"harm{number}", {"runs.journal": Thing("file"), "bstune.db": Thing("file", "optuna.db")}, stock
        )
        monkeypatch.setitem(globals(), "answer", lambda _, do=do, place=place: str(do(place.here)))
        with pytest.raises(AssertionError, match=said):
            place.run(("show",))


def shorten(path: Path) -> None:
    """Delete a trial of another program's study."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM trials WHERE number = 1")
        connection.commit()
