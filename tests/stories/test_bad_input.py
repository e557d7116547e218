"""Whatever is handed in: a document, a space, an option, a storage.

Either it is used as it says, or one clear error says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tests.stories.fuzzed import JSON, QUICK, SPACE, formula
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.errors import BstuneError
from bstune.tuner.core.results import SearchResult
from bstune.tuner.core.specs import Plan
from bstune.tuner.report.text import probe_text, search_text
from bstune.tuner.report.trials import trial_line
from bstune.tuner.show import Shown, show
from bstune.tuner.strategy.space import make_space
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.location import locate
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.testing.tables import synthetic
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st


def answer_or_message(call: Callable[[], Any]) -> Any:
    """Return what the call returns, or what the one error that it may raise says."""
    try:
        return call()
    except BstuneError as error:
        return str(error)


VALUES = st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats() | st.text(max_size=4)
DIMENSION = VALUES | st.lists(VALUES, max_size=4) | st.tuples(VALUES, VALUES) | st.tuples(VALUES, VALUES, VALUES)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["batch_size", "learning_rate", "weight_decay", "momentum", "seed", "9x"]),
        DIMENSION,
        max_size=3,
    )
)
@example({"batch_size": (1, 10**7)})
@example({"learning_rate": (5e-324, 1e308)})
def test_a_space_is_searched_or_refused(space: dict[str, Any]) -> None:
    """What is accepted gives settings that lie within it."""
    facts = synthetic().facts()
    try:
        plan = check_search(space=space).plan
        made = make_space(plan, facts, None)
    except BstuneError:
        return
    assert made.batches
    assert all(batch >= 1 for batch in made.batches)
    assert made.learning_rates
    assert all(0 < rate < float("inf") for rate in made.learning_rates)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from([f for f in Plan.__dataclass_fields__ if f != "space"]), VALUES, min_size=1, max_size=3
    )
)
def test_an_option_is_used_or_refused(options: dict[str, Any]) -> None:
    """All of them, with anything."""
    with contextlib.suppress(BstuneError):
        check_search(**options)


@QUICK
@given(
    st.lists(
        st.sampled_from(
            [
                "--budget",
                "--jobs",
                "--space",
                "--goal",
                "--timeout",
                "--engine",
                "--ray-address",
                "--trial-timeout",
                "--storage",
            ]
        )
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
        max_size=5,
    )
)
def test_a_command_line_is_never_a_traceback(tmp_path: Path, words: list[str]) -> None:
    """Wrong usage is exit 2, a missing file exit 1."""
    from bstune.cli import main

    with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        result = CliRunner().invoke(main, ["search", "missing.py", *words])
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)


@QUICK
@given(st.text(max_size=20))
@example("sqlite:///a?b=c&d")
@example("postgresql://u:p@[::1")
@example("mysql://:secret@")
def test_a_storage_url_is_found_or_refused(url: str) -> None:
    """Nothing is opened yet."""
    answer = answer_or_message(lambda: locate(url))

    assert not isinstance(answer, str) or "secret" not in answer


MODEL = b"""
import bstune
@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)
"""
PIECES = st.binary(max_size=3) | st.sampled_from(
    [
        b"exit()\n",
        b"1/0\n",
        b"objective = 3\n",
        b"raise MemoryError\n",
        b"\t",
        b'"""',
        b"# coding: rot13\n",
        b"-",
        b"None",
        b"async ",
        b"\0",
    ]
)


@QUICK
@given(st.integers(0, len(MODEL)), st.integers(0, 40), PIECES)
@example(0, 0, b"exit()\n")
@example(len(MODEL), 0, b"1/0\n")
@example(MODEL.index(b"trial.report"), 0, b"exit()\n        ")
def test_a_model_file_is_searched_or_refused(tmp_path: Path, at: int, cut: int, piece: bytes) -> None:
    """A part of it replaced by another: it is run as it says, or one error says whose mistake it is."""
    (tmp_path / "model.py").write_bytes(MODEL[:at] + piece + MODEL[at + cut :])
    arguments: dict[str, Any] = {"isolation": "none", "budget": 2, "space": SPACE, "storage": "sqlite:///:memory:"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])
        answer = answer_or_message(lambda: bstune.search(tmp_path / "model.py", **arguments))
    assert isinstance(answer, SearchResult | str)


