"""`bstune report`, `list` and `dashboard` on a study that was really searched, and what results show of themselves."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair
import bstune
import pytest
from bstune.cli import main
from bstune.tests.report import told as studies
from bstune.tuner.core.specs import Plan
from bstune.tuner.report import card
from bstune.tuner.report_study import told_of
from bstune.tuner.studies.catalog import make_study, touch
from bstune.tuner.studies.spec_json import encode_plan
from bstune.tuner.studies.storage import open_storage
from click.testing import CliRunner, Result

RESULT = studies.demo_result()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with two studies of a formula: one searched to its end, one that found nothing to train with."""
    url = f"sqlite:///{tmp_path_factory.mktemp('stored')}/bstune.db"

    @bstune.objective(n_samples=2000, epochs=2, step_time_s=lambda batch: 0.001 + 0.0001 * batch)
    def train(trial: bstune.Trial) -> None:
        samples = 0
        while samples < trial.max_samples:
            samples += trial.global_batch_size
            loss = 1 / (1 + trial.learning_rate * samples) + 0.1 * trial.learning_rate
            trial.report(val_loss=loss, samples=samples)

    for name, seed in (("first", 0), ("second<b>", 1)):
        bstune.search(train, isolation="none", budget=3, study=name, storage=url, seed=seed)
    return url


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.html", b"<!doctype html>\n<!-- bstune report -->"),
        ("a.png", b"\x89PNG"),
        ("a.svg", b"<!-- bstune report -->"),
        ("a.md", b"<!-- bstune report -->"),
        ("a.json", b'{\n  "recommendation"'),
        ("a.csv", b"number,stage,state"),
    ],
)
def test_a_report_is_written_as_its_name_says(storage: str, tmp_path: Path, name: str, head: bytes) -> None:
    """It is written again over its own file, and never over another's."""
    for _ in range(2):
        result = run("report", "first", "--storage", storage, "-o", name)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        assert f"Written: {name}" in result.stderr
    assert (tmp_path / name).read_bytes().startswith(head)

    (tmp_path / name).write_text("mine")
    refused = run("report", "first", "--storage", storage, "-o", name)
    assert refused.exit_code == 1
    assert "did not make" in refused.stderr
    assert (tmp_path / name).read_text() == "mine"


def test_texts_are_printed_where_no_file_is_named(storage: str) -> None:
    """JSON reads back as the result, CSV has a line for each trial, and the card is a card."""
    said = run("report", "first", "--storage", storage, "--format", "json").stdout
    result = bstune.SearchResult.from_dict(json.loads(said))
    rows = list(csv.DictReader(io.StringIO(run("report", "first", "--storage", storage, "--format", "csv").stdout)))
    shown = run("report", "first", "--storage", storage, "--format", "md").stdout

    assert [int(row["number"]) for row in rows] == [record.number for record in result.records]
    assert float(rows[0]["learning_rate"]) == result.records[0].learning_rate
    assert f"batch {result.recommendation.global_batch_size}" in shown.splitlines()[1]
    assert len(shown.splitlines()) <= 24


def test_the_newest_search_is_reported_not_a_study_without_one(storage: str, tmp_path: Path) -> None:
    """A study that holds a look at a model, or nothing yet, has no report."""
    path = storage.removeprefix("sqlite:///")
    copied = f"sqlite:///{shutil.copy(path, tmp_path / 'copy.db')}"
    with open_storage(copied) as opened:
        touch(make_study(opened, "empty"))
    assert run("report", "--storage", copied, "--format", "md").exit_code == 0
    assert "Train with batch" in run("report", "--storage", copied, "--format", "md").stdout


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Plan(budget_s=30.0), "bstune search model.py --budget 30s"),
        (Plan(budget=4.0, confirm=1), "bstune search model.py --budget 4 --confirm 1"),
        (Plan(budget=2.5, tolerance=0.05), "bstune search model.py --tolerance 0.05 --budget 2.5"),
    ],
)
def test_the_command_of_a_report_is_as_one_would_write_it(asked: Plan, said: str) -> None:
    """Without quotes and places that nothing needs; the same search comes of it."""
    with open_storage("sqlite:///made.db") as opened:
        make_study(opened, "made").set(objective="/home/me/model.py:objective", plan=encode_plan(asked))
    told = told_of("made", storage="sqlite:///made.db")
    assert told.command == said


