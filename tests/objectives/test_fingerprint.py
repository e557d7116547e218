"""What counts as the same code."""

from __future__ import annotations

import functools
import linecache
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import bstune
import pytest
import torch
from bstune.objectives.fingerprint import code_hash, code_of, file_parts, model_structure, source_facts, source_hash
from bstune.objectives.user_code import MOST_REACHED, reached
from bstune.tests.objectives.modules import known
from bstune.tuner.studies.catalog import same_structure

SOURCE = '''
class Net:
    """What it is."""

    def size(self, n: int = 3) -> int:
        """Say how large."""
        # Three layers.
        return n * 2
'''


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("# Three layers.", ""),
        SOURCE.replace("Three", "Four"),
        SOURCE.replace("What it is.", "Something else."),
        SOURCE.replace('        """Say how large."""\n', ""),
        SOURCE.replace("n * 2", "(n\n            * 2)"),
        f'"""A module."""\n{SOURCE}',
    ],
)
def test_comments_docstrings_and_layout_are_no_code(same: str) -> None:
    """They change the text and nothing that it does."""
    assert same != SOURCE
    assert code_of(same) == code_of(SOURCE)


@pytest.mark.parametrize(
    "other", [SOURCE.replace("n * 2", "n * 3"), SOURCE.replace("n: int = 3", "n: int = 4"), SOURCE + "x = 1"]
)
def test_other_code_is_other_code(other: str) -> None:
    """A number is enough."""
    assert code_of(other) != code_of(SOURCE)


@pytest.mark.parametrize("text", ["def", "x = (", "\0", "(" * 5000, "-" * 100_000 + "1"])
def test_what_cannot_be_read_has_no_code(text: str) -> None:
    """Python itself gives up in several ways."""
    assert code_of(text) is None


def test_a_text_that_warns_is_read_quietly() -> None:
    """Its own warning comes when it is run."""
    assert code_of("x = '\\d'") is not None


def made(path: Path, text: str, module: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Return the function `f` of a module with this text."""
    path.write_text(text)
    module = {"__name__": path.stem} if module is None else module
    exec(compile(text, str(path), "exec"), module)
    function: Callable[..., Any] = module["f"]
    return function


def test_functions_are_compared_by_their_code(tmp_path: Path) -> None:
    """Also within a class, or where there is no source at all; values by what they are."""
    first = made(tmp_path / "first.py", "def f(x):\n    # one\n    return x\n")
    second = made(tmp_path / "second.py", "def f(x):\n    return x  # two\n")
    third = made(tmp_path / "third.py", "def f(x):\n    return x + 1\n")
    assert source_hash(first) != source_hash(second)
    assert code_hash(first, 1) == code_hash(second, 1) != code_hash(second, 2)
    assert code_hash(first) != code_hash(third)

    inner = made(tmp_path / "inner.py", "class A:\n    def f(self):\n        return 1  # one\nf = A.f\n")
    other = made(tmp_path / "other.py", "class A:\n    def f(self):\n        return 1\nf = A.f\n")
    assert source_hash(inner) != source_hash(other)
    assert code_hash(inner) == code_hash(other)
    assert code_hash(eval("lambda x: 1")) != code_hash(eval("lambda x: 2"))


def test_functions_made_alike_differ_by_what_they_hold() -> None:
    """A number that is filled in, or held from around; what is no plain value cannot be told."""

    def held(value: Any) -> Any:
        return lambda: value

    for hashed in (source_hash, code_hash):
        assert hashed(held(1)) == hashed(held(1)) != hashed(held(2))
        assert hashed(held([1])) == hashed(held([2]))
        assert hashed(functools.partial(pow, 1)) != hashed(functools.partial(pow, 2)) != hashed(pow)
        assert hashed(functools.partial(held(1), width=1)) != hashed(functools.partial(held(2), width=1))


USES = """
import math
RATE, speed = 1, 1

class Net:
    def size(self):
        return helper()

def helper():
    return math.pi

def f(x):
    return [Net().size() * RATE * speed for _ in x]
"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("math.pi", "math.e", ["helper()"]),
        ("return helper()", "return 2 * helper()", ["Net.size()"]),
        ("RATE, speed = 1", "RATE, speed = 2", ["RATE"]),
        ("1, 1", "1, 2", []),
    ],
)
def test_what_a_function_uses_of_its_own_module_is_part_of_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, names: list[str]
) -> None:
    """Other functions and classes, however far, and constants; a variable may be another each time."""
    facts = []
    for name, text in (("first", USES), ("second", USES.replace(old, new))):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name])["__file__"] = str(tmp_path / f"{name}.py")
        facts.append(source_facts(made(tmp_path / f"{name}.py", text, vars(sys.modules[name]))))

    assert changed(facts[0]["code_parts"], facts[1]["code_parts"]) == names
    assert (facts[0]["code_hash"] != facts[1]["code_hash"]) == bool(names)


