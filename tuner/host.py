"""The caller's side of worker processes: starts the template, hands out jobs, sees how each process ended, leaves none behind.

Nothing here touches the caller's random numbers, threads or device, and no file is made that has a name.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import sendfds
from types import TracebackType
from typing import IO, Any

from ..objectives.base import Facts
from . import jobs
from .device import (
    CudaFacts,
    Memory,
    asked_bytes,
    card_in_sight,
    check_device_name,
    cpu_info,
    cpu_memory,
    cuda_memory,
    cuda_processes,
    first_line,
    memory_moved,
    nvml_memory,
    usable_cores,
)
from .errors import BstuneError, DeviceError, NothingFitsError, ObjectiveError
from .results import DeviceInfo
from .signals import held
from .worker import CUDA_UNTOUCHED, ONE_THREAD, PATIENT_THREADS

TAIL_BYTES = 4096
TAIL_LINES = 15
CLOSE_S = 3.0
SETTLE_S = 2.0


@dataclass(frozen=True)
class Died:
    """A worker process ended without an answer."""

    exit_code: int
    """Negative: the signal that ended it."""

    @property
    def text(self) -> str:
        """Return how it ended, in words."""
        if self.exit_code >= 0:
            return f"its process exited with code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name if -self.exit_code in set(signal.Signals) else f"signal {-self.exit_code}"
        return f"its process was ended by {name}"


@dataclass
class Worker:
    """One process at work on one job, as the host sees it."""

    pid: int
    connection: Connection
    log: IO[bytes]
    template: _Template
    started_s: float = field(default_factory=time.monotonic)

    def tail(self) -> str | None:
        """Return the last lines that the process printed, or None."""
        return _tail(self.log)

    def end(self) -> None:
        """Kill the process and all that it started; return at once."""
        self.connection.close()
        self.log.close()
        self.template.end_worker(self)


def _tail(log: IO[bytes]) -> str | None:
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
    return "\n".join(text.splitlines()[-TAIL_LINES:]).strip() or None


class _Template:
    """One program `python -m bstune.tuner.worker`, loaded and ready to fork, or to do one job."""

    def __init__(self, payload: IO[bytes], *, may_fork: bool, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # Closed in `close`; it has no name, so nothing is left even by SIGKILL.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bstune.tuner.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env={**PATIENT_THREADS, **os.environ, **environment, **ONE_THREAD, **CUDA_UNTOUCHED},
                start_new_session=True,  # Ctrl-C in the terminal reaches the caller only.
            )
        self.control = Connection(ours.detach())
        self._workers: dict[int, Worker] = {}
        self._exits: dict[int, int] = {}
        payload.flush()
        size = os.fstat(payload.fileno()).st_size
        hello = jobs.Hello(tuple(sys.path), {**os.environ, **environment}, size, may_fork)
        try:
            self.control.send(hello)
            self._send_fds(payload.fileno())
        except OSError:
            return  # It died at once; `ready` says why.

    def _send_fds(self, *fds: int) -> None:
        with socket.socket(fileno=os.dup(self.control.fileno())) as door:
            sendfds(door, list(fds))

    def ready(self) -> jobs.Ready:
        """Wait until the objective is loaded.

        Raises:
            ObjectiveError: The user's file or data failed to load.
        """
        try:
            answer = self.control.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            raise ObjectiveError(
                f"The objective could not be loaded: {Died(code).text} while it ran the file. Expected it to define an objective.",
                output=_tail(self._log),
            ) from None
        if isinstance(answer, jobs.Failure):
            raise error_of(answer, "loading the objective", output=_tail(self._log))
        assert isinstance(answer, jobs.Ready)
        return answer

    @held()
    def start(self, job: jobs.Job, *, fork: bool) -> Worker:
        """Start a process for the job."""
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115  # Closed with the worker.
        with theirs:
            try:
                self.control.send(("fork" if fork else "run", job))
                self._send_fds(theirs.fileno(), log.fileno())
                pid = self._await_started() if fork else self._process.pid
            except (EOFError, ConnectionError):
                ours.close()
                log.close()
                raise BstuneError(f"The template process died: {Died(self._process.wait()).text}.") from None
        self._workers[pid] = Worker(pid, Connection(ours.detach()), log, self)
        return self._workers[pid]

    def _await_started(self) -> int:
        while (pid := self._hear()) is None:
            pass
        return pid

    def _hear(self) -> int | None:
        """Take the next message: that a process has started, which is returned, or that one has ended, which is noted."""
        wait([self.control])
        with held():  # Half a message taken is the end of all understanding.
            verb, value = self.control.recv()
        if verb == "started":
            return int(value)
        pid, code = value
        self._exits[pid] = code
        return None

    def exit_code(self, pid: int) -> int:
        """Wait for a process whose connection is closed, and return how it ended."""
        if pid == self._process.pid:
            return self._process.wait()
        while pid not in self._exits:
            try:
                self.control.send(("kill", pid))  # It may have closed its connection and gone on.
                self._hear()
            except (EOFError, ConnectionError):
                return self._process.wait()  # The template was ended, and its children with it.
        return self._exits[pid]

    def end_worker(self, worker: Worker) -> None:
        """Kill a worker and all that it started."""
        if worker.pid == self._process.pid:
            if worker.pid in self._workers:
                self.close()
            return
        self._workers.pop(worker.pid, None)
        try:
            self.control.send(("kill", worker.pid))
            while self.control.poll():
                self._hear()
        except (OSError, EOFError):
            return

    def close(self) -> None:
        """End the program and everything that it forked."""
        busy = self._process.pid in self._workers  # It does a job itself and does not listen.
        for worker in tuple(self._workers.values()):
            self._workers.pop(worker.pid)
            worker.end()
        self.control.close()  # It takes this as the word to kill its children and leave.
        if busy and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()


class Host:
    """The worker processes of one objective on one device.

    Attributes:
        facts: What the objective is; raises ObjectiveError where it cannot be loaded or built.
        device_info: The device that was chosen.
        warnings: What the user should know of how it was chosen.
    """

    def __init__(
        self,
        objective: Any,
        *,
        device: str = "auto",
        jobs: int = 1,
        memory_bytes: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start the template and choose the device.

        Args:
            objective: A Supervised, a LoopObjective, a reference to one in a file, or one of these pickled.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            jobs: Trials that will run side by side; they share cores and, on CPU, memory.
            memory_bytes: Most memory that the user allows, or None.
            environment: Variables for the worker processes, beside the caller's own.

        Raises:
            ObjectiveError: The objective cannot be pickled or loaded.
            DeviceError: The device is unknown or does not work.
        """
        self._closed = False
        self._templates: list[_Template] = []
        self.jobs = jobs
        self.memory_bytes = memory_bytes
        self.environment = dict(environment or {})
        self.threads = max(1, usable_cores() // jobs)
        self.warnings: list[str] = []
        self._facts: Facts | None = None
        check_device_name(device)
        self._payload = tempfile.TemporaryFile()  # noqa: SIM115  # Closed in `close`.
        try:
            self._pickle(objective)
            self._first = self._new_template(may_fork=True)
            self.fork = self._ready.fork_safe
            if not self.fork:
                self.warnings.append(f"Each trial starts a program of its own, some seconds each: {self._ready.fork_unsafe_because}.")
            self.device, self.device_info = self._choose_device(device)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _pickle(self, objective: Any) -> None:
        if isinstance(objective, jobs.Pickled):
            self._payload.write(objective.data)
            return
        import cloudpickle

        try:
            cloudpickle.dump(objective, self._payload)
        except Exception as error:
            raise ObjectiveError(
                f"The objective cannot be sent to a worker process: {first_line(str(error))}. Expected model, data and functions that "
                "can be pickled: open files, locks and connections inside the functions that use them, or pass data as a function that "
                "makes it."
            ) from error

    def _new_template(self, *, may_fork: bool) -> _Template:
        template = _Template(self._payload, may_fork=may_fork, environment=self.environment)
        self._templates.append(template)
        self._ready = template.ready()
        return template

    @property
    def facts(self) -> Facts:
        """What the objective is."""
        if self._facts is None:
            # The model is described on CPU, whatever the device; what the user allows is the probe's to judge.
            answer = self.run(jobs.Describe(), device="cpu", fence_bytes=cpu_memory().available_bytes)
            assert isinstance(answer, Facts)
            self._facts = answer
        return self._facts

    def _choose_device(self, wanted: str) -> tuple[str, DeviceInfo]:
        cpu = ("cpu", cpu_info(self.threads))
        if wanted == "cpu" or (wanted == "auto" and (self._ready.torch_cuda is None or not card_in_sight())):
            return cpu
        try:
            facts = self._cuda_facts(wanted)
        except DeviceError as error:
            if wanted != "auto":
                raise
            self.warnings.append(f"CPU is used although there is a CUDA card: {error}")
            return cpu
        if self.jobs > 1:
            raise DeviceError(
                f"jobs={self.jobs} on one CUDA device: two trials on one card share its memory and spoil the probe. Use jobs=1."
            )
        return facts.device, DeviceInfo("cuda", facts.name, facts.uuid or None, facts.total_bytes, self.threads)

    def _cuda_facts(self, device: str) -> CudaFacts:
        """Try a card in a process of its own.

        Raises:
            DeviceError: It does not work.
        """
        try:
            answer = self.run(jobs.TryCuda(device), device="cpu")
        except ObjectiveError as error:  # No code of the user's ran: the driver ended the process.
            raise DeviceError(f"{device} does not work: the process that tried it died. {error.output or error}") from error
        except DeviceError as error:
            if not self.fork or "forked subprocess" not in str(error):
                raise
            self.fork = False  # The user's file started the driver when it was loaded.
            self.warnings.append(
                "Each trial starts a program of its own, some seconds each: the objective's file touched CUDA when loaded."
            )
            return self._cuda_facts(device)
        assert isinstance(answer, CudaFacts)
        return answer

    def check_device(self) -> None:
        """Try the card again, in a process of its own.

        Raises:
            DeviceError: It does not work any more.
        """
        try:
            self._cuda_facts(self.device)
        except DeviceError as error:
            raise DeviceError(
                f"{self.device} was lost while a trial ran on it: {error} What was finished is stored; run the same command again when the "
                "device is back."
            ) from error

    def memory(self) -> Memory:
        """Return what the device has and what is left of it, now, before `--memory` and the sharing by jobs."""
        if self.device_info.kind == "cpu":
            return cpu_memory()
        # NVML is asked first: it costs no process. Where it cannot say, CUDA is.
        found = nvml_memory(self.device_info.uuid or "", total_bytes=self.device_info.total_bytes)
        return found or cuda_memory(self._cuda_facts(self.device))

    def memory_moved(self, before: Memory) -> str | None:
        """Say how far free memory of the card has moved since `before`, and who computes on it; None on CPU, or if it has not.

        Resident memory of a whole machine moves all the time, so on CPU that it moved says nothing.
        """
        if self.device_info.kind == "cpu":
            return None
        deadline_s = time.monotonic() + SETTLE_S
        while (moved := memory_moved(before, self.memory())) and time.monotonic() < deadline_s:
            time.sleep(0.2)  # The driver takes back what an ended process held only some time after its end.
        others = [] if moved is None else cuda_processes(self.device_info.uuid or "")
        if others:
            listed = ", ".join(f"{p.pid}" + (f" with {p.used_bytes / 2**30:.2f} GiB" if p.used_bytes else "") for p in others)
            moved = f"{moved} Processes on it now, as the host numbers them: {listed}."
        return moved

    def usable_bytes(self) -> int:
        """Return the bytes that one trial may use: what the device, the container and the user leave, shared by the jobs."""
        available = self.memory().available_bytes
        return min(available, self.memory_bytes if self.memory_bytes is not None else available) // self.jobs

    def start(self, work: jobs.Work, *, device: str | None = None, fence_bytes: int | None = None) -> Worker:
        """Start a fresh process for one piece of work."""
        job = jobs.Job(work, device or self.device, self.threads, fence_bytes)
        if self.fork:
            return self._first.start(job, fork=True)
        if self._first in self._templates and not getattr(self._first, "used", False):
            template = self._first
        else:
            template = self._new_template(may_fork=False)
        template.used = True  # type: ignore[attr-defined]
        return template.start(job, fork=False)

    def run(self, work: jobs.Work, *, device: str | None = None, fence_bytes: int | None = None) -> Any:
        """Do one piece of work and return its answer.

        Raises:
            ObjectiveError: User code raised, or its process died.
            NothingFitsError: It ran out of memory.
            DeviceError: The device does not work.
        """
        worker = self.start(work, device=device, fence_bytes=fence_bytes)
        try:
            answer = self.answer(worker)
            if isinstance(answer, jobs.Failure):
                raise error_of(answer, "building the model and reading a sample", output=worker.tail(), budget_bytes=fence_bytes or 0)
            if isinstance(answer, Died):
                raise ObjectiveError(f"The objective could not be built: {answer.text}.", output=worker.tail())
            return answer
        finally:
            worker.end()

    def answer(self, worker: Worker, timeout_s: float | None = None) -> Any:
        """Return the next message of a worker, `Died` if it ended without one, or None when the time is over."""
        if not wait([worker.connection], timeout_s):
            return None
        try:
            return worker.connection.recv()
        except (EOFError, ConnectionError):
            return Died(worker.template.exit_code(worker.pid))

    def close(self) -> None:
        """End every process; nothing is left."""
        if self._closed:
            return
        self._closed = True
        for template in self._templates:
            template.close()
        self._payload.close()


def error_of(failure: jobs.Failure, doing: str, *, output: str | None, budget_bytes: int = 0) -> BstuneError:
    """Return the exception that a failure of user code is to the caller."""
    if failure.ours and failure.error_type == "DeviceError":
        return DeviceError(failure.message)
    if failure.ours:
        return ObjectiveError(failure.message, output=output)
    if failure.outcome == "oom":
        return NothingFitsError(
            f"Nothing fits: {doing} alone ran out of memory ({first_line(failure.message)}); the budget is {budget_bytes / 2**30:.2f} GiB. "
            "Use a smaller model or a larger device.",
            needed_bytes=asked_bytes(failure.message),
            budget_bytes=budget_bytes,
        )
    return ObjectiveError(
        f"The objective failed while {doing}: {failure.error_type}: {first_line(failure.message)}",
        traceback=failure.traceback,
        output=output,
    )
