"""Whatever is handed in: a document, a space, an option, a storage. Either it is used as it says, or one clear error says what is wrong."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.arguments import check_search
from bstune.tuner.errors import BstuneError
from bstune.tuner.plan import Plan
from bstune.tuner.results import ProbeResult, SearchResult
from bstune.tuner.space import make_space
from bstune.tuner.storage import locate, open_storage, read_storage
from bstune.tuner.study import find_study, make_study
from bstune.tuner.table import synthetic
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A true search result, as JSON has it."""
    space = {"batch_size": [16], "learning_rate": [0.001, 0.01]}
    result = bstune.search(formula, isolation="none", space=space, budget=2, storage="sqlite:///:memory:")
    data: dict[str, Any] = json.loads(result.to_json())
    return data


def answer_or_message(call: Callable[[], Any]) -> Any:
    """Return what the call returns, or what the one error that it may raise says."""
    try:
        return call()
    except BstuneError as error:
        return str(error)


@QUICK
@given(JSON)
def test_a_document_that_is_something_else_is_refused(data: Any) -> None:
    """No traceback, whatever the JSON."""
    for kind in (ProbeResult, SearchResult):
        with pytest.raises(BstuneError):
            kind.from_dict(data)


@QUICK
@given(st.data(), JSON)
def test_a_document_that_was_changed_is_refused_or_read(document: dict[str, Any], data: st.DataObject, value: Any) -> None:
    """One value replaced by another, anywhere: it is read, or one error says what is not so."""
    changed = json.loads(json.dumps(document))
    place: Any = changed
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    with contextlib.suppress(BstuneError):
        result = SearchResult.from_dict(changed)
        assert SearchResult.from_dict(json.loads(result.to_json())) == result


VALUES = st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats() | st.text(max_size=4)
DIMENSION = VALUES | st.lists(VALUES, max_size=4) | st.tuples(VALUES, VALUES) | st.tuples(VALUES, VALUES, VALUES)


@QUICK
@given(st.dictionaries(st.sampled_from(["batch_size", "learning_rate", "weight_decay", "momentum", "seed", "9x"]), DIMENSION, max_size=3))
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
@given(st.dictionaries(st.sampled_from([f for f in Plan.__dataclass_fields__ if f != "space"]), VALUES, min_size=1, max_size=3))
def test_an_option_is_used_or_refused(options: dict[str, Any]) -> None:
    """All of them, with anything."""
    with contextlib.suppress(BstuneError):
        check_search(**options)


@QUICK
@given(
    st.lists(
        st.sampled_from(
            ["--budget", "--jobs", "--space", "--goal", "--timeout", "--engine", "--ray-address", "--trial-timeout", "--storage"]
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


@settings(QUICK, max_examples=15)
@given(st.sampled_from(["probe", "plan", "facts", "fingerprint", "bstune_schema", "stopped_by", "objective"]), JSON)
def test_a_study_whose_attributes_were_changed_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    """By another program, or by a hand."""
    folder = tmp_path_factory.getbasetemp() / "attributes"
    folder.mkdir(exist_ok=True)
    url = f"sqlite:///{folder}/bstune.db"
    space = {"batch_size": [16], "learning_rate": [0.001, 0.01]}
    if not (folder / "bstune.db").exists():
        bstune.search(formula, isolation="none", space=space, budget=2, storage=url)
    with contextlib.closing(sqlite3.connect(folder / "bstune.db")) as connection:
        kept = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", (key,)).fetchone()
        connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (json.dumps(value), key))
        connection.commit()
        try:
            from bstune.tuner.show import Shown, show

            assert isinstance(answer_or_message(lambda: show("formula", storage=url)), Shown | str)
        finally:
            connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (kept and kept[0], key))
            connection.commit()


def test_nothing_is_written_by_refusing(tmp_path: Path) -> None:
    """A storage that is refused stays as it was."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    with open_storage(url) as storage:
        make_study(storage, "digits").set(bstune_schema=99)
    before = (tmp_path / "bstune.db").read_bytes()
    with read_storage(url) as storage, pytest.raises(BstuneError):
        find_study(storage, "digits")
    assert (tmp_path / "bstune.db").read_bytes() == before
