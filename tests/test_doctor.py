"""What `bstune doctor` finds, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import bstune
import pytest
from bstune.cli import main
from bstune.tuner.doctor import Findings, examine
from bstune.tuner.storage import open_storage
from click.testing import CliRunner


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)


def found(findings: Findings, name: str) -> str:
    """The verdict on one thing."""
    return next(item.verdict for item in findings.items if item.name == name)


def test_a_machine_that_works(tmp_path: Path) -> None:
    """It names what an answer depends on, is healthy, and leaves no file."""
    findings = examine(device="cpu")
    names = {item.name for item in findings.items}
    assert {"python", "bstune", "torch", "optuna", "cpu", "memory", "storage", "extra ray"} <= names
    assert findings.healthy, findings.text()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_used_is_wrong(tmp_path: Path) -> None:
    """Exit 1, with the reason, as text and as JSON; the other findings are still there."""
    (tmp_path / "bstune.db").write_text("my thesis " * 1000)
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu"])
    assert result.exit_code == 1
    assert "it is not a database" in result.stdout
    data = json.loads(CliRunner().invoke(main, ["doctor", "--device", "cpu", "--json"]).stdout)
    assert data["healthy"] is False
    assert {item["name"]: item["verdict"] for item in data["findings"]}["torch"] == "ok"


def test_a_storage_in_use_is_only_noted() -> None:
    """A search that runs is no illness."""
    with open_storage(None):
        findings = examine(device="cpu")
    assert found(findings, "storage") == "note"
    assert findings.healthy


def test_a_device_that_bstune_does_not_know() -> None:
    """It is wrong, and nothing is hidden by it."""
    findings = examine(device="mps")
    assert not findings.healthy
    assert found(findings, "storage") == "ok"


def test_the_versions_are_the_installed_ones() -> None:
    """So that a report of a bug can be trusted."""
    findings = examine(device="cpu")
    assert next(item.found for item in findings.items if item.name == "bstune") == bstune.__version__