LAYERS = """
def helper():
    return 1

WIDTHS = [1, {"a": 2}]

class Net:
    def size(self):
        return helper()
"""


@pytest.mark.parametrize(
    "text",
    [
        "import layers\ndef f(): return layers.Net()",
        "import layers\nnet = layers.Net()\ndef f(): return net",
        "import functools, layers\nf = functools.partial(map, layers.Net)",
        "import layers\nmake = layers.Net\ndef outer(make):\n    return lambda: make()\nf = outer(layers.Net)",
        "import layers\ndef f(make=layers.Net): return make()",
        "import torch\nfrom layers import helper\n@torch.no_grad()\ndef f(): return helper()",
        "import layers\nf = layers.Net().size",
        "import layers\nclass Loss(layers.Net):\n    def __call__(self): return 0\nf = Loss()",
    ],
)
def test_code_is_found_however_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Through a module, an instance, a partial, a closure, a default, a decorator, a method."""
    hashes = []
    for number in (1, 1, 2):
        known(tmp_path / "layers.py", LAYERS.replace("return 1", f"return {number}"), monkeypatch)
        linecache.clearcache()
        hashes.append(source_facts(known(tmp_path / "model.py", text, monkeypatch).f)["code_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_decorator_of_the_users_own_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it wraps."""
    text = """
import functools
def twice(function):
    @functools.wraps(function)
    def inner(): return 2 * function()
    return inner
@twice
def f(): return 1
"""
    texts = (text, text.replace("2 *", "3 *"), text.replace("return 1", "return 4"))
    made = [known(tmp_path / f"model{n}.py", each, monkeypatch).f for n, each in enumerate(texts)]
    assert len({source_facts(function)["code_hash"] for function in made}) == 3


def test_a_class_without_a_source_is_told_by_its_functions() -> None:
    """As one of a notebook or a prompt."""
    found = []
    for number in (1, 1, 2):
        names: dict[str, Any] = {"__name__": "__prompt__"}
        exec(f"class Net:\n    def size(self): return {number}\ndef f(): return Net()", names)
        found.append(source_facts(names["f"])["code_hash"])
    assert found[0] == found[1] != found[2]


def test_an_attribute_is_no_use_of_a_function_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that calls trial.report does not depend on the user's own report()."""
    text = "LR = 1\ndef report(): return 1\ndef f(trial):\n    trial.report(trial.LR)"
    first = source_facts(known(tmp_path / "first.py", text, monkeypatch).f)
    second = source_facts(known(tmp_path / "second.py", text.replace("1", "2"), monkeypatch).f)
    assert first == second


@pytest.mark.parametrize(
    ("old", "new"), [("(1, 2)", "(1, 3)"), ("{'a': [1]}", "{'a': [2]}"), ("{'a', 'b'}", "{'a', 'c'}"), ("'a'", "None")]
)
def test_plain_containers_in_capitals_are_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """What holds something else is none, since it cannot be compared; nor what has its name in lower case."""

    def parts(value: str, name: str = "WIDTHS") -> dict[str, str]:
        text = f"{name} = {value}\ndef f(): return {name}"
        return dict(source_facts(known(tmp_path / "model.py", text, monkeypatch).f)["code_parts"])

    assert parts(old) == parts(old)
    assert parts(old)["WIDTHS"] != parts(new)["WIDTHS"]
    assert "WIDTHS" not in parts("[object()]")
    assert "WIDTHS" not in parts("[[0] * 1000] * 1000")
    assert "widths" not in parts(old, "widths")


def test_code_without_a_source_is_the_same_in_each_process() -> None:
    """Also where it looks something up in a set, which each process orders its own way."""
    program = (
        "from bstune.objectives.fingerprint import code_hash; "
        'print(code_hash(eval(\'lambda x: x in {"a", "b", "c", "d", "e"}\')))'
    )
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in "123"]
    said = {subprocess.check_output([sys.executable, "-c", program], env=env) for env in seeds}
    assert len(said) == 1


