"""A terminal for tests: a pseudo-terminal whose screen pyte keeps, with the second screen that programs may use."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte

SECOND_SCREEN = 1049


class TwoScreens(pyte.Screen):
    """A screen that programs may leave for a second one and come back to."""

    first: tuple[Any, Any] | None = None

    def set_mode(self, *modes: int, **options: Any) -> None:
        """Go to the second screen where that is asked for."""
        if SECOND_SCREEN in modes and options.get("private"):
            self.first = copy.deepcopy(self.buffer), copy.deepcopy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        """Come back to the first screen."""
        if SECOND_SCREEN in modes and options.get("private") and self.first is not None:
            (self.buffer, cursor), self.first = self.first, None
            cursor.hidden = self.cursor.hidden
            self.cursor = cursor
        super().reset_mode(*modes, **options)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, words: list[str], folder: Path, columns: int = 80, lines: int = 24) -> None:
        """Start the program."""
        self.screen = TwoScreens(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.said = b""
        self._ours, theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(theirs)

        def take() -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        environment = {
            k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "BSTUNE_STORAGE")
        }
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=take,
            env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        )
        self._theirs = theirs

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the window."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, for_s: float) -> None:
        """Take in what the program says in this time."""
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0 and select.select([self._ours], [], [], left_s)[0]:
            part = os.read(self._ours, 65536)
            self.said += part
            self._stream.feed(part)

    def wait(self, shows: Callable[[str], bool], within_s: float = 60) -> str:
        """Read until the screen shows something, and return the screen."""
        end_s = time.monotonic() + within_s
        while not shows(self.text):
            if time.monotonic() > end_s:
                raise AssertionError(f"never shown; the screen is:\n{self.text}")
            self.read(0.05)
        return self.text

    @property
    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def press(self, keys: bytes) -> None:
        """Type on the keyboard."""
        os.write(self._ours, keys)

    def end(self, within_s: float = 60) -> int:
        """Wait for the program to end, and return its exit code."""
        end_s = time.monotonic() + within_s
        while self.process.poll() is None:
            if time.monotonic() > end_s:
                self.process.kill()
                raise AssertionError(f"did not end; the screen is:\n{self.text}")
            self.read(0.05)
        self.read(0.2)
        return self.process.returncode

    @property
    def is_as_before(self) -> bool:
        """Whether the first screen, the cursor and the keyboard are as the program found them."""
        entered, left = self.said.count(b"\x1b[?1049h"), self.said.count(b"\x1b[?1049l")
        shown = not self.screen.cursor.hidden
        return entered == left and shown and termios.tcgetattr(self._theirs) == self.before

    def close(self) -> None:
        """Let it go."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)
