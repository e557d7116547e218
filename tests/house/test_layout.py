"""The house rules that a reviewer would otherwise have to remember.

Imports, examples in docstrings, and what start-up costs.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import bstune
import pytest

ROOT = Path(bstune.__file__).parent
MODULES = {
    ".".join(["bstune", *path.relative_to(ROOT).with_suffix("").parts]): path
    for path in sorted([ROOT / "cli.py", *ROOT.glob("tuner/**/*.py"), *ROOT.glob("objectives/**/*.py")])
    if path.name != "__init__.py"
}
HEAVY = {"torch", "optuna", "numpy", "pandas", "ray", "sqlalchemy", "rich", "altair", "jinja2", "vl_convert"}

# What a module may import of bstune, where it may import less than "anything below it".
ALLOWED = {
    "bstune.tuner.core.errors": set[str](),
    "bstune.tuner.core.record": {"bstune.tuner.core.errors"},
    "bstune.tuner.core.pictures": set[str](),
    "bstune.tuner.core.attributes": {"bstune.tuner.core.errors"},
    "bstune.tuner.core.probe_results": {
        "bstune.tuner.core.errors",
        "bstune.tuner.core.pictures",
        "bstune.tuner.core.record",
    },
    "bstune.tuner.core.trials": {"bstune.tuner.core.errors", "bstune.tuner.core.record"},
    "bstune.tuner.core.trial_record": {"bstune.tuner.core.record", "bstune.tuner.core.trials"},
    "bstune.tuner.core.results": {
        "bstune.tuner.core.attributes",
        "bstune.tuner.core.pictures",
        "bstune.tuner.core.probe_results",
        "bstune.tuner.core.record",
        "bstune.tuner.core.trial_record",
    },
    "bstune.objectives.base": {
        "bstune.tuner.core.amounts",
        "bstune.tuner.core.errors",
        "bstune.tuner.core.trials",
    },
}


def imports_of_bstune(module: str) -> set[str]:
    """Return the modules of bstune that this one imports, wherever in the file; the front door counts as `bstune`."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in MODULES else ".".join(base))
    return found


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_no_file_is_imported_twice() -> None:
    """Each file of the library is one module, and its name begins with `bstune`."""
    for module in MODULES:
        importlib.import_module(module)
    names = defaultdict(set)
    files = {path.resolve() for path in [ROOT / "__init__.py", *MODULES.values()]}
    for name, module_object in list(sys.modules.items()):
        file = getattr(module_object, "__file__", None)
        if file and Path(file).resolve() in files:
            names[file].add(name)

    assert {
        file: sorted(given) for file, given in names.items() if len(given) > 1 or not min(given).startswith("bstune")
    } == {}
    assert len(names) == len(MODULES) + 1


@pytest.mark.parametrize("module", ["bstune", *MODULES])
def test_docstring_examples_run(module: str) -> None:
    """What a docstring shows is what happens."""
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)

    assert result.failed == 0


def test_imports_inside_the_library_are_relative() -> None:
    """A reader and a tool see where a name comes from, whatever the checkout is called."""
    absolute = re.compile(r"^\s*(?:from|import) bstune\b", re.MULTILINE)

    assert [module for module, path in MODULES.items() if absolute.search(path.read_text())] == []


def test_imports_point_one_way() -> None:
    """No module imports, over however many others, itself: also not in a function, where Python would let it pass."""
    imports = {module: imports_of_bstune(module) & set(MODULES) for module in MODULES}
    placed: set[str] = set()
    while ready := {module for module in imports if module not in placed and imports[module] <= placed}:
        placed |= ready

    assert {module: sorted(imports[module] - placed) for module in imports if module not in placed} == {}


def test_a_class_name_is_used_once() -> None:
    """Whoever reads a name knows which class it is, with or without the underscore of a private one."""
    places = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(module)

    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("module", ALLOWED)
def test_the_lowest_modules_stay_low(module: str) -> None:
    """Errors, results and the objective's protocol can be imported by all because they import next to nothing."""
    assert imports_of_bstune(module) <= ALLOWED[module]


def test_a_search_knows_no_engine_by_name() -> None:
    """It asks any of them the same, so another one needs no change of the search: one place makes them all."""
    searching = {module for module in MODULES if module.startswith(("bstune.tuner.search", "bstune.tuner.strategy"))}
    known = {name for module in searching for name in imports_of_bstune(module)}
    places = {name for name in known if name.startswith(("bstune.tuner.engines", "bstune.tuner.workers"))}

    assert places == {
        "bstune.tuner.engines.base",
        "bstune.tuner.engines.choose",
        "bstune.tuner.workers.messages",
        "bstune.tuner.workers.resolve",
    }


@pytest.mark.parametrize(
    "code",
    ["import bstune", "import sys; sys.argv = ['bstune', '--help']; from bstune.cli import main; main()"],
    ids=["import", "help"],
)
def test_start_up_loads_nothing_heavy(code: str) -> None:
    """`import bstune` and `bstune --help` answer at once."""
    result = run_python("-X", "importtime", "-c", code)

    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert result.returncode == 0, result.stderr
    assert "bstune" in loaded
    assert loaded & HEAVY == set()


def test_every_name_of_the_front_door_opens() -> None:
    """Each name in `bstune.__all__` leads to something, and type checkers see the same names."""
    shown = {
        alias.asname
        for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname is None or not alias.asname.startswith("_")
    }

    assert [name for name in bstune.__all__ if not hasattr(bstune, name)] == []
    assert shown | {"__version__"} == set(bstune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'prob'"):
        bstune.prob  # noqa: B018  # The misspelt attribute is the test.


def test_the_root_holds_three_python_files() -> None:
    """Whatever lies beside the root's `__init__.py` is shipped, so only the command line's two files do."""
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py", "cli.py"]
