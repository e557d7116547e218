"""Whatever lies around, and whatever is typed: bstune leaves it as it was, or says in one message why not to begin."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bstune.cli import main
from bstune.tests.stories import places
from bstune.tests.stories.places import (
    FOREIGN,
    LOOP,
    LYING,
    NET,
    SEARCH,
    TEXTS,
    URLS,
    Place,
    Stock,
    Thing,
    fill,
    opened,
)
from bstune.tuner.testing.fake_device import known_probe
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings(r"ignore:.*multi-threaded, use of fork\(\):DeprecationWarning")
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


@pytest.fixture(scope="module", autouse=True)
def _little_patience() -> Iterator[None]:
    """A lock of a journal that nobody gives back is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bstune.tuner.studies.journal.PATIENCE_S", 0.2)
        yield


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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above all places, with the models."""
    base = tmp_path_factory.mktemp("places")
    (base / "loop.py").write_text(LOOP)
    (base / "net.py").write_text(NET)
    (base / "bad.py").write_text("objective = 3\n")
    (base / "probe.json").write_text(known_probe(16, step_s=None, n_train_samples=64).to_json())
    return base


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
    max_examples=30,
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
def test_a_folder_that_bears_the_name_of_checkpoints_is_left_alone(
    base: Path, stock: Stock, thing: Thing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that bstune trains leaves checkpoints beside the storage while it runs."""
    # In this process: workers of a forked one would each load torch anew.
    monkeypatch.setattr(places, "answer", lambda command: places.checked(command, *places.outcome_here(command)))
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
        monkeypatch.setattr(places, "answer", lambda _, do=do, place=place: str(do(place.here)))
        with pytest.raises(AssertionError, match=said):
            place.run(("show",))


def shorten(path: Path) -> None:
    """Delete a trial of another program's study."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM trials WHERE number = 1")
        connection.commit()
