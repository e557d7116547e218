"""What reaches the terminal, and what happens when nobody listens.

Closed, full and broken outputs, hostile text, and secrets.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.cli import main
from bstune.tuner import show
from bstune.tuner.studies.storage import read_storage
from click.testing import CliRunner

LOOP = """
import contextlib, os
import bstune

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    with contextlib.suppress(OSError):
        os.write(2, b"said by the model\\n")
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2 + 99 / samples, samples=samples)
"""
SEARCH = (
    "search loop.py --isolation none --study mine --space batch_size=16 --space learning_rate=0.001,0.01 --budget 2"
)
JOURNAL = "--storage journal:///mine.journal"
"""A process that reads a journal needs no database; where a study is kept changes nothing of what is printed."""
EVIL = "x\nimport os; os.system('id')\r\n\x1b[2J\x1b]0;title\x07\u202e postgresql://me:s3cret@h/d?sslpassword=s3cret"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a finished study of it."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "loop.py").write_text(LOOP)
    done = shell(folder, SEARCH)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("said by the model") >= 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(main, [*SEARCH.split(), *JOURNAL.split()]).exit_code == 0
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to work in."""
    monkeypatch.chdir(tmp_path)
    for name in ("loop.py", "bstune.db", "mine.journal"):
        shutil.copy(stored / name, tmp_path)
    return tmp_path


