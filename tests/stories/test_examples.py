"""The examples are what users copy from: they train, they report, and the scripts among them run as they stand."""

from __future__ import annotations

import math
import re
import runpy
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bstune
import pytest
import torch
from bstune.cli import main
from bstune.objectives.base import Trial
from bstune.tests.objectives.short_form import run_example
from bstune.tuner.core.trials import TrialReport, TrialSpec, Verdict
from bstune.tuner.testing.fake_device import known_probe
from click.testing import CliRunner


def train(objective: Any, *, seed: int = 0, unit: int = 1) -> list[TrialReport]:
    """Train two epochs in this process, with gradient accumulation, and return the reports; sizes count units."""
    reports: list[TrialReport] = []

    def send(report: TrialReport) -> Verdict:
        reports.append(report)
        return "go"

    spec = TrialSpec(
        number=0,
        stage="search",
        global_batch_size=32 * unit,
        micro_batch_size=16 * unit,
        accumulation_steps=2,
        learning_rate=2.0**-5,
        seed=seed,
        end_samples=2048 * unit,
        points=(512 * unit, 1024 * unit, 2048 * unit),
        eval_batch_size=256 * unit,
    )
    objective.prepare()
    objective.train(Trial(spec, device="cpu", send=send, clock=time.perf_counter), spec)
    return reports


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["digits.py", "own_loop.py"])
def objective(root: Path, request: pytest.FixtureRequest) -> Any:
    """The objective of one example."""
    return runpy.run_path(str(root / "examples" / request.param))["objective"]


def test_two_epochs_teach_most_digits(objective: Any) -> None:
    """From the loss of pure guessing, ln 10, to below 0.5, reported at each wanted point."""
    reports = train(objective)

    assert [report.samples for report in reports] == [512, 1024, 2048]
    assert math.log(10) > reports[0].val_loss > reports[-1].val_loss
    assert reports[-1].val_loss < 0.5


def test_the_same_seed_is_the_same_run(objective: Any) -> None:
    """Settings are compared on equal terms: only another seed gives another run."""
    first, again, other = train(objective), train(objective), train(objective, seed=1)

    assert [report.val_loss for report in first] == [report.val_loss for report in again]
    assert [report.val_loss for report in first] != [report.val_loss for report in other]