@QUICK
@given(st.text(max_size=8) | st.sampled_from(["a" * 300 + ".py", "/" * 5000, "memory.py", ".", "a\0.py", "\ud800.py"]))
def test_a_name_of_a_model_is_found_or_refused(tmp_path: Path, name: str) -> None:
    """Whatever the name, and also where the file is there but cannot be read."""
    (tmp_path / "memory.py").unlink(missing_ok=True)
    (tmp_path / "memory.py").symlink_to("/proc/self/mem")
    assert isinstance(
        answer_or_message(lambda: bstune.load(tmp_path / name)), bstune.objectives.load.ObjectiveRef | str
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a finished search."""
    path = tmp_path_factory.mktemp("stored") / "bstune.db"
    bstune.search(formula, isolation="none", space=SPACE, budget=2, storage=f"sqlite:///{path}")
    return path


@settings(QUICK, max_examples=30)
@given(st.data(), JSON)
def test_a_study_whose_attributes_were_changed_is_used_or_refused(
    stored: Path, tmp_path: Path, data: st.DataObject, value: Any
) -> None:
    """By another program, or by a hand: those of the study, and those of its trials; whether it is read or goes on."""
    copy = Path(shutil.copy(stored, tmp_path / "bstune.db"))
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        table = data.draw(st.sampled_from(["study_user_attributes", "trial_user_attributes"]))
        keys = sorted(row[0] for row in connection.execute(f"SELECT DISTINCT key FROM {table}"))
        connection.execute(
            f"UPDATE {table} SET value_json = ? WHERE key = ?", (json.dumps(value), data.draw(st.sampled_from(keys)))
        )
        connection.commit()
    shown, more = shown_and_continued(copy)
    assert isinstance(shown, Shown | str)
    assert isinstance(more, SearchResult | str)


@settings(QUICK, max_examples=30)
@given(st.data(), st.binary(min_size=1, max_size=64))
def test_a_damaged_database_is_used_or_refused(
    stored: Path, tmp_path: Path, data: st.DataObject, damage: bytes
) -> None:
    """Some bytes of it replaced, anywhere, or its end lost."""
    content = stored.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    copy = tmp_path / "bstune.db"
    copy.write_bytes(content[:at] + (damage + content[at + len(damage) :] if data.draw(st.booleans()) else b""))
    shown, more = shown_and_continued(copy)
    assert isinstance(shown, Shown | str)
    assert isinstance(more, SearchResult | str)


def test_a_database_whose_damage_is_no_text_is_refused(stored: Path, tmp_path: Path) -> None:
    """SQLite repeats damaged bytes of the schema in what it says, and Python cannot read that."""
    content = stored.read_bytes()
    copy = tmp_path / "bstune.db"
    copy.write_bytes(content.replace(b"CREATE TABLE", b"CREATE \x80\xff\x80\xff\x80"))
    shown, more = shown_and_continued(copy)
    assert isinstance(shown, str)
    assert isinstance(more, str)


def shown_and_continued(path: Path) -> tuple[Shown | str, SearchResult | str]:
    """What comes of showing a study, and then of going on with it: an answer, or the message of the one error."""
    url = f"sqlite:///{path}"
    shown = answer_or_message(lambda: show("formula", storage=url))
    if isinstance(shown, Shown):
        assert shown.headline.isprintable()
        assert shown.result is None or (search_text(shown.result, shown.facts) and shown.result.to_json())
        assert shown.probe is None or probe_text(shown.probe)
        assert all(trial_line(record) for record in shown.records)
    return shown, answer_or_message(
        lambda: bstune.search(formula, isolation="none", space=SPACE, budget=3, storage=url)
    )


def test_nothing_is_written_by_refusing(tmp_path: Path) -> None:
    """A storage that is refused stays as it was."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    with open_storage(url) as storage:
        make_study(storage, "digits").set(bstune_schema=99)
    before = (tmp_path / "bstune.db").read_bytes()
    with read_storage(url) as storage, pytest.raises(BstuneError):
        find_study(storage, "digits")
    assert (tmp_path / "bstune.db").read_bytes() == before