def test_two_studies_make_one_page(storage: str, tmp_path: Path) -> None:
    """Both names stand in it, as text."""
    assert run("report", "first", "second<b>", "--storage", storage, "-o", "two.html").exit_code == 0

    text = (tmp_path / "two.html").read_text()
    assert "first beside second&lt;b&gt;" in text
    assert "second<b>" not in text.split("<script>")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "a.xyz"),
        ("-o", "nowhere/a.html"),
        ("first", "second<b>", "-o", "a.png"),
        ("-o", "a.html", "--format", "md"),
    ],
)
def test_what_cannot_be_written_is_wrong_usage(storage: str, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """It is said in one message, and nothing is written."""
    result = run("report", "--storage", storage, *arguments)

    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_sentence_says_what_to_install(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages and pictures need it; texts, the list, and what a notebook shows need nothing."""
    for name in ("altair", "vl_convert", "jinja2", "optuna_dashboard"):
        monkeypatch.setitem(sys.modules, name, None)

    for arguments in (("report", "-o", "a.html"), ("report", "-o", "a.png")):
        result = run(*arguments, "--storage", storage)
        assert result.exit_code == 1
        assert result.stderr == (
            "Error: Charts need Altair, vl-convert and Jinja2, which are not installed: pip install 'bstune[report]'.\n"
        )
    missing = run("dashboard", "--storage", storage)
    assert (missing.exit_code, "pip install 'bstune[dashboard]'" in missing.stderr) == (1, True)
    for kind in ("md", "json", "csv"):
        assert run("report", "--storage", storage, "--format", kind).exit_code == 0
    assert run("list", "--storage", storage).exit_code == 0
    assert "<table>" in RESULT._repr_html_()
    assert list(tmp_path.iterdir()) == []


def test_the_studies_of_a_storage_are_listed(storage: str) -> None:
    """The newest first, within 80 columns, and as JSON."""
    shown = run("list", "--storage", storage).stdout.splitlines()
    listed = json.loads(run("list", "--storage", storage, "--json").stdout)

    assert [line.split()[0] for line in shown] == ["study", "second<b>", "first"]
    assert max(map(len, shown)) <= 80
    assert [each["study"] for each in listed] == ["second<b>", "first"]
    assert [each["objective"] for each in listed] == ["train", "train"]
    assert all(each["n_trials"] > 3 and each["global_batch_size"] >= 4 for each in listed)


@pytest.fixture
def dashboard(storage: str) -> Iterator[str]:
    """The address of `bstune dashboard`, which is interrupted in the end."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bstune", "dashboard", "--storage", storage, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"http://127.0.0.1:{port}/" in line, line + process.stderr.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_dashboard_shows_studies_with_our_card_as_their_note(dashboard: str, storage: str) -> None:
    """On loopback only; trials, curves and states are read as Optuna's own."""

    def get(path: str) -> Any:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"{dashboard}{path}", timeout=60) as answer:
                    return json.load(answer)
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{path} was not answered")

    names = {each["study_name"]: each["study_id"] for each in get("/api/studies")["study_summaries"]}
    assert set(names) == {"first", "second<b>"}
    shown = get(f"/api/studies/{names['first']}?after=0")
    assert shown["note"]["body"].startswith("## ")
    assert shown["objective_names"] == ["validation loss"]
    assert {trial["state"] for trial in shown["trials"]} <= {"Complete", "Pruned", "Fail"}
    assert all(trial["intermediate_values"] for trial in shown["trials"])
    with open_storage(storage):  # Nobody holds the lock of the writer.
        pass


@pytest.mark.parametrize("name", ["plot_landscape", "plot_curves", "plot_frontier"])
def test_results_return_charts(name: str) -> None:
    """They are Altair's, and valid."""
    chart = getattr(RESULT, name)()

    assert isinstance(chart, altair.TopLevelMixin)
    assert chart.to_dict()["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


def test_a_probe_returns_a_chart() -> None:
    """Memory and throughput side by side."""
    assert RESULT.probe is not None
    assert isinstance(RESULT.probe.plot(), altair.HConcatChart)


def test_a_result_in_a_notebook_is_short_plain_html() -> None:
    """It has no script and no colour of its own for text, so that it is right on white and on black."""
    hostile = studies.hostile().result
    assert hostile is not None
    assert hostile.probe is not None
    assert RESULT.probe is not None
    for each in (RESULT, RESULT.recommendation, RESULT.probe, hostile, hostile.recommendation, hostile.probe):
        html = each._repr_html_()
        assert len(html) < 8000
        assert "<script" not in html
        assert "<img" not in html
        assert "color:" not in html.replace("border-left", "").replace("-color:", "")
    assert "batch 16 and learning rate 0.025" in RESULT._repr_html_()
    n = len(RESULT.records)
    assert repr(RESULT) == f"<SearchResult: batch 16, learning rate 0.025, verified, {n} trials>"


def test_a_card_holds_no_markup_of_a_study() -> None:
    """Markdown is shown by others, who may let HTML through."""
    text = card.markdown(studies.hostile())

    assert "<script" not in text
    assert "<img" not in text
