"""Which arguments of the instances that an objective is made of belong to it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from bstune.objectives.fingerprint import source_facts
from bstune.tests.objectives.modules import known


def given_to(*parts: Any) -> dict[str, str]:
    """Return the arguments that count of an objective that is made of these, by name."""
    return dict(source_facts(*parts)["code_arguments"])


class Focal:
    """A loss of the user's own."""

    def __init__(self, gamma: float = 1.0, *, reduction: str = "mean", log: str = "", inner: Any = None) -> None:
        """Keep what it is made with."""
        self._gamma, self.reduction, self.log, self.inner, self.calls = gamma, reduction, log, inner, 0

    def __call__(self, output: Any, target: Any) -> Any:
        """Count, as a meter does."""
        self.calls += 1
        return output

    def step(self, model: Any, batch: Any) -> Any:
        """Be a training step."""
        return model(batch)


class Rising:
    """A loss whose argument is only where it begins."""

    def __init__(self, weight: float) -> None:
        """Begin there."""
        self.weight = weight

    def __call__(self, output: Any, target: Any) -> Any:
        """Weigh more each time."""
        self.weight += 1.0
        return output


def closed_over(loss: Any) -> Any:
    """A step that holds a loss from where it was made."""
    return lambda model, batch: loss(model(batch), batch)


@pytest.mark.parametrize(
    "made",
    [
        lambda loss: loss,
        lambda loss: loss.step,
        closed_over,
        lambda loss: functools.partial(closed_over(0), loss),
        lambda loss: Focal(inner=loss),
    ],
)
def test_instances_are_told_by_what_they_were_made_with(made: Any) -> None:
    """However they are given; and what an older version stored of the code is as it was."""

    def given(*arguments: Any, **named: Any) -> dict[str, str]:
        return given_to(made(Focal(*arguments, **named)))

    assert given(2.0) == given(2.0) != given(3.0)
    assert list(given(2.0)) == ["Focal(gamma=...)"]
    assert given(reduction="sum") != given()
    assert given(1.0) == given() == {}
    assert source_facts(made(Focal(2.0)))["code_hash"] == source_facts(made(Focal(3.0)))["code_hash"]


def test_what_differs_from_run_to_run_is_no_argument(tmp_path: Path) -> None:
    """A count, a place, and an argument that a method changes: no study is refused for them."""
    used, fresh = Focal(log=f"{tmp_path}/1"), Focal(log=f"{tmp_path}/2")
    used(1, 1)
    assert source_facts(used) == source_facts(fresh)
    first, second = Rising(1.0), Rising(1.0)
    first(1, 1)
    assert source_facts(first) == source_facts(second)
    smooth = [torch.nn.CrossEntropyLoss(label_smoothing=each) for each in (0.0, 0.1)]
    assert [given_to(each).keys() for each in smooth] == [set(), {"CrossEntropyLoss(label_smoothing=...)"}]


class Parsed:
    """A loss that is made in several methods, and by unpickling."""

    def __init__(self, gamma: float) -> None:
        """Leave the work to others."""
        self._modules = [gamma]  # The user's own, and none of torch.
        self._set_up(gamma)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was stored."""
        self.gamma = state["gamma"]

    def _set_up(self, gamma: float) -> None:
        self._fill(gamma)

    def _fill(self, gamma: float) -> None:
        self.gamma = gamma


class Reset(Parsed):
    """One that is made anew each time it is called."""

    def __call__(self) -> None:
        """Begin again."""
        self._set_up(self.gamma + 1)


@dataclasses.dataclass
class Checked:
    """A loss that checks what it was given."""

    gamma: float

    def __post_init__(self) -> None:
        """Make it a number."""
        self.gamma = float(self.gamma)


@pytest.mark.parametrize(("kind", "tells"), [(Parsed, True), (Checked, True), (Reset, False)])
def test_what_sets_an_argument_while_an_instance_is_made_does_not_change_it(kind: type, tells: bool) -> None:
    """Also a method that nothing else calls; one that is called later does."""
    names = {f"{kind.__name__}(gamma=...)"} if tells else set()
    assert given_to(kind(2.0)).keys() == names
    assert (given_to(kind(2.0)) != given_to(kind(3.0))) == tells


CONSTANT = """
from concurrent.futures import ThreadPoolExecutor
import torch

class Focal:
    def __init__(self, gamma):
        self.gamma = gamma

LOSS = VALUE
loss = LOSS

def f():
    return LOSS
"""


@pytest.mark.parametrize(
    ("value", "other", "use", "tells"),
    [
        ("Focal(2.0)", "Focal(3.0)", "return LOSS", True),
        ("torch.nn.HuberLoss(delta=2.0)", "torch.nn.HuberLoss(delta=3.0)", "return LOSS", True),
        ("Focal(2.0)", "Focal(3.0)", "return loss", False),
        ("Focal(2.0)", "Focal(3.0)", "LOSS.gamma *= 2", False),
        ("ThreadPoolExecutor(2)", "ThreadPoolExecutor(3)", "return LOSS", False),
    ],
)
def test_instances_in_constants_are_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, other: str, use: str, tells: bool
) -> None:
    """Not in lower case, nor where a function changes them, nor of a library: a pool has the threads of the machine."""
    found = []
    for each in (value, value, other):
        text = CONSTANT.replace("VALUE", each).replace("return LOSS", use)
        found.append(given_to(known(tmp_path / "model.py", text, monkeypatch).f))
    assert found[0] == found[1]
    assert (found[0] != found[2]) == bool(found[0]) == tells


def test_more_arguments_than_are_named_are_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together: a change of one of them is still a change."""
    monkeypatch.setattr("bstune.objectives.fingerprint.MOST_PARTS", 2)

    def many(gamma: float) -> dict[str, str]:
        kinds = [type(f"Focal{n}", (Focal,), {}) for n in range(3)]
        return given_to(functools.partial(closed_over(0), *(kind(2.0) for kind in kinds[1:]), kinds[0](gamma)))

    assert many(2.0) == many(2.0) != many(3.0)
    assert many(2.0).keys() == {"one of many arguments"}
