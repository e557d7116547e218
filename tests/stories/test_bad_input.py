"""Whatever is handed in: a document, a space, an option, a storage.

Either it is used as it says, or one clear error says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.arguments import check_probe, check_search
from bstune.tuner.core.document import read_probe
from bstune.tuner.core.errors import BstuneError
from bstune.tuner.core.probe_results import (
    Attempt,
    DeviceInfo,
    Loader,
    MemoryByCategory,
    MemoryLine,
    ProbeResult,
    StepTimeLine,
    ThroughputRow,
)
from bstune.tuner.core.results import SearchResult
from bstune.tuner.core.specs import Plan
from bstune.tuner.report.progress import forecast_line
from bstune.tuner.report.text import probe_text, search_text, trials_text
from bstune.tuner.show import Shown, show
from bstune.tuner.strategy.space import make_space
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.location import locate
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SPACE = {"batch_size": [16], "learning_rate": [0.001, 0.01]}
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A true search result, as JSON has it."""
    result = bstune.search(formula, isolation="none", space=SPACE, budget=2, storage="sqlite:///:memory:")
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


ODD = st.sampled_from(
    [10**30, -(10**30), 10**400, 2**63, 2**53 + 1, 0, -1, 1e308, 5e-324, float("nan"), float("inf"), True, "0.5"]
)


def replaced(document: Any, data: st.DataObject, value: Any) -> Any:
    """Return the document with one value replaced by another, anywhere."""
    changed = json.loads(json.dumps(document))
    place: Any = changed
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            return changed
        place = place[key]


@settings(QUICK, max_examples=200)
@given(st.data(), JSON | ODD)
def test_a_document_that_was_changed_is_refused_or_read(
    document: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    """One value is replaced anywhere: what is read can be written, read and shown, or one error names the fault."""
    with contextlib.suppress(BstuneError):
        result = SearchResult.from_dict(replaced(document, data, value))
        assert SearchResult.from_dict(json.loads(result.to_json())) == result
        assert len(result.trials) == len(result.records)
        assert search_text(result)
        assert trials_text(result.records).count("\n") == max(0, len(result.records) - 1)


@settings(QUICK, max_examples=200)
@given(st.data(), JSON | ODD)
def test_a_probe_that_was_changed_is_refused_or_searched_with(data: st.DataObject, value: Any) -> None:
    """The same of a probe: what is read can be shown, and a search that is given it runs to its end."""
    with contextlib.suppress(BstuneError):
        probe = ProbeResult.from_dict(replaced(PROBE, data, value))
        assert ProbeResult.from_dict(json.loads(probe.to_json())) == probe
        probe_text(probe)
        table = synthetic()
        strategy = Strategy(check_search(probe=probe, space=table.space, budget=3).plan, table.facts(), probe, ())
        forecast_line(strategy.forecast())
        replay(strategy, table)
        strategy.recommend()
        strategy.limits()


PROBE: dict[str, Any] = ProbeResult(
    micro_batch_size=64,
    eval_batch_size=128,
    limited_by="memory",
    proof="bracket",
    capacity_bytes=8 << 30,
    usable_bytes=7 << 30,
    budget_bytes=6 << 30,
    peak_bytes=5 << 30,
    memory_line=MemoryLine(1e9, 6e7, 5 << 30, 5 << 30, 0.0),
    memory_by_category=MemoryByCategory(1, 1, 2, 3, 4),
    throughput=(ThroughputRow(8, 800.0, 0.01, 0.0), ThroughputRow(64, 3200.0, 0.02, 0.0)),
    step_time_line=StepTimeLine(0.0086, 0.00018, 48.0),
    attempts=(
        Attempt(8, "ok", 1 << 30, 1.0, 2),
        Attempt(65, "oom", None, 1.0, 0, phase="train", reason="out of memory"),
    ),
    device=DeviceInfo("cuda", "a card", "id", 8 << 30),
    n_train_samples=1024,
    knee_batch_size=64,
    loader=Loader(0.1, 3300.0, False),
    settings={"memory": 6 << 30},
    versions={"torch": "2"},
).to_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("micro_batch_size", 10**30),
        ("micro_batch_size", 0),
        ("eval_batch_size", -1),
        ("usable_bytes", -1),
        ("seconds", float("nan")),
        ("seconds", 10**400),
        ("seconds", -1.0),
        ("settings", {"memory": 10**30}),
        ("settings", {"memory": {1, 2}}),
        ("settings", {1: 2}),
        ("versions", {"torch": 2}),
        ("environment", {"A": None}),
        ("step_time_line", {"a_s": 0.0, "c_s_per_sample": 0.0, "saturation_batch": None}),
        ("throughput", [{"batch_size": 8, "samples_per_s": float("nan"), "s_per_step": 0.1, "spread": 0.0}]),
    ],
)
def test_the_field_that_is_wrong_is_named(field: str, value: Any) -> None:
    """Numbers that nobody can work with are refused where they are read, not where they are used."""
    with pytest.raises(
        BstuneError, match=field if field not in ("throughput", "step_time_line") else "ThroughputRow|StepTimeLine"
    ) as caught:
        ProbeResult.from_dict({**PROBE, field: value})
    assert len(str(caught.value)) < 300


def arguments_of(name: str, value: Any) -> dict[str, Any]:
    """One argument, of any type."""
    return {name: value}


def test_a_number_that_python_does_not_write_is_refused() -> None:
    """It has too many digits even for the message."""
    with pytest.raises(BstuneError, match=r"micro_batch_size: expected .* thousands of digits"):
        ProbeResult.from_dict({**PROBE, "micro_batch_size": 10**5000})
    for name in ("seed", "jobs", "budget", "target", "study", "probe", "space", "baseline"):
        with pytest.raises(BstuneError, match=name):
            check_search(**arguments_of(name, 10**5000))
    with pytest.raises(BstuneError, match="memory"):
        check_probe(memory=10**5000)


def test_a_document_that_never_ends_its_brackets_is_refused() -> None:
    """Also as Python has it, where no file was read."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BstuneError, match=r"settings.*within each other"):
        ProbeResult.from_dict({**PROBE, "settings": {"a": deep}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"9" * 5000, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "cannot be read"),
        (b"[]", "expected a JSON object"),
        (json.dumps({**PROBE, "micro_batch_size": 0}).encode(), "micro_batch_size: expected"),
        (json.dumps({**PROBE, "seconds": float("nan")}).encode(), "seconds: expected"),
    ],
    ids=["brackets", "objects", "digits", "letters", "empty", "list", "zero", "nan"],
)
def test_a_file_that_is_no_probe_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """One sentence, and no traceback."""
    (tmp_path / "probe.json").write_bytes(content)
    with pytest.raises(BstuneError, match=r"--probe .*probe.json cannot be read") as caught:
        read_probe(tmp_path / "probe.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_a_probe_is_read_from_a_plain_file_only(tmp_path: Path) -> None:
    """A named pipe would be waited for, a device never ends, and a file may be far too large."""
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 32)
    for path in (
        tmp_path / "pipe",
        tmp_path,
        Path("/dev/zero"),
        tmp_path / "large",
        tmp_path / "missing",
        Path("a\0b"),
    ):
        with pytest.raises(BstuneError, match="cannot be read"):
            read_probe(path)
    (tmp_path / "probe.json").write_text(json.dumps(PROBE))
    assert read_probe(tmp_path / "probe.json").micro_batch_size == 64


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
        assert shown.records == () or trials_text(shown.records)
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