def shell(folder: Path, command: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, with some of its outputs redirected; the exit code is its own, also before a pipe."""
    words = f"{sys.executable} -c 'from bstune.cli import main; main()' {command} {redirected}"
    variables = {key: value for key, value in os.environ.items() if key not in ("BSTUNE_STORAGE", "PYTHONUNBUFFERED")}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"],
        cwd=folder,
        env={**variables, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


UNPRINTED = {
    ">&-": "stdout is closed",
    ">/dev/full": "no space left on device",
    "</dev/null >&-": "stdout is closed",
    "| head -0": "broken pipe",
}
UNHEARD = ["<&-", "2>&-", "2>/dev/full", "<&- 2>&-"]
SILENT = ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("redirected", [*UNPRINTED, *UNHEARD, *SILENT])
def test_help_that_nobody_reads(tmp_path: Path, redirected: str, unbuffered: str) -> None:
    """If the answer cannot be printed: exit 1 with one sentence, or none after a closed pipe; never a traceback."""
    done = shell(tmp_path, "--help", redirected, PYTHONUNBUFFERED=unbuffered)
    said = (
        ""
        if "|" in redirected or redirected not in UNPRINTED
        else f"Error: The answer could not be printed: {UNPRINTED[redirected]}.\n"
    )
    assert (done.returncode, done.stderr) == (0 if redirected in UNHEARD else 1, said)
    assert ("Usage: " in done.stdout) == (redirected in UNHEARD)


@pytest.mark.parametrize("redirected", [*UNPRINTED, *UNHEARD, *SILENT])
def test_a_study_that_nobody_reads(folder: Path, redirected: str) -> None:
    """The same of `bstune show`."""
    done = shell(folder, f"show {JOURNAL}", redirected)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Warning: ")]
    said = (
        []
        if "|" in redirected or redirected not in UNPRINTED
        else [f"Error: The answer could not be printed: {UNPRINTED[redirected]}."]
    )
    assert (done.returncode, errors) == (0 if redirected in UNHEARD else 1, said)
    assert ("Train with batch" in done.stdout) == (redirected in UNHEARD)


@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", "| head -0", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_search_that_nobody_reads(folder: Path, redirected: str) -> None:
    """Its result is stored, and it says so; what the model writes to a closed stderr does not get into the database."""
    (folder / "bstune.db").unlink()
    done = shell(folder, SEARCH, redirected)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    heard = redirected in UNHEARD
    assert (done.returncode, "checked by" in done.stdout) == (0 if heard else 1, heard)
    if redirected in UNPRINTED:
        last = (
            f"Error: The answer could not be printed: {UNPRINTED[redirected]}. "
            "It is stored, and `bstune show mine` shows it."
        )
        assert done.stderr.splitlines()[-1] == last
    assert b"said by the model" not in (folder / "bstune.db").read_bytes()
    assert bstune.tuner.show.show("mine").require_result().recommendation.verified


def test_what_is_kept_in_memory_is_not_called_stored(folder: Path) -> None:
    """It is lost, and nothing else is said."""
    done = shell(folder, f"{SEARCH} --storage sqlite:///:memory:", ">&-")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "Error: The answer could not be printed: stdout is closed.",
    )


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_mistake_that_nobody_hears_of(tmp_path: Path, redirected: str) -> None:
    """The exit code says it."""
    assert (shell(tmp_path, "show", redirected).returncode, shell(tmp_path, "--nonsense", redirected).returncode) == (
        1,
        2,
    )


def test_a_terminal_that_knows_few_letters(folder: Path) -> None:
    """A letter that it has not is shown as an escape."""
    done = shell(folder, f"show {JOURNAL}", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


# --- text from elsewhere ------------------------------------------------------------------------------------------


def spoil(database: Path) -> None:
    """Put hostile text wherever a study holds text, as another program could."""
    with closing(sqlite3.connect(database)) as connection:

        def change(table: str, key: str, **new: Any) -> None:
            rows = connection.execute(f"SELECT rowid, value_json FROM {table} WHERE key = ?", (key,)).fetchall()
            for row, text in rows:
                value = json.dumps({**json.loads(text), **new} if new else EVIL)
                connection.execute(f"UPDATE {table} SET value_json = ? WHERE rowid = ?", (value, row))

        connection.execute("UPDATE studies SET study_name = ?", (EVIL,))
        change("study_user_attributes", "stopped_by")
        change("study_user_attributes", "facts", optimizer=EVIL, kind="supervised")
        change("trial_user_attributes", "result", reason=EVIL)
        for (trial,) in connection.execute("SELECT trial_id FROM trials").fetchall():
            params = json.dumps({EVIL: EVIL, "class": 1, "micro_batch_size": 2, "width": 3})
            connection.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, 'params', ?)", (trial, params)
            )
        connection.commit()


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["show"], 0), (["show", "another"], 1), (["doctor", "--device", "cpu"], 0), (["show", "--json"], 0)],
)
def test_a_hostile_study_is_shown_as_text(folder: Path, arguments: list[str], exit_code: int) -> None:
    """No control character, no line of its own, no password; what is pasted is code of ours alone."""
    spoil(folder / "bstune.db")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.output
    lines = (result.stdout + result.stderr).splitlines()
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.lstrip().startswith("import os")] == []
    if "--json" in arguments:
        with read_storage(None) as storage:
            assert json.loads(result.stdout)["study"] == storage.names()[0] == EVIL
    else:
        assert "s3cret" not in result.output
        assert ("width = 3" in lines) == (arguments == ["show"])


@pytest.mark.parametrize("command", [["show"], ["doctor", "--device", "cpu"], ["search"]])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@127.0.0.1:1/runs",
        "postgresql://127.0.0.1:1/runs?user=me&password=s3cret&sslpassword=s3cret",
        "odd://s3cret@h",
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_no_password_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], url: str, by_variable: bool
) -> None:
    """Not by the error, nor by the tracebacks of the drivers that --debug adds."""
    if by_variable:
        monkeypatch.setenv("BSTUNE_STORAGE", url)
    for options in ([], ["--debug"], ["--json"]):
        result = CliRunner().invoke(main, [*command, *options, *([] if by_variable else ["--storage", url])])
        assert result.exit_code == 1
        assert "s3cret" not in result.output
        assert ("Traceback" in result.output) == (options == ["--debug"] and command[0] != "doctor")


def test_a_password_in_a_drivers_own_words_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known from the storage that was given, and hidden in every error on the way, our own bugs included."""

    def connect(*_: object, **__: object) -> None:
        try:
            raise OSError("no login with word sec-ret\x1b[2J here")
        except OSError as error:
            raise RuntimeError("cannot") from error

    monkeypatch.setattr(show, "show", connect)
    result = CliRunner().invoke(main, ["show", "--storage", "postgresql://me:sec-ret@h/runs"])
    assert result.exit_code == 1
    assert "no login with word ***\\x1b[2J here" in result.stderr
    assert "This is a mistake in bstune" in result.stderr
    assert "sec-ret" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--\x1b[2J"],
        ["search", "\x1b[2J.py"],
        ["search", "a.py", "--storage", "postgresql://me:s3cret@h/runs\x1b"],
        ["search", "a.py", "--ray-address", "ray://me:s3cret@h:1"],
        ["search", "a.py", "--study", "\x1b[2J"],
        ["show", "\x1b[2J"],
        ["probe", "a.py", "--memory", "\x1b[2J"],
        ["search", "a.py", "--space", "\x1b[2J"],
        ["search", "a.py", "--probe", "\x1b[2J"],
    ],
)
def test_what_was_typed_is_repeated_harmlessly(folder: Path, arguments: list[str]) -> None:
    """A command line may have been pasted."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert result.stderr
    assert all(line.isprintable() for line in result.output.splitlines())
    assert "s3cret" not in result.output


def test_a_live_display_shows_text_as_it_is(folder: Path) -> None:
    """On a terminal of 80 columns: no markup, no picture for a word between colons, and the answer is left alone."""
    ours, theirs = pty.openpty()
    name = ":bomb: [red]x[/red]"
    command = f"{SEARCH.replace('mine', chr(34) + name + chr(34))} --storage sqlite:///live.db"
    process = subprocess.Popen(
        ["bash", "-c", f"exec {sys.executable} -c 'from bstune.cli import main; main()' {command}"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(theirs)
    said = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            said += os.read(ours, 65536)
    except OSError:  # The end of a terminal.
        pass
    stdout, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, said
    assert f"Study {name}: new".encode() in said
    assert b"checked by" in stdout.splitlines()[0]
    assert f"study {name}: ".encode() in stdout
