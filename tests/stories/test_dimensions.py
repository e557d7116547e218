"""Dimensions beside batch size and learning rate, from the space to what is pasted, in every kind of objective."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import bstune
import optuna
import pytest
import torch
from bstune.cli import main
from bstune.tuner.client.wire import search_json
from bstune.tuner.core.arguments import check_search, check_space
from bstune.tuner.core.trials import Facts
from bstune.tuner.report.paste import paste_lines
from bstune.tuner.report.text import search_text
from bstune.tuner.service.hub import _decoded
from bstune.tuner.strategy.space import make_space
from bstune.tuner.studies.spec_json import decode_space, encode_space
from click.testing import CliRunner
from torch.utils.data import TensorDataset

CELLS = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
EXTRA = {"weight_decay": (1e-5, 1e-1), "warmup_steps": (1, 100), "optimizer": ["adam", "sgd"]}
MOMENTUM = bstune.When(optimizer="sgd", values=(0.5, 0.99))
ARGUMENTS: dict[str, Any] = {"isolation": "none", "budget": 6, "storage": "sqlite:///:memory:"}


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """Best with SGD at a momentum of 0.9, whatever the weight decay."""
    params = trial.params
    assert isinstance(params["warmup_steps"], int)
    assert ("momentum" in params) == (params["optimizer"] == "sgd")
    worse = 0.3 if params["optimizer"] == "adam" else abs(params["momentum"] - 0.9)
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2 + worse
            trial.report(val_loss=loss + 0.001 * trial.seed, samples=samples)


def test_they_reach_a_loop_and_stand_in_all_that_is_told(tmp_path: Path) -> None:
    """Trials, recommendation, table, lines to paste, JSON, and the study as Optuna sees it."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    space = {**CELLS, **EXTRA, "momentum": MOMENTUM}
    result = bstune.search(formula, **ARGUMENTS | {"space": space, "storage": url})
    best, used = result.recommendation, {record.params["optimizer"] for record in result.records}

    assert used == {"adam", "sgd"}
    for record in result.records:
        assert {*record.params} == {*EXTRA, *(["momentum"] if record.params["optimizer"] == "sgd" else [])}
    assert {*EXTRA, "momentum"} <= {*result.trials.columns}
    assert best.params in [record.params for record in result.records]
    assert bstune.SearchResult.from_dict(json.loads(result.to_json())) == result
    assert result.importance is None
    shown = CliRunner().invoke(main, ["show", "formula", "-v", "--storage", url]).stdout
    assert f"importance not known: {result.no_importance}" in " ".join(shown.split())
    told = dataclasses.replace(result, importance={"learning_rate": 0.75, "momentum": 0.25}, no_importance=None)
    assert bstune.SearchResult.from_dict(json.loads(told.to_json())).importance == told.importance
    line = "importance learning_rate 75%, momentum 25%: how much of the expected loss each explains alone"
    assert line in " ".join(search_text(told, verbose=True).split())
    older = {name: value for name, value in result.to_dict().items() if "importance" not in name}
    assert bstune.SearchResult.from_dict(older).importance is None
    lines = paste_lines(result)
    assert [line for name, value in best.params.items() if (line := f"{name} = {value!r}") not in lines] == []
    stored = optuna.load_study(study_name=result.study, storage=url).trials
    assert all(("momentum" in each.params) == (each.params["optimizer"] == "sgd") for each in stored)
    again = bstune.search(formula, **ARGUMENTS | {"space": space, "storage": url})
    assert again.records == result.records  # It is the same search, and nothing is run again.


def test_they_reach_model_and_optimizer_of_a_supervised() -> None:
    """Each takes what it names, in the probe and in every trial."""

    def model(width: int = 2) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 2))

    def make(parameters: Any, lr: float, optimizer: str = "adam", momentum: float | None = None) -> Any:
        assert (momentum is None) == (optimizer == "adam")
        return torch.optim.Adam(parameters, lr) if momentum is None else torch.optim.SGD(parameters, lr, momentum)

    data = TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))
    width = {"real_width": lambda model, _: float(model[0].out_features)}
    objective = bstune.Supervised(model, data, data, optimizer=make, metrics=width, epochs=4, evals=2, name="small")
    space = {**CELLS, "width": [4, 8], "optimizer": ["adam", "sgd"], "momentum": MOMENTUM}
    asked = {"space": space, "isolation": "process", "budget": 60, "n_trials": 7, "sampler": "random", "device": "cpu"}
    result = bstune.search(objective, **ARGUMENTS | asked)

    assert {record.params["optimizer"] for record in result.records} == {"adam", "sgd"}
    assert {record.state for record in result.records} <= {"complete", "pruned"}
    assert all(record.metrics["real_width"] == record.params["width"] for record in result.records)


SCRIPT = """
import argparse
parser = argparse.ArgumentParser()
for name, kind in {"batch": int, "lr": float, "epochs": int, "momentum": float, "wd": float, "layers": int}.items():
    parser.add_argument(f"--{name}", type=kind)
parser.add_argument("--optimizer", choices=["adam", "sgd"])
args = parser.parse_args()
assert (args.momentum is None) == (args.optimizer == "adam") and args.layers in (2, 3) and 1e-5 <= args.wd <= 0.1
for epoch in range(1, args.epochs + 1):
    print(f"epoch {epoch} val_loss={1 / epoch + args.lr + (args.momentum or 1):.5f}", flush=True)
"""


