"""The pages say what is so: commands, modules, links, and nothing of the machine that they were written on."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.fixture
def make_cli(root: Path) -> ModuleType:
    """The script behind `make docs`."""
    spec = importlib.util.spec_from_file_location("make_cli", root / "docs" / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_page_is_made_from_the_help_texts(root: Path, make_cli: ModuleType) -> None:
    """A changed option changes docs/cli.md too: run `make docs`."""
    assert (root / "docs" / "cli.md").read_text() == make_cli.page()


def test_every_command_ends_its_help_with_an_example(make_cli: ModuleType) -> None:
    """Whoever asks for help sees the command as one would type it."""
    pages = dict(make_cli.commands(make_cli.cli.main, "bstune"))

    assert {"bstune probe", "bstune search", "bstune show", "bstune doctor"} <= set(pages)
    assert [name for name, text in pages.items() if name not in "".join(text.rstrip().splitlines()[-4:])] == []


def test_the_architecture_page_names_every_module(root: Path) -> None:
    """A module that nobody placed in the story is either missing from the page or not needed."""
    page = (root / "docs" / "architecture.md").read_text()
    modules = [
        path.relative_to(root).as_posix()
        for folder in ("tuner", "objectives")
        for path in (root / folder).rglob("*.py")
    ]

    assert [name for name in [*modules, "cli.py"] if not name.endswith("__init__.py") and f"`{name}`" not in page] == []


def test_the_architecture_page_names_no_module_that_is_gone(root: Path) -> None:
    """The page is about this code, not about an older one."""
    page = (root / "docs" / "architecture.md").read_text()

    assert [
        name for name in re.findall(r"`((?:tuner|objectives)/[\w/]+\.py)`", page) if not (root / name).exists()
    ] == []


def test_links_between_pages_lead_somewhere(root: Path) -> None:
    """Every relative link in a page names a file of the project."""
    pages = [*root.glob("*.md"), *root.glob("docs/*.md")]

    assert len(pages) >= 4
    assert [
        f"{page.name}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ] == []


def test_the_changelog_has_room_for_what_comes_next(root: Path) -> None:
    """A change is written down for users when it is made."""
    assert "\n## [Unreleased]\n" in (root / "CHANGELOG.md").read_text()


def test_no_file_names_this_machine(root: Path) -> None:
    """Neither the checkout's own path nor the home folder stands in any file: they mean nothing elsewhere."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout, so tracked files cannot be told from others")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    local = re.compile(
        "|".join(
            rf"(?<![\w.])(?:{re.escape(str(path))})(?![\w.-])" for path in (root, Path.home()) if len(path.parts) > 1
        )
    )
    files = [root / name for name in tracked if name and (root / name).is_file()]

    assert files
    assert [str(file.relative_to(root)) for file in files if local.search(file.read_text(errors="replace"))] == []
