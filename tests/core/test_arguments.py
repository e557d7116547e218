"""Arguments that are wrong on their face, and sizes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import bstune
import click
import optuna
import pytest
from bstune.cli import main
from bstune.tuner.core.amounts import parse_duration, parse_size
from bstune.tuner.core.arguments import ProbeArguments, SearchArguments, check_probe, check_search
from bstune.tuner.core.specs import Plan


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("12GiB", 12 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("800MB", 800 * 10**6),
        ("2g", 2**31),
        ("512", 512),
        (4096, 4096),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: str | int, n_bytes: int) -> None:
    """Binary and decimal units; a bare letter is binary, as in Docker and Slurm."""
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["12parsecs", "GiB", "", "-1GiB", "0", "1e3", "0.2", True, "1.2.3GiB", "nan", "9" * 400, "2000000TiB", 2**61],
)
def test_what_is_no_size(text: Any) -> None:
    """Each is refused with an example of what would do."""
    with pytest.raises(bstune.ArgumentError, match="is not a size: expected"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20min", 1200),
        ("1.5h", 5400),
        ("90s", 90),
        ("45 s", 45),
        ("2 hours", 7200),
        (" 1 Minute ", 60),
        ("1d", 86400),
        (".5m", 30),
        ("1e-05 s", 1e-5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Units as people write them, with or without a space."""
    assert parse_duration(text) == seconds
    assert (check_search(budget=text).plan.budget_s, check_search(budget=text).plan.budget) == (seconds, Plan.budget)


@pytest.mark.parametrize(
    "text", ["12", "min", "", "-1s", "0s", "1h30", "2 weeks", "1e99h", "nan s", "1.2.3s", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    """Each is refused with what would do; a number alone might be meant as either."""
    with pytest.raises(bstune.ArgumentError, match="is not a duration: expected"):
        parse_duration(text)
    with pytest.raises(bstune.ArgumentError, match=r"^budget: .* A plain number counts reference runs\.$"):
        check_search(budget=text)


@pytest.mark.parametrize(
    ("text", "budget", "budget_s"),
    [("8", 8.0, None), ("0.5", 0.5, None), ("20min", 12.0, 1200.0), ("2 h", 12.0, 7200.0)],
)
def test_the_command_takes_a_budget_of_either_kind(text: str, budget: float, budget_s: float | None) -> None:
    """A number counts reference runs, as it does in Python."""
    with click.Context(main, help_option_names=["-h", "--help"]) as ctx:  # Click keeps the first one that it makes.
        command = main.get_command(ctx, "search")
    assert command is not None
    given = command.make_context("search", ["model.py", "--budget", text], parent=ctx).params["budget"]
    plan = check_search(budget=given).plan
    assert (plan.budget, plan.budget_s) == (budget, budget_s)


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0},
        {"budget": float("nan")},
        {"budget": "12"},
        {"budget": "20 parsecs"},
        {"budget": "0s"},
        {"budget": ""},
        {"budget": True},
        {"n_trials": 0},
        {"n_trials": 2.5},
        {"timeout": -1},
        {"tolerance": 1},
        {"jobs": True},
        {"jobs": "many"},
        {"threads": 0},
        {"threads": "all"},
        {"threads": 10**6},
        {"threads": 2, "isolation": "none"},
        {"confirm": -1},
        {"seed": -1},
        {"seed": 1.0},
        {"goal": "loss", "target": 0.5},
        {"goal": "time", "target": float("inf")},
        {"engine": "spark"},
        {"ray_address": "auto"},
        {"study": " "},
        {"study": "a\nb"},
        {"study": "a\x1b[2J"},
        {"study": "a\u202eb"},
        {"study": "a\ud800"},
        {"study": "a" * 201},
        {"study": 3},
        {"storage": "sqlite:///a\0b"},
        {"storage": "sqlite:///a\nb"},
        {"storage": "sqlite:///\udc80"},
        {"storage": ""},
        {"device": "cuda\n"},
        {"engine": "ray", "ray_address": "auto\x07"},
        {"seed": 2**43 + 1},
        {"jobs": 10**30},
        {"budget": 1e300},
        {"timeout": 1e10},
        {"space": {"batch_size": [10**30]}},
        {"space": {"width": [2**63]}},
        {"space": {"w" * 201: 1}},
        {"callbacks": "print"},
        {"callbacks": [1]},
        {"probe": "probe.json"},
        {"isolation": "none", "jobs": 2},
        {"space": [32, 64]},
        {"space": {"batch_size": []}},
        {"space": {"batch_size": [32.5]}},
        {"space": {"batch_size": (64, 32)}},
        {"space": {"batch_size": (1, 2, 3)}},
        {"space": {"batch_size": (65, 100)}},
        {"space": {"batchsize": [32]}},
        {"space": {"learning-rate": [0.1]}},
        {"space": {"learning_rate": 0.0}},
        {"space": {"samples": [1, 2]}},
        {"space": {"weight decay": 0.1}},
        {"space": {"weight_decay": (0.0, 0.1)}},
        {"space": {"batch_size": optuna.distributions.FloatDistribution(1, 2)}},
        {"baseline": (64, -0.1)},
        {"baseline": (0.5, 0.1)},
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any]) -> None:
    """The message begins with the name of the argument that is wrong."""
    names = tuple(wrong)
    with pytest.raises(bstune.ArgumentError) as caught:
        check_search(**wrong)
    assert str(caught.value).startswith(names)


