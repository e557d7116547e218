"""The rooms of the package: imports go one way between them, and the maps say what is there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import bstune
import pytest

ROOT = Path(bstune.__file__).parent

# From top to bottom. A file may import from its own room, from a room on the same line, and from all lines below.
ORDER = (
    ("__main__",),
    ("cli", "__init__"),
    ("commands",),
    ("dashboard",),
    ("report_study", "list_studies"),
    (
        "search",
        "probe",
        "plan",
        "scale",
        "batch_ramp",
        "train",
        "show",
        "doctor",
        "serve",
        "work",
        "connect",
        "diagnose",
    ),
    ("service", "client"),
    ("searching", "integrations", "testing"),
    ("diagnosis", "engines"),
    ("probing",),
    ("workers",),
    ("memory",),
    ("objectives", "strategy"),
    ("studies", "device", "report", "theory"),
    ("core",),
)
LINE = {room: line for line, rooms in enumerate(ORDER) for room in rooms}


def room_of(path: Path) -> str:
    """Return the room of a file below the root; a verb is a room of its own."""
    parts = path.with_suffix("").parts
    return parts[0] if parts[0] != "tuner" else parts[1]


def imports_between_rooms(root: Path) -> dict[tuple[str, str], str]:
    """Return each arrow from one room to another with a place where it stands, imports inside functions included."""
    files = [
        path.relative_to(root)
        for pattern in ("*.py", "tuner/**/*.py", "objectives/**/*.py")
        for path in root.glob(pattern)
    ]
    arrows = {}
    for path in sorted(files):
        if path == Path("tuner/__init__.py"):
            continue
        for node in ast.walk(ast.parse((root / path).read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = path.parts[: len(path.parts) - node.level]
            for alias in node.names:
                target = (
                    room_of(Path(*base, *(node.module or "").split("."), alias.name))
                    if base or node.module
                    else "__init__"
                )
                if target != room_of(path):
                    arrows[room_of(path), target] = f"{path}:{node.lineno}"
    return arrows


def upward(arrows: dict[tuple[str, str], str]) -> list[str]:
    """Return the arrows that go up, or to a room that has no place in the order."""
    return sorted(
        f"{where}: {source} imports {target}" for (source, target), where in arrows.items() if not rises(source, target)
    )


def rises(source: str, target: str) -> bool:
    """Whether the order lets one room import from the other."""
    return source in LINE and target in LINE and LINE[source] <= LINE[target]


def around(arrows: dict[tuple[str, str], str]) -> list[str]:
    """Return the rooms that import, over however many others, themselves."""
    below = defaultdict(set)
    for source, target in arrows:
        below[source].add(target)
    rooms = {room for arrow in arrows for room in arrow}
    placed: set[str] = set()
    while ready := {room for room in rooms - placed if below[room] <= placed}:
        placed |= ready
    return sorted(rooms - placed)


def test_no_import_goes_up() -> None:
    """A room may be read, and tested, without those above it."""
    assert upward(imports_between_rooms(ROOT)) == []


def test_no_imports_go_around() -> None:
    """Neither do rooms on the same line import each other both ways."""
    assert around(imports_between_rooms(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("tuner/core/errors.py", "from ..report.text import probe_text", "core imports report"),
        ("tuner/theory/scaling.py", "def late():\n    from ..strategy import space", "theory imports strategy"),
        ("objectives/base.py", "from .. import __version__", "objectives imports __init__"),
        ("tuner/attic/dust.py", "from ..core import errors", "attic imports core"),
    ],
)
def test_an_import_upward_is_seen(tmp_path: Path, file: str, line: str, found: str) -> None:
    """The test of the order fails on it: inside a function, of the front door, and of a room without a place."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f"{line}\n")

    [said] = upward(imports_between_rooms(tmp_path))

    assert said.endswith(found)


def test_imports_around_are_seen(tmp_path: Path) -> None:
    """Two rooms on one line that import each other are a circle, though neither import goes up."""
    for here, there in (("report", "theory"), ("theory", "report")):
        (tmp_path / f"tuner/{here}").mkdir(parents=True)
        (tmp_path / f"tuner/{here}/one.py").write_text(f"from ..{there}.one import name\n")

    arrows = imports_between_rooms(tmp_path)

    assert upward(arrows) == []
    assert around(arrows) == ["report", "theory"]


@pytest.mark.parametrize(
    "folder", [path.parent for path in [*ROOT.glob("tuner/**/__init__.py"), *ROOT.glob("objectives/**/__init__.py")]]
)
def test_the_map_of_a_room_names_what_is_there(folder: Path) -> None:
    """Each module and room has its line in the map, and nothing else has."""
    there = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    tree = ast.parse((folder / "__init__.py").read_text())

    assert len(tree.body) == 1
    assert sorted(re.findall(r"^- `(\w+)`: ", ast.get_docstring(tree) or "", re.MULTILINE)) == sorted(
        there - {"__init__"}
    )


def test_every_room_is_in_the_order_and_in_the_architecture() -> None:
    """A new room gets a place among the others, and a paragraph."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path.parent.relative_to(ROOT) for path in ROOT.glob("tuner/*/__init__.py")] + [Path("objectives")]

    assert sorted(room.name for room in rooms if room.name not in LINE) == []
    assert [f"{room}/" for room in rooms if f"`{room}/`" not in page] == []