def test_they_reach_a_command_and_what_is_not_there_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe too starts it with values; a flag whose dimension is not there goes with it."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)
    words = ["--batch", "{micro_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"]
    words += ["--optimizer={optimizer}", "--momentum", "{momentum}", "--wd={weight_decay}", "--layers", "{layers}"]
    asked = ["batch_size=16", "learning_rate=0.01,0.1", "optimizer=adam,sgd", "layers=2,3", "weight_decay=1e-5:1e-1"]
    spaces = [part for each in [*asked, "momentum=0.5:0.99 if optimizer=sgd"] for part in ("--space", each)]
    options = [
        "--samples-per-epoch",
        "160",
        "--epochs",
        "4",
        "--budget",
        "8",
        "--n-trials",
        "7",
        "--sampler",
        "random",
        "--seed",
        "3",
    ]
    done = CliRunner().invoke(main, ["search", *spaces, *options, "--", sys.executable, "train.py", *words])

    assert done.exit_code == 0, done.stderr
    applied = shlex.split(done.stdout.strip().splitlines()[-1].removeprefix("# "))
    assert ("--momentum" in applied) == ("--optimizer=sgd" in applied)
    assert not any("{" in word for word in applied)
    shown = json.loads(CliRunner().invoke(main, ["show", "train", "--json"]).stdout)
    used = [trial["params"] for trial in shown["trials"] if trial["state"] != "failed"]
    assert {params["optimizer"] for params in used} == {"adam", "sgd"}
    assert len(used) == len(shown["trials"])


def test_a_space_with_conditions_is_stored_and_read_back() -> None:
    """Whatever the values are."""
    momentum = bstune.When(optimizer=["sgd"], values=optuna.distributions.FloatDistribution(0.5, 0.99))
    space = {"optimizer": ["adam", "sgd"], "momentum": momentum, "beta": bstune.When(optimizer="adam", values=[0.9])}
    dimensions = check_space(space)

    assert decode_space(json.loads(json.dumps(encode_space(dimensions)))) == dimensions
    assert repr(space["beta"]) == "When(optimizer='adam', values=[0.9])"


def test_a_service_reads_what_a_client_sends() -> None:
    """Ranges, lists and conditions."""
    space = {"rate": (0.1, 1.0), "optimizer": ["adam", "sgd"], "momentum": MOMENTUM}
    sent = json.loads(json.dumps(search_json({"space": space})))

    assert check_search(**_decoded(sent)).plan == check_search(space=space).plan


def test_what_is_not_there_is_neither_drawn_nor_far_from_anything() -> None:
    """Settings without it all lie in its middle, and one value under a condition is not there for all."""
    asked = {"optimizer": ["adam", "sgd"], "momentum": MOMENTUM, "beta": bstune.When(optimizer="adam", values=0.9)}
    plan = check_search(space=asked).plan
    space = make_space(plan, Facts("t", "loop", 1000, 4), None)
    middle, drawn = space.default_params(), iter([0.0, 0.3]).__next__
    point = space.point(space.setting(16, 0.01, {"optimizer": "adam", "beta": 0.9}))

    assert middle["optimizer"] == "sgd"
    assert middle["momentum"] == pytest.approx(0.7036, abs=1e-3)
    assert space.params(drawn) == {"optimizer": "adam", "beta": 0.9}
    assert point.coordinates[4] == pytest.approx(0.5, abs=1e-3)
    assert plan.tried_params[0] == middle
    assert {"optimizer": "adam", "beta": 0.9} in plan.tried_params


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"batch_size": bstune.When(optimizer="sgd", values=[8])}, "every trial has a batch size"),
        (
            {"momentum": bstune.When(optimzer="sgd", values=[0.9])},
            "the space has no 'optimzer'; did you mean 'optimizer'",
        ),
        ({"momentum": bstune.When(optimizer="lion", values=[0.9])}, "'optimizer' is never 'lion'; its values are"),
        ({"momentum": bstune.When(values=[0.9])}, "expected the value of another dimension"),
        ({"momentum": bstune.When(optimizer="sgd", values=(0.99, 0.5))}, "the lowest is more than the highest"),
        ({"momentum": MOMENTUM, "x": bstune.When(momentum=0.9, values=[1])}, "and 'momentum' is none"),
        ({"momentum": bstune.When(wd=0.1, values=[1]), "wd": (0.1, 1.0)}, "and 'wd' is none"),
        ({"momentum": bstune.When(optimizer="sgd", values=MOMENTUM)}, "expected one condition"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(space: dict[str, Any], said: str) -> None:
    """By name, with what was expected."""
    with pytest.raises(bstune.ArgumentError, match=said):
        check_search(space={"optimizer": ["adam", "sgd"], **space})


def test_a_condition_that_cannot_be_read_is_refused() -> None:
    """On the command line."""
    done = CliRunner().invoke(main, ["search", "model.py", "--space", "momentum=0.5:0.99 if sgd"])

    assert done.exit_code == 2
    assert "NAME=VALUES if OTHER=VALUE" in done.stderr