def test_a_transformer_learns_to_sort(root: Path) -> None:
    """Lists of any length: from the loss of pure guessing to half of it, though few are long."""
    objective = runpy.run_path(str(root / "examples" / "char_transformer.py"))["objective"]
    reports = train(objective, unit=16)  # About the tokens of a sample.

    assert reports[-1].val_loss < math.log(13) / 2
    lengths = sorted(objective.train_data.lengths)
    assert lengths[-1] > 4 * lengths[len(lengths) // 2]


def test_it_goes_from_nothing_to_a_model_that_sorts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is searched by tokens and trained with the answer; in a short form, so it has not learned to sort well."""
    known = "__file__, budget=3, n_trials=2, space={'batch_size': 512, 'learning_rate': 0.01}"
    changed = {"search(__file__": f"search({known}", "epochs=10": "epochs=1", "Lists(4096": "Lists(1024"}

    run_example(root / "examples" / "char_transformer.py", tmp_path, monkeypatch, changed)

    said = capsys.readouterr().out
    assert float(re.findall(r"^512 tokens, learning rate 0.01: loss ([\d.]+)$", said, re.MULTILINE)[0]) < math.log(13)
    assert re.search(r"^hfbdjace sorted: [a-j]*$", said, re.MULTILINE)


@pytest.fixture
def run_script(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What runs a script among the examples with arguments, in this process, and returns its names."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        path = str(root / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        return runpy.run_path(path, run_name="__main__")

    return run


def test_the_ramp_takes_fewer_updates(
    run_script: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a short form, of two epochs: a third fewer than the cosine schedule beside it."""
    run_script("batch_ramp.py", "2")

    said = re.findall(r"^(\w+): (\d+) updates, validation loss ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert [(name, int(updates)) for name, updates, _ in said] == [("cosine", 64), ("ramp", 42)]
    assert all(float(loss) < math.log(10) for _, _, loss in said)


def test_the_notebook_was_run_as_it_stands(root: Path) -> None:
    """From top to bottom, without an error, by the names that bstune has; running it takes too long for a test."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(root / "examples" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    code = "\n".join(cell.source for cell in cells)
    compile(code, "notebook.ipynb", "exec")
    used = set(re.findall(r"bstune\.(\w+)", code))
    assert {"Supervised", "probe", "search", "scale", "split"} <= used <= set(bstune.__all__)
    assert re.search(r"^validation accuracy 9\d", "".join(cells[-2].outputs[0].text), re.MULTILINE)


def test_an_optuna_study(run_script: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """In a short form, of three trials: the best one has learned, and each trial had the rates of the race."""
    study = run_script("optuna_study.py", "3")["study"]

    [(loss, params)] = re.findall(r"^([\d.]+) with (\{.*\})$", capsys.readouterr().out, re.MULTILINE)
    assert float(loss) < 1.0
    assert "'batch_size': 64" in params
    assert len(study.trials) == 3


def test_a_script_with_flags_is_searched_as_it_is(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_script: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unmodified script: from one command line to its own command line with the answer, which trains on."""
    script = root / "examples" / "script_flags" / "train.py"
    words = ["--batch-size", "{micro_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"]
    probe = tmp_path / "probe.json"  # How a script is probed is the subject of other tests.
    probe.write_text(known_probe(64, step_s=(0.001, 1e-5), n_train_samples=1500).to_json())
    options = ["--samples-per-epoch=1500", "--epochs=2", "--n-trials=1", "--confirm=0", "--probe", str(probe)]
    space = ["--space", "batch_size=32", "--space", "learning_rate=0.05"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["search", *options, *space, "--", sys.executable, str(script), *words])

    assert result.exit_code == 0, result.stderr
    applied = shlex.split(result.stdout.strip().splitlines()[-1].removeprefix("# "))
    assert applied == [sys.executable, str(script), "--batch-size", "32", "--lr", "0.05", "--epochs", "2"]
    capsys.readouterr()
    run_script("script_flags/train.py", *applied[2:])
    assert float(re.findall(r"accuracy: ([\d.]+)%", capsys.readouterr().out)[-1]) > 70


def test_the_script_asks_and_trains_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain script without a `__main__` guard searches, trains with the answer, and leaves nothing but the study."""
    text = (root / "examples" / "from_script.py").read_text()
    script = tmp_path / "from_script.py"
    short = "budget=1, n_trials=2, space={'learning_rate': 0.003}"
    script.write_text(text.replace("budget=8", short).replace("EPOCHS = 20", "EPOCHS = 4"))
    assert script.read_text() != text

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    runpy.run_path(str(script), run_name="__main__")

    said = capsys.readouterr().out
    assert re.search(r"^batch size \d+, learning rate \d", said, re.MULTILINE)
    assert float(re.findall(r"validation accuracy ([\d.]+)%", said)[0]) > 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "from_script.py"]


@pytest.mark.parametrize(
    ("name", "needs", "launcher"),
    [
        ("ddp_two_ranks.py", "torch", ("torchrun", f"{sys.executable} -m torch.distributed.run")),
        ("accelerate_loop.py", "accelerate", ("python", sys.executable)),
        ("lightning_cli/cli.py", "lightning", ("python", sys.executable)),
    ],
    ids=["ddp_two_ranks", "accelerate_loop", "lightning_cli"],
)
def test_a_script_goes_from_the_line_that_it_shows_to_one_that_trains(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, needs: str, launcher: tuple[str, str]
) -> None:
    """The line in its own first lines searches it; the one that is printed is the trial's."""
    pytest.importorskip(needs, reason="needs the extras: pip install 'bstune[lightning,transformers]'")
    _, _, shown = (root / "examples" / name).read_text().split('"""')[1].partition("bstune search ")
    shown = shown.partition("\n\n")[0].replace("\\\n", " ").replace("examples/", f"{root}/examples/")
    words = shlex.split(re.sub(r"--epochs \d+", "--epochs 2", shown.replace(f"-- {launcher[0]}", f"-- {launcher[1]}")))
    probe = tmp_path / "probe.json"  # How a script is probed is the subject of other tests.
    probe.write_text(known_probe(64, step_s=(0.001, 1e-5)).to_json())
    options = ["--n-trials=1", "--confirm=0", "--pruner=none", "--probe", str(probe)]
    space = ["--space", "batch_size=64", "--space", "learning_rate=0.03125"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["search", *options, *space, *words])

    assert result.exit_code == 0, result.stderr
    applied = shlex.split(result.stdout.strip().splitlines()[-1].removeprefix("# "))
    searched = words[words.index("--") + 1 :]
    assert len(applied) == len(searched)
    for word, asked in zip(applied, searched, strict=True):  # The same line as that of the trial, with the answer.
        assert re.fullmatch(re.sub(r"\\{\w+\\}", r"[\\d.]+", re.escape(asked)), word)
    (log,) = tmp_path.glob("bstune.db.logs-*/trial-0.log")
    losses = re.findall(r"(?:val_loss=|validation loss )([\d.]+)", log.read_text().replace("\r", "\n"))
    assert 2.5 > float(losses[0]) > float(losses[-1])