def test_what_is_followed_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a code however large; and a library counts as such also where it is a checkout."""
    text = "def f0(): pass\n" + "\n".join(f"def f{n}(): f{n - 1}()" for n in range(1, 700)) + "\nf = f699\n"
    assert len(reached([known(tmp_path / "model.py", text, monkeypatch).f])) == MOST_REACHED
    timm = known(tmp_path / "timm.py", LAYERS, monkeypatch)
    assert reached([timm.Net]) == []


def test_the_code_is_that_of_when_it_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a notebook's cell is run again; what another process has got is as it was sent."""
    module = known(tmp_path / "model.py", "def f(trial): return helper()", monkeypatch)
    objective = bstune.objective(n_samples=10)(module.f)
    hashes = []
    for number in (1, 1, 2):
        exec(f"def helper(): return {number}", vars(module))
        hashes.append(objective.facts.code_hash)
    assert hashes[0] == hashes[1] != hashes[2]

    sent = pickle.loads(pickle.dumps(objective))
    exec("def helper(): return 3", vars(module))
    assert sent.facts.code_hash == hashes[2] != objective.facts.code_hash


def test_a_reference_has_the_code_of_the_file_that_was_named(tmp_path: Path) -> None:
    """And none once the file is another one."""
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    first = bstune.load(path)
    path.write_text("x = 1  # one\n")
    second = bstune.load(path)
    assert second.source()["code_hash"] is not None
    assert first.source()["code_hash"] is None
    assert first.source_hash != second.source_hash
    assert bstune.load("torch:nn").source()["code_hash"] is None


def changed(old: tuple[tuple[str, str], ...], new: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the names of the parts that differ."""
    before, after = dict(old), dict(new)
    return sorted(name for name in before | after if before.get(name) != after.get(name))


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("n * 2", "n * 3", ["Net.size()"]),
        ("class Net:", "class Net(Wide):", ["Net"]),
        ("# Three", "# Four", []),
        ("WIDTH = 3", "WIDTH = 4", ["WIDTH"]),
        ("import torch", "import numpy", ["its imports"]),
        ("print(1)", "print(2)", ["lines outside of functions"]),
        ("def train():", "def fit():", ["fit()", "train()"]),
    ],
)
def test_the_parts_of_a_file_say_what_was_changed(old: str, new: str, names: list[str]) -> None:
    """By the names that its writer gave them."""
    text = f"import torch\n{SOURCE}\nWIDTH = 3\nprint(1)\n\ndef train():\n    return WIDTH\n"
    assert old in text
    assert changed(file_parts(text.encode()), file_parts(text.replace(old, new).encode())) == names


def test_the_parts_of_an_objective_in_python_are_its_functions_classes_and_values() -> None:
    """What has no text of its own is named all the same; more parts than anybody reads are none."""
    parts = dict(source_facts(changed, bstune.Supervised, eval("lambda x: 1"), 3)["code_parts"])
    assert {"changed()", "Supervised", "Supervised.prepare()", "a lambda", "its arguments"} <= parts.keys()
    assert parts["its arguments"] != dict(source_facts(4)["code_parts"])["its arguments"]
    assert file_parts("\n".join(f"x{n} = 1" for n in range(1000)).encode()) == ()


def test_a_change_of_a_command_is_named_by_what_was_changed(tmp_path: Path) -> None:
    """The command line, how its losses are read, or the processes that it is started in."""
    script = tmp_path / "train.py"
    script.write_text("print(1)\n")

    def parts(*more: str, **options: Any) -> tuple[tuple[str, str], ...]:
        words = [sys.executable, str(script), "--lr", "{learning_rate}", "--batch", "{micro_batch_size}", *more]
        return bstune.Command(words, epochs=1, samples_per_epoch=10, **options).describe().code_parts

    assert changed(parts(), parts("--wide")) == ["the command line"]
    assert changed(parts(), parts(metric=r"loss=(\S+)")) == ["the metric"]
    assert changed(parts(), parts(world_size=2)) == ["world_size"]


def test_a_model_is_the_same_whatever_the_length_of_the_first_sample() -> None:
    """Another layer makes another model; the length is still told, since a probe's answer depends on it."""
    structures = []
    for length, width in ((5, 3), (7, 3), (5, 4)):
        model, sample = torch.nn.Linear(width, 1), (torch.zeros(length, 3), 1)
        structures.append(model_structure(model, sample))
    first, longer, wider = structures
    assert first != longer
    assert same_structure(first, longer)
    assert not same_structure(first, wider)