def test_a_name_that_is_long_or_foreign_is_good() -> None:
    """Other languages, spaces, and all that a file's name may contain."""
    assert (
        check_search(study="Größe 4×4 – 研究 'a'", storage="sqlite:////tmp/Größe #1?.db").study
        == "Größe 4×4 – 研究 'a'"
    )
    assert check_probe(study="a" * 200, storage="a").seed == 0


def test_good_arguments_become_a_plan() -> None:
    """Defaults are filled in; numbers keep their kind."""
    arguments = check_search(space={"batch_size": (32, 256), "learning_rate": [0.1, 0.2]}, baseline=(64, 1), budget=8)
    assert arguments.plan.budget == 8.0
    assert arguments.plan.baseline == (64, 1.0)
    assert {name: dimension.raw for name, dimension in arguments.plan.space.items()} == {
        "batch_size": (32, 256),
        "learning_rate": [0.1, 0.2],
    }
    assert check_search().plan.budget == 12.0
    assert check_probe(memory="1GiB").memory == 2**30


def signature_defaults(function: Any) -> dict[str, Any]:
    """Return what a function takes beside the objective, with its defaults."""
    return {name: each.default for name, each in inspect.signature(function).parameters.items() if name != "objective"}


def option_defaults(command: str) -> dict[str, Any]:
    """Return the options of a command that are arguments of its function, by the function's names."""
    # Click keeps the option for help that it makes first: it is to be the one that users see.
    with click.Context(main, help_option_names=["-h", "--help"]) as ctx:
        found = main.get_command(ctx, command)
    assert found is not None
    own = {"model", "as_json", "plot", "dry_run", "yes", "debug", "verbose", "metric", "epochs", "samples_per_epoch"}
    own |= {"server", "token_file", "world_size"}
    options = {
        name: value
        for name, value in found.make_context(command, ["model.py"], parent=ctx).params.items()
        if name not in own
    }
    return {name.removesuffix("_file"): value for name, value in options.items()}


@pytest.mark.parametrize(
    ("command", "shapes", "elsewhere"),
    [("search", (Plan, SearchArguments), {"callbacks"}), ("probe", (ProbeArguments,), {"on_attempt"})],
)
def test_function_command_and_fields_agree(command: str, shapes: tuple[Any, ...], elsewhere: set[str]) -> None:
    """The fields have the defaults; the signature that people read and the options repeat them, and none is missing."""
    fields = {
        each.name: None if each.default is dataclasses.MISSING else each.default
        for shape in shapes
        for each in dataclasses.fields(shape)
        if each.name not in ("plan", "budget_s")  # A budget is either a number or a duration.
    }
    signature = signature_defaults(getattr(bstune, command))
    callback = {"on_attempt": None} if command == "probe" else {}

    assert signature == {**fields, **callback}
    assert {name: None if default == () else default for name, default in option_defaults(command).items()} == {
        name: default for name, default in signature.items() if name not in elsewhere
    }


def test_an_argument_that_does_not_exist_is_a_mistake_of_the_caller() -> None:
    """A misspelt name is no default."""
    with pytest.raises(TypeError, match="Not an argument: bugdet"):
        check_search(bugdet=8)
