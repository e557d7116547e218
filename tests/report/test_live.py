"""The screen of a search on a terminal: what it shows, at any size, and that it leaves the terminal as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from bstune.tests.report.terminals import Terminal
from bstune.tests.report.test_answer import PROBE, VERIFIED, trial
from bstune.tuner import show
from bstune.tuner.report.scene import BLOCKS, PLAIN_BLOCKS, Scene, curve, drawn
from bstune.tuner.report.view import View, laid_out
from bstune.tuner.show import Shown, watched
from rich.cells import cell_len

LOOP = """
import time
import bstune

@bstune.objective(n_samples=320, epochs=4, evals=8)
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            time.sleep(0.1)
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2 + 99 / samples, samples=samples)
"""
SEARCH = ["search", "loop.py", "--isolation", "none", "--study", "mine", "--space", "batch_size=16", "--budget", "60"]
RUNGS = (760, 2276, 6827, 20480)
CURVE = ((256, 2.3), (760, 1.5), (1280, 0.9), (2280, 0.4), (5120, 0.2))
RUNNING = trial(7, 32, 0.05, 5120, None, state="running", reason="", values=CURVE)


def scene() -> Scene:
    """A search in the middle of it."""
    found = Scene("digits", 12.0, 3.2, 42.0, 75.0, RUNGS, VERIFIED.recommendation, {7: RUNNING})
    found.ended.extend(VERIFIED.records)
    found.plan = "searched: batch 4 to 128, lr 0.000138 to 2.26; about 37 trials"
    found.notes.append("Warning: something that takes a whole long line to say, and then some more of it, to the end.")
    return found


def picture(of: Scene, width: int, height: int, blocks: str = BLOCKS) -> list[str]:
    """The lines of a scene."""
    return laid_out(drawn(of, width, height, blocks=blocks), View(width)).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("height", [4, 8, 24])
def test_a_picture_fits_the_terminal(width: int, height: int) -> None:
    """Neither wider nor higher, and its first lines are always there."""
    for blocks in (BLOCKS, PLAIN_BLOCKS):
        lines = picture(scene(), width, height, blocks)
        assert max(map(cell_len, lines)) <= width
        assert len(lines) <= height
        assert lines[0] == "bstune: digits"
        assert "3.2 of 12" in lines[1]
    assert "\n".join(picture(scene(), width, height, PLAIN_BLOCKS)).isascii() or width < 120


def test_a_picture_says_what_matters() -> None:
    """Time used and left, the best with its interval, what runs with its curve, what ended and why."""
    lines = picture(found := scene(), 80, 24)

    assert lines[1].endswith("3.2 of 12 reference runs, 0:42 so far, at most 1:15 left")
    assert lines[2] == "best so far: batch 64, lr 0.1, loss 0.0442 (0.0257-0.0761), checked by one run"
    assert lines[3] == found.plan
    assert lines[4].startswith("Warning: something")
    (running,) = [line for line in lines if line.endswith("  runs")]
    assert running.startswith(">     7     32")
    assert " 0.2 " in running
    assert [line.split()[0] for line in lines[7:]] == ["6", "5", "4", "3", "2", "1", "0"]
    assert any(line.endswith("stopped") for line in lines)
    assert any(line.endswith("diverged") for line in lines)
    assert any(line.endswith("failed: crashed") for line in lines)


def test_the_own_dimensions_of_trials_are_shown() -> None:
    """Where there is room."""
    found = scene()
    found.running = {7: dataclasses.replace(RUNNING, params={"momentum": 0.95})}

    (running,) = [line for line in picture(found, 120, 24) if line.endswith("  runs")]
    assert running.split()[:5] == [">", "7", "32", "0.05", "0.95"]


def test_a_curve_falls_from_rung_to_rung() -> None:
    """Its characters get lower, a rung is a bar, and what was not trained yet is empty."""
    drawn_curve = curve(RUNNING, RUNGS, 0.2, 2.3, BLOCKS)

    assert [len(part) for part in drawn_curve.split("|")] == [4] * 4
    heights = [BLOCKS.index(c) for c in drawn_curve if c in BLOCKS]
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == 0
    assert drawn_curve.endswith("|    ")
    diverged = dataclasses.replace(RUNNING, values=((760, None),))
    assert "!" in curve(diverged, RUNGS, 0.2, 2.3, BLOCKS)


def test_a_probe_shows_sizes_against_the_memory_line() -> None:
    """Each size with what it took, and a mark where the line through the sizes expects it; one that failed too."""
    lines = picture(Scene("digits", attempts=list(PROBE.attempts)), 80, 24)

    assert [line.lstrip("> ").split()[:2] for line in lines[2:5]] == [["3", "ok"], ["1024", "ok"], ["4096", "oom"]]
    small, large, failed = (line.index("|") for line in lines[2:5])
    assert small < large < failed
    assert lines[3].startswith("> ")  # The last one.
    assert lines[3].count("█") == large - small
    assert "█" not in lines[4]
    assert lines[-1] == "memory line so far: 301 MiB for any size (not drawn) + 50 KiB a sample"
    assert max(map(cell_len, lines)) <= 80
    assert picture(Scene("digits", attempts=list(PROBE.attempts[:1])), 80, 24)[-1] == "probing which micro-batches fit"


def test_what_is_watched_is_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a pipe: one line for each trial that ends; the study as it is at the end comes back."""
    monkeypatch.setattr(show, "PAUSE_S", 0.0)
    records = VERIFIED.records
    states = [Shown("", records[:n], None, None, None, n < 4) for n in (1, 2, 2, 4)]
    later = iter(states[1:])

    assert watched(states[0], lambda: next(later)) is states[-1]
    assert [line.split()[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["trial", "1"],
        ["trial", "2"],
        ["trial", "3"],
    ]


def bstune(*arguments: str) -> list[str]:
    """The command line of the program."""
    return [sys.executable, "-c", "from bstune.cli import main; main()", *arguments]


def test_a_search_on_a_terminal_and_one_who_watches(tmp_path: Path) -> None:
    """It is drawn in place while the window changes; after Ctrl-C the terminal is as it was, with the answer on it."""
    (tmp_path / "loop.py").write_text(LOOP)
    with contextlib.closing(Terminal(bstune(*SEARCH), tmp_path)) as terminal:
        first = terminal.wait(lambda text: "  runs" in text and "stopped" in text)
        assert first.startswith("bstune: mine\n")
        assert terminal.screen.cursor.hidden
        with contextlib.closing(Terminal(bstune("show", "--watch"), tmp_path, 100, 30)) as watcher:
            assert watcher.wait(lambda text: "reference runs" in text).startswith("bstune: mine\n")
            watcher.press(b"\x03")
            assert watcher.end() == 130
            assert watcher.text == "Stopped watching. The search goes on."
            assert watcher.is_as_before
        for columns, lines in ((50, 12), (120, 40), (80, 24)):
            terminal.resize(columns, lines)
            terminal.read(1.2)
            shown = terminal.text.split("\n")
            assert shown[0] == "bstune: mine"
            assert [line for line in shown if "bstune: mine" in line or "best so far" in line] == [shown[0], shown[2]]
            numbers = [line[2:].split()[0] for line in shown[4:] if line[2:].strip()]
            assert len(set(numbers)) == len(numbers) > 0
        assert terminal.said.count(b"\x1b[2J") == 0  # It is drawn over, never wiped.
        terminal.press(b"\x03")
        assert terminal.end() == 130
        assert terminal.is_as_before
    shown = terminal.text.split("\n")
    assert "Best so far: batch 16, learning rate" in terminal.text
    assert "not verified" in terminal.text
    assert shown[-1].startswith("Interrupted. What was finished is stored")
    assert "best so far" not in terminal.text


@pytest.mark.skipif(shutil.which("bash") is None, reason="no shell with job control")
def test_ctrl_z_leaves_the_screen_and_fg_draws_it_anew(tmp_path: Path) -> None:
    """In a shell: stopped, its lines stand where they stood; continued, the search is on one screen again."""
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "go").write_text(f"exec {shlex.join(bstune(*SEARCH))}\n")
    with contextlib.closing(Terminal(["bash", "--norc", "--noprofile", "-i"], tmp_path)) as terminal:
        terminal.press(b"PS1='ready> '; sh go\r")
        terminal.wait(lambda text: text.startswith("bstune: mine\n") and "  runs" in text)
        for _ in range(2):
            terminal.press(b"\x1a")
            shown = terminal.wait(lambda text: "Stopped" in text and text.endswith("ready>"))
            assert "best so far" not in shown
            assert not terminal.screen.cursor.hidden
            assert terminal.said.count(b"\x1b[?1049h") == terminal.said.count(b"\x1b[?1049l")
            terminal.press(b"fg\r")
            terminal.wait(lambda text: text.startswith("bstune: mine\n") and "  runs" in text)
            assert terminal.screen.cursor.hidden
            assert terminal.text.count("best so far") == 1
        terminal.press(b"\x03")
        shown = terminal.wait(lambda text: text.endswith("ready>") and "Interrupted." in text)
        assert "best so far: " not in shown
        assert not terminal.screen.cursor.hidden
        assert terminal.said.count(b"\x1b[?1049h") == terminal.said.count(b"\x1b[?1049l") == 3
        terminal.press(b"exit\r")
        assert terminal.end() == 130
