"""A worker program as the host sees it.

How it is started, the processes that it forks, what they say, and how each of them ended.

The program is `worker.py`. User code runs in it, so nothing here waits for it without end, and no process is ended
because it says so.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import IO, Any

from ..core.errors import BstuneError
from ..core.interrupts import uninterrupted
from ..core.plain_text import printable
from ..core.terminal_text import as_shown, last_lines
from ..core.trials import Verdict
from . import messages
from .answers import SMALL_BYTES, Listener
from .launch import command, safe_environment
from .leftovers import ending_of
from .message_json import decode, encode
from .wire import Line, MalformedError
from .worker import CUDA_UNTOUCHED, ONE_THREAD, PATIENT_THREADS

TAIL_BYTES = 4096
TAIL_LINES = 10
CLOSE_S = 8.0
"""The program ends all below it within half of this."""
START_S = 60.0
"""A fork takes milliseconds, and on a machine out of memory some seconds."""
KILL_S = 5.0
PARTING_S = 3.0
"""From the end of a process's connection to the word that it has ended."""
LOOK_S, LOOK_ALL_S = 0.05, 5.0
"""How often to look at what cannot be waited for.

Also where all can be waited for: a message may have got stuck.
"""


@dataclass(frozen=True)
class Died:
    """A worker process ended without an answer, or was ended for what it sent."""

    exit_code: int | None
    """Negative: the signal that ended it. None: it was ended for what `said` tells."""
    said: str = ""

    @property
    def text(self) -> str:
        """Return how it ended, in words."""
        if self.exit_code is None:
            return f"its process {self.said}"
        if self.exit_code >= 0:
            return f"its process exited with code {self.exit_code}"
        name = (
            signal.Signals(-self.exit_code).name
            if -self.exit_code in set(signal.Signals)
            else f"signal {-self.exit_code}"
        )
        return f"its process was ended by {name}"


class Worker:
    """One process at work on one job, as the host sees it.

    Attributes:
        pid: Its number, by what its template says; nothing is ended by it here.
        line: What it says, as bytes.
        template: The program that it was forked from, or that it is.
        started_s: When, by the monotonic clock.
    """

    def __init__(self, pid: int, line: Line, listener: Listener, log: IO[bytes], template: Template) -> None:
        """Follow a process that has just started."""
        self.pid = pid
        self.line = line
        self.template = template
        self.started_s = time.monotonic()
        self._listener = listener
        self._log = log
        self._closed_s = math.inf
        self._lost: Died | None = None

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to return, by what was read of it so far."""
        if self.line.ended:
            self._closed_s = min(self._closed_s, time.monotonic())
        closed = time.monotonic() > self._closed_s + PARTING_S
        return self._lost is not None or self.line.has_message or closed or self.template.fate(self.pid) is not None

    def take(self) -> Any:
        """Return what the process has said next, or `Died`."""
        if self._lost is not None:
            return self._lost
        try:
            if not self.line.has_message:
                self.line.fill()  # What it sent just before its end.
            if (body := self.line.take()) is not None:
                return self._listener.take(body)
        except MalformedError as error:
            self._lost = Died(None, f"{error}, so it was ended")
            return self._lost
        gone_on = Died(None, "closed its connection to bstune and went on, so it was ended")
        self._lost = self.template.fate(self.pid) or gone_on
        return self._lost

    def reply(self, verdict: Verdict) -> None:
        """Answer a report. A process that does not read its answers is lost."""
        self._listener.told(verdict)
        if self.line.has_message:
            self._lost = Died(None, "sent bstune a second message before the answer to its report, so it was ended")
            return
        try:
            self.line.send(encode(messages.Judged(verdict)))
        except TimeoutError:
            self._lost = Died(None, "does not read what bstune answers, so it was ended")
        except OSError:
            return  # It has died since; its end is the next message.

    def tail(self) -> str | None:
        """Return the last lines that the process printed, or None."""
        return _tail(self._log)

    def end(self) -> None:
        """Kill the process and all that it started; return at once."""
        self.forget()
        self.template.end_worker(self.pid)

    def forget(self) -> None:
        """Close the host's end of it."""
        self.line.close()
        self._log.close()


def _tail(log: IO[bytes]) -> str | None:
    """Return the last lines of a log, as they can be shown, or None."""
    size = os.fstat(log.fileno()).st_size
    # Read more than is shown: progress bars print much and show little, and secrets are hidden before the text is cut.
    n_bytes = 16 * TAIL_BYTES
    printed = os.pread(log.fileno(), n_bytes, max(0, size - n_bytes)).decode(errors="replace")
    return last_lines(printable(as_shown(printed))[-TAIL_BYTES:], TAIL_LINES).strip() or None


