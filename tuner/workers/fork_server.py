"""The caller's side of worker processes.

Starts the template, hands out jobs, sees how each process ended, and leaves none behind.

Nothing here touches the caller's random numbers, threads or device, and no file is made that has a name.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...objectives.base import trains_elsewhere
from ..core.errors import BstuneError, DeviceError, NothingFitsError, ObjectiveError
from ..core.probe_results import DeviceInfo
from ..core.trials import Facts
from ..device.cuda import CudaFacts, check_device_name, cuda_memory
from ..device.memory import Memory, cpu_info, cpu_memory, memory_moved, threads_set, usable_cores
from ..device.nvml import card_in_sight, cuda_processes, nvml_memory
from ..device.out_of_memory import asked_bytes, first_line
from . import messages
from .launch import path_of_caller
from .leftovers import end_marked, marked
from .template import Died, Template, Worker, watch

SETTLE_S = 2.0


class Host:
    """The worker processes of one objective on one device.

    Attributes:
        facts: What the objective is; raises ObjectiveError where it cannot be loaded or built.
        device_info: The device that was chosen.
        warnings: What the user should know of how it was chosen.
        threads: Threads of each worker process: what the user has set, else all cores, shared by the jobs.
        chooses_threads: The user has set none and the device is a CPU with several cores for each job, so that a probe
            may choose.
    """

    def __init__(
        self,
        objective: Any,
        *,
        device: str = "auto",
        jobs: int = 1,
        threads: int | None = None,
        memory_bytes: int | None = None,
        environment: dict[str, str] | None = None,
        folder: str | None = None,
        sys_path: Sequence[str] | None = None,
        batch_sizes: tuple[int, ...] | None = None,
        params: tuple[dict[str, Any], ...] = (),
    ) -> None:
        """Start the template and choose the device.

        Args:
            objective: A Supervised, a LoopObjective, a reference to one in a file, or one of these pickled.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            jobs: Trials that will run side by side; they share cores and, on CPU, memory.
            threads: Threads of each worker process; None: what the environment says, else to be chosen.
            memory_bytes: Most memory that the user allows, or None.
            environment: Variables for the worker processes, beside the caller's own.
            folder: Working directory of the worker processes; default: the caller's.
            sys_path: Where they find the user's modules; default: as the caller does, see `launch.path_of_caller`.
            batch_sizes: Global batch sizes that a search names; default: there is no search, and no step times are
                asked for.
            params: Values of extra dimensions that model and optimizer are tried with before the facts are told; the
                first are those that sizes are probed with.

        Raises:
            ObjectiveError: The objective cannot be pickled or loaded.
            DeviceError: The device is unknown or does not work.
        """
        self._closed = False
        self._templates: list[Template] = []
        self.jobs = jobs
        self.memory_bytes = memory_bytes
        self.environment = dict(environment or {})
        self._folder = folder
        self._sys_path = tuple(sys_path) if sys_path is not None else path_of_caller()
        self._batch_sizes = batch_sizes
        self._params = params
        self.params: Mapping[str, Any] = params[0] if params else {}
        self._word = secrets.token_hex(16)
        cores, as_set = max(1, usable_cores() // jobs), threads_set({**os.environ, **self.environment})
        self.threads = threads or min(cores, as_set or cores)
        self.chooses_threads = threads is None and as_set is None and cores > 1
        self.warnings: list[str] = []
        self._facts: Facts | None = None
        check_device_name(device)
        self._trains_here = not trains_elsewhere(objective)
        self._payload = tempfile.TemporaryFile()  # noqa: SIM115  # Closed in `close`.
        try:
            self._pickle(objective)
            self._first = self._new_template(may_fork=True)
            self.fork = self._ready.fork_safe
            if not self.fork:
                self.warnings.append(
                    f"Each trial starts a program of its own, some seconds each: {self._ready.fork_unsafe_because}."
                )
            self.device, self.device_info = self._choose_device(device)
            self.chooses_threads = self.chooses_threads and self.device_info.kind == "cpu"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _pickle(self, objective: Any) -> None:
        if isinstance(objective, messages.Pickled):
            self._payload.write(objective.data)
            return
        import cloudpickle

        try:
            cloudpickle.dump(objective, self._payload)
        except Exception as error:
            raise ObjectiveError(
                f"The objective cannot be sent to a worker process: {first_line(str(error))}. Expected model, data "
                "and functions that can be pickled: open files, locks and connections inside the functions that use "
                "them, or pass data as a function that makes it."
            ) from error

    def _new_template(self, *, may_fork: bool) -> Template:
        self._payload.flush()
        size = os.fstat(self._payload.fileno()).st_size
        environment = marked({**os.environ, **self.environment}, self._word)
        hello = messages.Hello(self._sys_path, environment, size, may_fork, self._trains_here)
        template = Template(self._payload, hello, folder=self._folder)
        self._templates.append(template)
        answer = template.ready()
        if isinstance(answer, messages.Failure):
            raise error_of(answer, "loading the objective", output=template.tail())
        if isinstance(answer, Died):
            raise ObjectiveError(
                f"The objective could not be loaded: {answer.text} while it ran the file. Expected it to define an "
                "objective.",
                output=template.tail(),
            )
        self._ready = answer
        return template

    @property
    def facts(self) -> Facts:
        """What the objective is."""
        if self._facts is None:
            # The model is described on CPU, whatever the device; the probe decides by what the user allows.
            answer = self.run(
                messages.Describe(self._batch_sizes, self._params),
                device="cpu",
                fence_bytes=cpu_memory().available_bytes,
            )
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
                f"jobs={self.jobs} on one CUDA device: two trials on one card share its memory and spoil the probe. "
                "Use jobs=1."
            )
        return facts.device, DeviceInfo("cuda", facts.name, facts.uuid or None, facts.total_bytes, self.threads)

    def use_threads(self, threads: int) -> None:
        """Let the worker processes that start from now on have so many threads."""
        self.threads = threads
        self.device_info = replace(self.device_info, threads=threads)

    def _cuda_facts(self, device: str) -> CudaFacts:
        """Try a card in a process of its own.

        Raises:
            DeviceError: It does not work.
        """
        try:
            answer = self.run(messages.TryCuda(device), device="cpu")
        except ObjectiveError as error:  # No code of the user's ran: the driver ended the process.
            raise DeviceError(
                f"{device} does not work: the process that tried it died. {error.output or error}"
            ) from error
        except DeviceError as error:
            if not self.fork or "forked subprocess" not in str(error):
                raise
            self.fork = False  # The user's file started the driver when it was loaded.
            self.warnings.append(
                "Each trial starts a program of its own, some seconds each: the objective's file touched CUDA when "
                "loaded."
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
                f"{self.device} was lost while a trial ran on it: {error} What was finished is stored; run the same "
                "command again when the device is back."
            ) from error

    def memory(self) -> Memory:
        """Return what the device has and what is left of it, now, before `--memory` and the sharing by jobs."""
        if self.device_info.kind == "cpu":
            return cpu_memory()
        # NVML is asked first: it costs no process. Where it cannot say, CUDA is.
        found = nvml_memory(self.device_info.uuid or "", total_bytes=self.device_info.total_bytes)
        return found or cuda_memory(self._cuda_facts(self.device))

    def memory_moved(self, before: Memory) -> str | None:
        """Say how far free memory of the card has moved since `before`, and who uses it; None on CPU, or if it has not.

        Resident memory of a whole machine moves all the time, so on CPU that it moved says nothing.
        """
        if self.device_info.kind == "cpu":
            return None
        deadline_s = time.monotonic() + SETTLE_S
        while (moved := memory_moved(before, self.memory())) and time.monotonic() < deadline_s:
            time.sleep(0.2)  # The driver takes back what an ended process held only some time after its end.
        others = [] if moved is None else cuda_processes(self.device_info.uuid or "")
        if others:
            listed = ", ".join(
                f"{p.pid}" + (f" with {p.used_bytes / 2**30:.2f} GiB" if p.used_bytes else "") for p in others
            )
            moved = f"{moved} Processes on it now, as the host numbers them: {listed}."
        return moved

    def usable_bytes(self) -> int:
        """Return the bytes that one trial may use: what the device, container and user leave, shared by the jobs."""
        available = self.memory().available_bytes
        return min(available, self.memory_bytes if self.memory_bytes is not None else available) // self.jobs

    def start(self, work: messages.Work, *, device: str | None = None, fence_bytes: int | None = None) -> Worker:
        """Start a fresh process for one piece of work."""
        job = messages.Job(work, device or self.device, self.threads, fence_bytes)
        if self.fork:
            return self._first.start(job, fork=True)
        template = self._new_template(may_fork=False) if self._first.used else self._first
        template.used = True
        return template.start(job, fork=False)

    def run(self, work: messages.Work, *, device: str | None = None, fence_bytes: int | None = None) -> Any:
        """Do one piece of work and return its answer.

        Raises:
            ObjectiveError: User code raised, or its process died.
            NothingFitsError: It ran out of memory.
            DeviceError: The device does not work.
        """
        worker = self.start(work, device=device, fence_bytes=fence_bytes)
        try:
            answer = self.answer(worker)
            if isinstance(answer, messages.Failure):
                raise error_of(
                    answer,
                    "building the model and reading a sample",
                    output=worker.tail(),
                    budget_bytes=fence_bytes or 0,
                )
            if isinstance(answer, Died):
                raise ObjectiveError(f"The objective could not be built: {answer.text}.", output=worker.tail())
            return answer
        finally:
            worker.end()

    def answer(self, worker: Worker, timeout_s: float | None = None) -> Any:
        """Return the next message of a worker, `Died` if it ended without one, or None when the time is over."""
        return worker.take() if self.news([worker], math.inf if timeout_s is None else timeout_s) else None

    def news(self, workers: Collection[Worker], timeout_s: float) -> list[Worker]:
        """Return the workers that have something to say, waiting at most this long for the first; `take` it of each."""
        deadline_s = time.monotonic() + timeout_s
        left_s = timeout_s
        while not (found := [worker for worker in workers if worker.has_news]) and left_s >= 0:
            watch(workers, left_s)
            left_s = deadline_s - time.monotonic()
        return found

    def close(self) -> None:
        """End every process; nothing is left."""
        if self._closed:
            return
        self._closed = True
        for template in self._templates:
            template.close()
        if self._templates:
            end_marked(self._word)
        self._payload.close()


def error_of(failure: messages.Failure, doing: str, *, output: str | None, budget_bytes: int = 0) -> BstuneError:
    """Return the exception that a failure of user code is to the caller."""
    if failure.ours and failure.error_type == "DeviceError":
        return DeviceError(failure.message)
    if failure.ours:
        return ObjectiveError(failure.message, output=output)
    if failure.outcome == "oom":
        return NothingFitsError(
            f"Nothing fits: {doing} alone ran out of memory ({first_line(failure.message)}); the budget is "
            f"{budget_bytes / 2**30:.2f} GiB. Use a smaller model or a larger device.",
            needed_bytes=asked_bytes(failure.message),
            budget_bytes=budget_bytes,
        )
    return ObjectiveError(
        f"The objective failed while {doing}: {failure.error_type}: {first_line(failure.message)}",
        traceback=failure.traceback,
        output=output,
    )
