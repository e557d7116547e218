"""One run of a command: started without a shell, read while it runs, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from ..tuner.core.errors import ObjectiveError
from .metric_lines import reported_in
from .reporting import VARIABLE

POLITE_S = 3.0
"""From the request to end (SIGTERM) to the end by force (SIGKILL)."""
LOOK_S = 0.05
READ_BYTES = 1 << 16
TAIL_BYTES = 1 << 15
"""Of what it printed last: enough to say why it ended."""


class CommandRun:
    """A command that runs, as a context: at its end nothing of it is left.

    Attributes:
        code: Its exit code, negative for the signal that ended it; None while it runs.
        started_s: When it began, by the monotonic clock.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Log) -> None:
        """Start it as a process group of its own; what it prints goes to the log.

        Raises:
            ObjectiveError: It cannot be started.
        """
        self.code: int | None = None
        self.started_s = time.monotonic()
        self.log = log
        self._reports = _ReportFile()
        read, write = os.pipe()
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # What this process ignores, a program it starts would.
        try:
            self._process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env={**environment, VARIABLE: self._reports.path},
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            self._reports.close()
            raise ObjectiveError(f"The command cannot start: {words[0]}: {error.strerror}.") from error
        finally:
            signal.signal(signal.SIGINT, before)
            os.close(write)
        self._output: int | None = read

    def __enter__(self) -> CommandRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        self._reports.close()

    def printed(self, within_s: float = LOOK_S) -> bytes:
        """Wait at most this long and return what it has printed since; empty also where it has ended."""
        if self._output is None:
            if self.code is None:
                time.sleep(within_s)
                self._look()
            return b""
        if select.select([self._output], [], [], within_s)[0]:
            data = os.read(self._output, READ_BYTES)
            self.log.write(data)
            if data:
                return data
            os.close(self._output)  # It has closed its output, and may go on.
            self._output = None
        self._look()
        return b""

    def reported(self) -> list[dict[str, float]]:
        """Return what it has reported in lines of JSON since the last call."""
        return self._reports.read()

    def _look(self) -> None:
        # Looked at without reaping: until then its group cannot be taken for another's.
        if self.code is None and os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._signal(signal.SIGKILL)  # What it left behind in its group.
            self.code = self._process.wait()

    def rest(self) -> Iterator[bytes]:
        """Yield what is unread after its end.

        Nothing is waited for: what it left behind may hold the pipe open.
        """
        while self._output is not None and select.select([self._output], [], [], 0)[0]:
            if not (data := os.read(self._output, READ_BYTES)):
                return
            self.log.write(data)
            yield data

    def end(self, *, after_s: float = 0.0) -> None:
        """End it politely, then by force; it may end by itself for `after_s` seconds first."""
        for signal_number, within_s in ((None, after_s), (signal.SIGTERM, POLITE_S), (signal.SIGKILL, POLITE_S)):
            if self.code is None and signal_number is not None:
                self._signal(signal_number)
            deadline_s = time.monotonic() + within_s
            while self.code is None and time.monotonic() < deadline_s:
                self.printed()  # It must not wait for a reader.
                self._look()
        if self._output is not None:
            for _ in self.rest():
                pass
            os.close(self._output)
            self._output = None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Log:
    """What a run has printed: the beginning and the end of it in a file, and the last lines at hand.

    A log has a bound, so that a script that prints without end fills neither memory nor disk.

    Attributes:
        n_bytes: That were printed so far.
    """

    HEAD_BYTES, LAST_BYTES = 4 << 20, 1 << 18

    def __init__(self, path: str | None) -> None:
        """Write to a file, where one is named."""
        self._file: IO[bytes] | None = None
        if path is not None:
            with contextlib.suppress(OSError):  # A log that cannot be kept is no reason not to train.
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        self.n_bytes = 0
        self._written = 0
        self._left_out = 0
        self._last: deque[bytes] = deque()
        self._last_bytes = 0
        self._tail = b""

    def write(self, data: bytes) -> None:
        """Take in what was printed."""
        self.n_bytes += len(data)
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._file is None:
            return
        if self._written < self.HEAD_BYTES:
            self._put(data)
            self._written += len(data)
            return
        self._last.append(data)
        self._last_bytes += len(data)
        while self._last_bytes - len(self._last[0]) > self.LAST_BYTES:
            gone = len(self._last.popleft())
            self._last_bytes -= gone
            self._left_out += gone

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # Such as a full disk.
            self._file.write(data)

    def close(self) -> None:
        """Write the end of it."""
        if self._file is None:
            return
        if self._left_out:
            self._put(f"\n[{self._left_out:,} bytes left out]\n".encode())
        for data in self._last:
            self._put(data)
        self._file.close()
        self._file = None

    def show_tail(self) -> None:
        """Print it to the end of this process's own log, whose last lines are shown where it matters."""
        sys.stdout.flush()
        os.write(1, self._tail)

    def tail(self) -> str:
        """Return the last of what was printed."""
        return self._tail.decode(errors="replace")


class _ReportFile:
    """The file to which a script appends lines of JSON, and which vanishes with this process where the system can."""

    MOST_BYTES = 1 << 20

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("bstune-report")
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self._fd, self.path = tempfile.mkstemp(prefix="bstune-report-", suffix=".jsonl")
        self._at = 0

    def read(self) -> list[dict[str, float]]:
        """Return the numbers of the whole lines that were appended since."""
        data = os.pread(self._fd, self.MOST_BYTES, self._at)
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(data) if len(data) == self.MOST_BYTES and not whole else len(whole)
        found = map(reported_in, whole.splitlines())
        return [numbers for numbers in found if numbers is not None and "val_loss" in numbers]

    def close(self) -> None:
        """Forget the file."""
        os.close(self._fd)
        if not self.path.startswith("/proc/"):
            with contextlib.suppress(OSError):
                os.unlink(self.path)