class Template:
    """One program, loaded and ready to fork, or to do one job.

    Attributes:
        used: It does, or did, a job itself.
    """

    def __init__(self, payload: IO[bytes], hello: messages.Hello, *, folder: str | None = None) -> None:
        """Start the program, in a folder other than the current one where it is named, and tell it what to load."""
        self.used = False
        self._closed = False
        ours, theirs = socket.socketpair()
        # Closed in `close`. It has no name, so nothing is left even after SIGKILL.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = Popen(
                command("bstune.tuner.workers.worker", str(theirs.fileno())),
                stdin=DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                env=safe_environment({**PATIENT_THREADS, **hello.environment, **ONE_THREAD, **CUDA_UNTOUCHED}),
                start_new_session=True,  # Ctrl-C in the terminal reaches the caller only.
            )
        self._ending = ending_of(self._process.pid)
        self._control = Line(ours, most_bytes=SMALL_BYTES)
        self._running: set[int] = set()
        self._workers: dict[int, Worker] = {}
        self._exits: dict[int, int] = {}
        self._started: int | None = None
        self._broken: Died | None = None
        with contextlib.suppress(OSError):  # It may have died at once; `ready` says why.
            self._control.send(encode(hello), payload.fileno(), within_s=START_S)

    def ready(self) -> messages.Ready | messages.Failure | Died:
        """Wait until the objective is loaded, however long that takes, and return how that went."""
        while not self._control.has_message and (gone := self._gone()) is None:
            _read([self], [], math.inf)
        try:
            body = self._control.take()
            return gone or Died(None, "said nothing") if body is None else Listener(None).take(body)
        except MalformedError as error:
            return Died(None, str(error))

    @uninterrupted()
    def start(self, job: messages.Job, *, fork: bool) -> Worker:
        """Start a process for the job.

        Raises:
            BstuneError: The program has ended, or does not answer.
        """
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115  # Closed with the worker.
        listener = Listener(job.work)
        try:
            with theirs:
                self._control.send(encode(messages.Start(job, fork)), theirs.fileno(), log.fileno(), within_s=START_S)
            pid = self._await_started() if fork else self._process.pid
        except (OSError, BstuneError) as error:
            ours.close()
            log.close()
            self._stop()
            raise BstuneError(
                f"The template process died: {(self._broken or self._gone() or Died(None, str(error))).text}."
            ) from None
        self._workers[pid] = Worker(pid, Line(ours, most_bytes=listener.most_bytes), listener, log, self)
        return self._workers[pid]

    def _await_started(self) -> int:
        deadline_s = time.monotonic() + START_S
        while self._started is None:
            if time.monotonic() > deadline_s:
                self._broken = Died(None, f"forked nothing within {START_S:.0f} s, so it was ended")
            if self._broken or self._gone():
                raise BstuneError("it is gone")
            _read([self], [], 1.0)
            self.listen()
        pid, self._started = self._started, None
        return pid

    def listen(self) -> None:
        """Take note of what the program has said of its processes."""
        try:
            while self._broken is None and (body := self._control.take()) is not None:
                said = decode(body, messages.Started, messages.Exited)
                if isinstance(said, messages.Started):
                    self._started = said.pid
                    self._running.add(said.pid)
                elif said.pid in self._running:
                    self._exits[said.pid] = said.code
        except MalformedError as error:  # Code of the user's that still runs in it wrote that.
            self._broken = Died(None, f"{error}, so it was ended")
            self._stop()

    def tail(self) -> str | None:
        """Return the last lines that the program printed while it loaded, or None."""
        return _tail(self._log)

    def fate(self, pid: int) -> Died | None:
        """Return how a process that was started here has ended, or None while it runs."""
        if pid in self._exits:
            return Died(self._exits[pid])
        return self._broken or self._gone()

    def _gone(self) -> Died | None:
        if self._process.poll() is None and self._control.ended:
            self._stop(patience_s=PARTING_S)
        code = self._process.poll()
        return None if code is None else Died(code)

    def end_worker(self, pid: int) -> None:
        """Kill a process that was started here, and all that it started."""
        if pid == self._process.pid:
            self.close()
            return
        self._running.discard(pid)
        self._workers.pop(pid, None)
        self._exits.pop(pid, None)
        try:
            self._control.send(encode(messages.Kill(pid)), within_s=KILL_S)
        except TimeoutError:
            self._broken = Died(None, f"read nothing for {KILL_S:.0f} s, so it was ended")
            self._stop()
        except OSError:
            return

    def _stop(self, *, patience_s: float = 0.0) -> None:
        """End the program and everything below it; it does so itself when it is asked to."""
        process = self._process
        for act, within_s in ((None, patience_s), (process.terminate, CLOSE_S), (self._kill, CLOSE_S)):
            if process.poll() is None:
                if act is not None:
                    act()
                with contextlib.suppress(TimeoutExpired):
                    process.wait(within_s)
        self._control.await_end(
            CLOSE_S / 2
        )  # Where what is above user code was killed, what is below it is just about to clear up.

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the program and everything that it started."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers.values():
            worker.forget()
        self._stop()
        self._control.close()
        if self._ending is not None:
            os.close(self._ending)
        self._log.close()


def watch(workers: Collection[Worker], timeout_s: float) -> None:
    """Wait a while for some of these to say something, or to end, and read what is there."""
    templates = {id(worker.template): worker.template for worker in workers}.values()
    _read(templates, [worker.line for worker in workers], timeout_s)
    for template in templates:
        template.listen()


def _read(templates: Collection[Template], lines: Sequence[Line], timeout_s: float) -> None:
    lines = [*lines, *(template._control for template in templates)]
    by_fd = {line.fileno(): line for line in lines if not line.ended}
    endings = [template._ending for template in templates if template._ending is not None]
    blind = len(by_fd) < len(lines) or len(endings) < len(templates)
    ready = wait([*by_fd, *endings], min(timeout_s, LOOK_S if blind else LOOK_ALL_S))
    for fd, line in by_fd.items():
        if fd in ready:
            line.fill()
        else:
            line.note_silence()
