"""Results and probes that are read from a document that was damaged or changed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tests.stories.fuzzed import JSON, QUICK, SPACE, formula
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
from bstune.tuner.report.progress import forecast_line
from bstune.tuner.report.text import probe_text, search_text
from bstune.tuner.report.trials import trial_line
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A true search result, as JSON has it."""
    result = bstune.search(formula, isolation="none", space=SPACE, budget=2, storage="sqlite:///:memory:")
    data: dict[str, Any] = json.loads(result.to_json())
    return data


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
        assert not any("\n" in trial_line(record) for record in result.records)


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
