"""Real workers of a real service: probe, processes, signals; and a script that trains by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import httpx
import pytest
from bstune.cli import main
from bstune.tests.report.terminals import Terminal
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.tables import synthetic
from click.testing import CliRunner

from .conftest import Service

MODEL = """
import time
import bstune
import torch

@bstune.objective(n_samples=256, epochs=2, evals=2, optimizer="SGD")
def objective(trial):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)
    samples = 0
    while samples < trial.max_samples:
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        samples += trial.global_batch_size
        if samples >= trial.next_report or samples >= trial.max_samples:
            time.sleep({pause})
            trial.report(float(weight.detach() ** 2), samples=samples)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose leases are as long as usual."""
    made = Service(tmp_path_factory.mktemp("service"), "--rate", "0")
    yield made.start()
    made.close()


def bstune_command(*words: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command of bstune in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "bstune", *words],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def probed(folder: Path) -> tuple[str, str]:
    """Return the option of a probe that was made before."""
    file = folder / "probe.json"
    file.write_text(known_probe(64, step_s=(0.01, 1e-4)).to_json())
    return "--probe", str(file)


def test_a_search_at_the_service_prints_its_result_and_a_late_worker_has_nothing_to_do(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search creates the study and is its worker; another finds it ended, needs no probe, and ends with 0."""
    (tmp_path / "small.py").write_text(MODEL.replace("{pause}", "0"))
    space = ("--space", "batch_size=16,32", "--space", "learning_rate=0.01:0.1")

    monkeypatch.chdir(tmp_path)
    words = ["search", "small.py", "--server", service.url, "--n-trials", "3", *space, "--json"]
    search = CliRunner().invoke(main, words)
    found, said = search.stdout, search.stderr

    assert search.exit_code == 0, said
    result = bstune.SearchResult.from_dict(json.loads(found))
    assert result.stopped_by == "n_trials"
    assert result.study == "small"
    assert len(result.records) == 3
    assert result.probe is not None
    assert (result.probe.micro_batch_size, result.probe.limited_by) == (32, "max_batch")
    assert "probe  micro-batch" in said
    assert "probe  larger sizes than 32 were not tried: the search has no use for them" in said
    assert "Forecast: about" in said
    assert len([line for line in said.splitlines() if line.startswith("trial ") and " runs]" in line]) == 3

    worker = CliRunner().invoke(main, ["worker", service.url, "small.py"])
    late = worker.stderr
    assert worker.exit_code == 0, late
    assert "Study small has ended: n_trials." in late
    best = result.recommendation
    assert f"atch {best.global_batch_size}" in late.partition("has ended")[2]
    assert f"learning rate {best.learning_rate:.3g}, checked by one run." in late
    assert httpx.get(late.rpartition("All of it: ")[2].strip(), trust_env=False).status_code == 200
    assert "probe  micro-batch" not in late
    assert not list(tmp_path.glob("*.db"))


def test_a_search_at_the_service_is_shown_as_one_here(service: Service, tmp_path: Path) -> None:
    """On a terminal: the same screen, with curves, budget and the best so far; then the answer, and lines to paste."""
    (tmp_path / "shown.py").write_text(MODEL.replace("{pause}", "0.2"))
    words = ["search", "shown.py", "--server", service.url, "--n-trials", "6", "--space", "batch_size=16,32"]
    command = [sys.executable, "-m", "bstune", *words, *probed(tmp_path)]
    with contextlib.closing(Terminal(command, tmp_path, 100, 30)) as terminal:
        shown = terminal.wait(lambda text: "  runs" in text and "best so far: batch" in text)
        assert terminal.end() == 0
        assert terminal.is_as_before

    assert shown.startswith("bstune: shown\n")
    assert " of 12 reference runs, " in shown
    assert "Train with batch" in terminal.text
    assert "reference runs, " not in terminal.text.partition("Train with batch")[0]


def test_a_worker_that_is_told_to_end_hands_its_trial_back(service: Service, tmp_path: Path) -> None:
    """SIGTERM: the next client has the trial at once, and the worker ends with 0 and leaves no process behind."""
    (tmp_path / "slow.py").write_text(MODEL.replace("{pause}", "0.1"))
    worker = bstune_command("worker", service.url, "slow.py", *probed(tmp_path), folder=tmp_path)
    deadline_s = time.monotonic() + 120
    running: list[int] = []
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as calls:
        while not running and time.monotonic() < deadline_s:
            answer = calls.get("/v1/studies/slow")
            if answer.status_code == 200:
                # Not the first: the line of that one is looked at below.
                running = [seen["trial"] for seen in answer.json()["workers"] if seen["trial"]]
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=60)
        answer = calls.post("/v1/studies/slow/ask", json={"client_id": "heir", "wait_s": 5})

    assert running
    assert worker.returncode == 0, said
    assert re.search(r"trial 0  ended at \d+ samples, loss [\d.e-]+, after", said), said
    assert "is handed back." in said
    assert "This worker has left study slow." in said
    assert answer.json()["state"] == "trial"


def test_a_script_trains_the_trials_itself(service: Service) -> None:
    """`bstune.connect` yields the trials of a study until it has ended; a pruned one is the script's to catch.

    A later study of a model of the same name, on other data, begins at what was found.
    """
    table = synthetic()
    study = bstune.connect(
        service.url,
        study="script",
        n_samples=table.n_samples,
        epochs=table.epochs,
        optimizer="SGD",
        model="a table",
        search={"space": table.space, "budget": 2},
    )
    pruned = trained = 0

    for trial in study.trials():
        trained += 1
        assert trial.device == "cpu"
        try:
            table.train(trial)
        except bstune.TrialPruned:
            pruned += 1
    result = study.result()
    study.close()
    more: dict[str, Any] = {"n_samples": 2 * table.n_samples, "epochs": table.epochs, "optimizer": "SGD"}
    known = bstune.connect(service.url, study="script-2", model="a table", **more)
    other = bstune.connect(service.url, study="script-3", model="another", **more)
    for each in (known, other):
        each.close()

    assert trained == len(result.records)
    assert pruned == sum(record.state == "pruned" for record in result.records) > 0
    assert result.stopped_by in ("budget", "converged")
    assert table.regret(result.recommendation.global_batch_size, result.recommendation.learning_rate) < 0.5
    assert result.recommendation.verified
    assert known.learned is not None
    assert known.learned["study"] == "script"
    assert other.learned is None


TWO = """

@bstune.objective(n_samples=256, epochs=2, evals=2, optimizer="SGD")
def wide(trial):
    objective.function(trial)
"""


def test_an_objective_is_not_given_the_probe_of_another_one_in_its_file(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loop nothing but its name tells one from another; the same one, in a new study, has no second probe."""
    (tmp_path / "two.py").write_text(MODEL.replace("{pause}", "0") + TWO)
    monkeypatch.chdir(tmp_path)
    once = ("--server", service.url, "--n-trials", "1", "--confirm", "0", "--space", "batch_size=16")

    said = []
    for name, study in (("objective", "two"), ("wide", "two-wide"), ("wide", "two-again")):
        search = CliRunner().invoke(main, ["search", f"two.py:{name}", *once, "--study", study])
        assert search.exit_code == 0, search.stderr
        said.append(search.stderr)

    known = "probe  known from study"
    assert known not in said[0]
    assert known not in said[1]
    assert f"{known} two-wide: not measured again" in said[2]
