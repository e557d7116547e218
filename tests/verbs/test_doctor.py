"""What `bstune doctor` finds, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import bstune
import pytest
from bstune.cli import main
from bstune.tuner import doctor
from bstune.tuner.core.symptoms import Examination, Symptom
from bstune.tuner.doctor import examine
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage
from click.testing import CliRunner


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)


def found(findings: Examination, name: str) -> str:
    """The verdict on one thing."""
    return next(item.verdict for item in findings.items if item.name == name)


def storage_of(url: str | None = None) -> Symptom:
    """What is said of a storage."""
    return next(item for item in examine(device="cpu", storage=url).items if item.name == "storage")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file of a folder with its content and time; the index of SQLite's log belongs to its readers."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.suffix != ".db-shm"
    }


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
    """A search that runs is no illness; it is said how many studies there are, and who writes."""
    with open_storage(None) as storage:
        make_study(storage, "digits")
        findings = examine(device="cpu")
    assert found(findings, "storage") == "note"
    assert f"1 study; process {os.getpid()} on" in findings.text()
    assert findings.healthy


@pytest.mark.parametrize("url", ["sqlite:///bstune.db", "journal:///bstune.log"])
def test_a_storage_is_looked_at_and_left_alone(tmp_path: Path, url: str) -> None:
    """Nothing is made where there is none, nothing of it is changed where there is one."""
    assert (storage_of(url).verdict, list(tmp_path.iterdir())) == ("ok", [])
    assert "can be made" in storage_of(url).found
    with open_storage(url) as storage:
        make_study(storage, "digits")
        make_study(storage, "digits\n\x1b[2J")
    before = contents(tmp_path)
    folder_ns = tmp_path.stat().st_mtime_ns
    assert (storage_of(url).verdict, storage_of(url).found) == ("ok", f"{tmp_path / url.rpartition('/')[2]}: 2 studies")
    assert contents(tmp_path) == before
    assert tmp_path.stat().st_mtime_ns == folder_ns


def test_what_a_killed_search_left_is_left_for_the_next_one(tmp_path: Path) -> None:
    """Its log and its lock; and where only the mode of the database is left, no file is made beside it."""
    code = (
        "import os\n"
        "from bstune.tuner.studies.storage import open_storage\n"
        "from bstune.tuner.studies.catalog import make_study\n"
        "make_study(open_storage(None), 'a')\n"
    )
    killed = subprocess.run([sys.executable, "-c", f"{code}os.kill(os.getpid(), 9)"], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = contents(tmp_path)
    assert storage_of().found.endswith("bstune.db: 1 study")
    assert contents(tmp_path) == before

    with contextlib.closing(
        sqlite3.connect(tmp_path / "bstune.db")
    ) as last:  # It takes the log into the database, whose mode stays.
        last.execute("SELECT count(*) FROM studies").fetchone()
    assert {path.name for path in tmp_path.iterdir()} == {"bstune.db", "bstune.db.lock"}
    before = contents(tmp_path)
    assert storage_of().found.endswith("bstune.db: 1 study")
    assert contents(tmp_path) == before


def test_a_storage_that_cannot_be_made_is_wrong(tmp_path: Path) -> None:
    """With its reason; what lives in memory needs no place."""
    assert storage_of("sqlite:///missing/bstune.db").verdict == "wrong"
    assert "its folder does not exist" in storage_of("sqlite:///missing/bstune.db").found
    assert (storage_of("sqlite:///:memory:").verdict, storage_of("nonsense").verdict) == ("ok", "wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_server_that_is_not_there_is_wrong(scheme: str) -> None:
    """It is tried, and the password is not shown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://me:s3cret@127.0.0.1:{free.getsockname()[1]}/runs"  # Bound, but nobody listens.
        finding = storage_of(url)
    assert (finding.verdict, "s3cret" in finding.found) == ("wrong", False)
    assert "no database server answers there" in finding.found


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_server_that_says_nothing_is_not_waited_for(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and no more."""
    monkeypatch.setattr(doctor, "STORAGE_S", 1.0)
    start_s = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        finding = storage_of(f"{scheme}://me:s3cret@127.0.0.1:{server.getsockname()[1]}/runs?connect_timeout=60")
        assert (finding.verdict, finding.found) == ("wrong", "does not answer within 1 s")
    assert time.monotonic() - start_s < 30


def test_a_doctor_never_falls_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a look runs into is a finding: also a pipe, a folder, and a package without a version."""
    from importlib import metadata

    def version(name: str) -> str:
        raise KeyError(f"Version of {name}\n\x1b[2J")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "_memory", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "STORAGE_S", 2.0)
    os.mkfifo(tmp_path / "pipe")
    for url in ("sqlite:///pipe", "sqlite:///.", "journal:///pipe", "sqlite:///a\0b", "sqlite:///a\x1b[2Jb\n"):
        findings = examine(device="cpu\x1b", storage=url)
        assert all(line.isprintable() for line in findings.text().splitlines()), findings.text()
        assert {"python", "torch", "device", "memory", "storage"} <= {item.name for item in findings.items}
        assert found(findings, "memory") == "wrong"


def test_a_device_that_bstune_does_not_know() -> None:
    """It is wrong, and nothing is hidden by it."""
    findings = examine(device="mps")
    assert not findings.healthy
    assert found(findings, "storage") == "ok"


def test_the_versions_are_the_installed_ones() -> None:
    """So that a report of a bug can be trusted."""
    findings = examine(device="cpu")
    assert next(item.found for item in findings.items if item.name == "bstune") == bstune.__version__
