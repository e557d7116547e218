"""The process in which user code runs, a program of its own: `launch.command("bstune.tuner.workers.worker", FD)`.

It begins as a template: it imports torch, loads the objective and its data with one thread and no device, and then
forks a fresh process for every job, in milliseconds. Where forking would be unsafe, because user code at import has
started threads or touched CUDA, it does one job itself, and the host starts another program for the next. The worker of
a command, which trains in a program of its own, never loads torch.

Whatever user code does stays here: it may print, leak, crash or be killed. Nothing of it reaches the caller but
messages.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn, cast

from ...objectives.base import Objective, Trial, trains_elsewhere
from ..core.errors import BstuneError, ObjectiveError, TrialPruned
from ..core.trials import MeasureSpec, TrialReport, TrialSpec, Verdict
from ..device.cuda import cuda_of_torch, limit_cuda_memory, near_capacity, open_context, try_cuda
from ..device.memory import usable_cores
from ..device.meter import PeakMemory, ProcessMeter, data_segment_bytes
from ..device.out_of_memory import classify
from ..device.threads import threads_that_fork_loses
from ..device.tree_memory import TreeMeter, TreePeak
from . import messages, wire
from .answers import MOST_MESSAGE, MOST_NAME, MOST_TRACEBACK, told
from .leftovers import (
    Process,
    adopt_orphans,
    can_adopt,
    children,
    descendants,
    die_with_parent,
    end_children,
    stay_above,
)
from .message_json import decode, encode

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1"}
"""While the template loads: a pool of threads started before a fork does not exist after it."""
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads that wait by spinning take the cores from those that work as soon as anything else runs on the
machine: measured here with a load of 2 on 2 cores, a training step of 2 ms took 270 ms. The user's own setting wins.
"""
CUDA_UNTOUCHED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""`torch.cuda.is_available()` at the top of a user's file then asks NVML; otherwise it starts the driver, and no
process that is forked afterwards can use the card.
"""
PACKAGE_FOLDERS = tuple(
    str(home / room)
    for home in (Path(__file__).parents[2], Path(__file__).resolve().parents[2])
    for room in ("tuner", "objectives")
)


def main() -> None:
    """Serve the host behind the descriptor given as the only argument, until it goes away."""
    control_fd = int(sys.argv.pop())
    os.set_inheritable(control_fd, False)
    stay_above(control_fd)
    adopt_orphans()
    control = socket.socket(fileno=control_fd)
    hello = decode(wire.receive(control), messages.Hello)
    (payload_fd,) = wire.receive_fds(control, 1)
    sys.path[:] = hello.sys_path
    os.environ[messages.LOADING] = str(os.getpid())
    try:
        objective = _load(payload_fd, hello)
        _send(control, _ready(hello.may_fork))
    except BaseException as error:
        _send(control, failure_of(error))
        return
    _TemplateLoop(control, objective, hello.environment).serve()


def _send(host: socket.socket, message: Any) -> None:
    wire.send(host, encode(message))


def _load(payload_fd: int, hello: messages.Hello) -> Objective:
    import cloudpickle
    import psutil  # noqa: F401  # As all that is imported here: before the user's folder is on the path.

    if hello.trains_here:
        from ...objectives.training import seed_everything

        _warm_up()
        # What the file draws at its top, such as random data, is the same in each process and when a search goes on.
        seed_everything(0)
    with mmap.mmap(payload_fd, hello.payload_bytes, access=mmap.ACCESS_READ) as payload:
        objective = cloudpickle.loads(payload)
    os.close(payload_fd)
    if hasattr(objective, "resolve"):
        reference = objective
        objective = reference.resolve()
        if reference.source_hash is not None:
            objective.source = reference.source()
    loaded: Objective = objective
    loaded.prepare()
    return loaded


def _warm_up() -> None:
    """Import once what the first optimizer step and batch import: seconds of it, saved in each process."""
    import torch.utils.data

    from ..memory import dispatch_recorder as recorder  # noqa: F401

    with contextlib.suppress(ImportError):
        import pynvml  # noqa: F401

    torch.set_num_threads(1)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    for make in (torch.optim.AdamW, torch.optim.SGD):
        make([parameter], lr=0.0).step()
    torch.utils.data.default_collate([(0.0, 0)])


def _ready(may_fork: bool) -> messages.Ready:
    torch, reason = sys.modules.get("torch"), None
    n_threads = threads_that_fork_loses()
    if not may_fork or not sys.platform.startswith("linux"):
        reason = "forking was not asked for on this platform"
    elif torch is not None and torch.cuda.is_initialized():
        reason = "the objective's file touched CUDA when it was loaded"
    elif n_threads > 1:
        reason = f"the objective's file left {n_threads} threads running when it was loaded"
    return messages.Ready(reason is None, reason, cuda_of_torch())


class _TemplateLoop:
    """Takes jobs from the host, forks a process for each, and tells how each of them ended."""

    def __init__(self, control: socket.socket, objective: Objective, environment: dict[str, str]) -> None:
        self._control = control
        self._objective = objective
        self._environment = environment
        self._trials: set[int] = set()
        self._own: frozenset[Process] | None = None
        """What the user's file started when it was loaded. It serves all trials, so it stays until the end."""
        self._wake_read, self._wake_write = os.pipe()

    def serve(self) -> None:
        """Work until the host closes its end; then leave no process behind."""
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        gc.collect()
        gc.freeze()  # Keeps the collector of a child from copying every page that it shares with this process.
        while True:
            ready = wait([self._control, self._wake_read])
            try:
                if self._wake_read in ready:
                    os.read(self._wake_read, 512)
                    self._reap()
                if self._control in ready:
                    self._take(decode(wire.receive(self._control), messages.Start, messages.Kill))
            except (EOFError, OSError):  # The host has gone.
                self._leave()

    def _take(self, message: messages.Start | messages.Kill) -> None:
        if isinstance(message, messages.Kill):
            if message.pid in self._trials:
                os.kill(message.pid, signal.SIGKILL)
            return
        connection_fd, log_fd = wire.receive_fds(self._control, 2)
        above = os.getppid()
        if message.fork:
            self._own = frozenset(descendants()) if self._own is None else self._own
            above = os.getpid()
            if (pid := os.fork()) != 0:
                os.close(connection_fd)
                os.close(log_fd)
                self._trials.add(pid)
                _send(self._control, messages.Started(pid))
                return
            adopt_orphans()
            self._control.close()
            os.close(self._wake_read)
        # Where forking is unsafe, this one job is done in this process, which ends with it.
        signal.set_wakeup_fd(-1)
        os.close(self._wake_write)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(above, signal.SIGKILL)
        _become_worker(log_fd, self._environment)
        run_job(message.job, self._objective, socket.socket(fileno=connection_fd))

    def _reap(self) -> None:
        for pid in tuple(self._trials):
            # Look without reaping first: until it is reaped, its group cannot be taken for another's.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # What a trial leaves behind has become this process's, while that of a trial that runs is the trial's own.
            assert self._own is not None
            end_children({child for child in children() if child[0] in self._trials} | self._own, keepers=False)
            if not can_adopt():
                _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            self._trials.discard(pid)
            _send(self._control, messages.Exited(pid, os.waitstatus_to_exitcode(status)))

    def _leave(self) -> NoReturn:
        if can_adopt():
            end_children()
        else:
            for pid in self._trials:
                _kill_group(pid)
        os._exit(0)


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # The group may not exist yet, right after the fork.
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _become_worker(log_fd: int, environment: dict[str, str]) -> None:
    if os.getpgrp() != os.getpid():  # A program of its own leads its group already.
        os.setpgid(0, 0)  # Loader workers join this group, so that one signal ends them all.
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to answer.
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # If the kernel must kill someone, let it be this process.
    except OSError:
        return


def run_job(job: messages.Job, objective: Objective, host: socket.socket) -> NoReturn:
    """Do one job, send its answer and end the process without running anybody's exit handlers."""
    meter: list[ProcessMeter | TreeMeter] = []
    try:
        _use_threads(job.threads, objective)
        _fence(job, objective)
        answer = _do(job, objective, host, meter)
    except BaseException as error:
        answer = failure_of(error, near_cap=near_capacity(job.device))
    # Only here, outside the handler, is the failed step's memory free to go.
    if isinstance(answer, messages.Failure) and meter:
        with contextlib.suppress(
            RuntimeError
        ):  # Where the error destroyed the CUDA context, nothing can be read any more.
            answer = replace(answer, reading=meter[0].read())
    try:
        _answer(host, answer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _answer(host: socket.socket, answer: messages.Answer) -> None:
    try:
        body = encode(answer)
        if isinstance(answer, messages.Measured) and len(body) > wire.MOST_BYTES:
            body = encode(replace(answer, trace=None))  # The probe can do without one.
    except TypeError as error:  # An objective may say anything of itself.
        body = encode(failure_of(ObjectiveError(f"What the objective says of itself {error}.")))
    wire.send(host, body)


def _use_threads(n: int, objective: Objective) -> None:
    if not trains_elsewhere(objective):
        import torch

        torch.set_num_threads(n)
    elif n < usable_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(n))  # For the programs that it starts.


def _fence(job: messages.Job, objective: Objective) -> None:
    """Let an allocation far beyond the budget fail with an error, before it fails with a kill."""
    if job.device.startswith("cuda"):
        if trains_elsewhere(objective):
            return
        if job.fence_bytes is None:
            open_context(job.device)  # Before user code does, so that it is known what the context takes.
        else:
            limit_cuda_memory(job.device, job.fence_bytes)
        return
    if job.fence_bytes is None:
        return
    import resource

    soft = data_segment_bytes() + job.fence_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _do(job: messages.Job, objective: Objective, host: socket.socket, meter: list[Any]) -> messages.Answer:
    work = job.work
    if isinstance(work, messages.Describe):
        facts = objective.describe(work.batch_sizes)
        if work.params and (try_params := getattr(objective, "try_params", None)) is not None:
            try_params(work.params)
        return facts
    if isinstance(work, messages.Examine):
        return _examine(work, objective, job.device)
    if isinstance(work, messages.TryCuda):
        return try_cuda(work.device)
    if isinstance(work, messages.Measure):
        meter.append(TreeMeter(job.device) if trains_elsewhere(objective) else ProcessMeter(job.device))
        measure = _measure_traced if work.traced else _measure
        return measure(work.spec, job.device, objective, meter[0])
    return _train(work.spec, job.device, objective, host)


def _examine(work: messages.Examine, objective: Objective, device: str) -> messages.Answer:
    from ...objectives.examination import examine

    if getattr(objective, "kind", None) != "supervised":
        raise ObjectiveError("bstune sees no model of this objective: expected a bstune.Supervised.")
    return examine(cast(Any, objective), work.spec, device)


def _measure(
    spec: MeasureSpec, device: str, objective: Objective, meter: ProcessMeter | TreeMeter
) -> messages.Measured:
    notes = objective.measure(spec, device, meter)
    return messages.Measured(meter.read(), notes)


def _measure_traced(spec: MeasureSpec, device: str, objective: Objective, meter: ProcessMeter) -> messages.Measured:
    from ..memory.cuda_recorder import history
    from ..memory.dispatch_recorder import MarkingMeter, recording

    # On CUDA the allocator's own history also sees the workspaces of kernels, and what a compiled module allocates.
    seen: contextlib.AbstractContextManager[Any] = history(spec.micro_batch_size, device) or recording(
        spec.micro_batch_size, device
    )
    with seen as recorder:
        notes = objective.measure(spec, device, MarkingMeter(meter, recorder))
    reading = meter.read()  # Before the trace is put together, which takes memory of its own.
    return messages.Measured(reading, notes, recorder.trace(eval_batch=notes.eval_batch_size))


def _train(spec: TrialSpec, device: str, objective: Objective, host: socket.socket) -> messages.Answer:
    from ..studies.model_files import write_model

    elsewhere = trains_elsewhere(objective)
    peak = TreePeak(device) if elsewhere else PeakMemory(device)
    if not elsewhere:
        from ...objectives.training import seed_everything

        seed_everything(spec.seed)
    start_s = time.perf_counter()

    def ended() -> messages.Trained:
        samples = trial.stopped_at if trial.stopped_at is not None else trial.last_samples
        checkpoint = spec.checkpoint_to if spec.checkpoint_to and os.path.exists(spec.checkpoint_to) else None
        seconds = time.perf_counter() - start_s
        peak.look()
        return messages.Trained(samples, seconds, peak.read(), checkpoint)

    def send(report: TrialReport) -> Verdict:
        peak.look()  # While loader workers live.
        _send(host, report)
        verdict: Verdict = decode(wire.receive(host), messages.Judged).verdict
        return verdict

    def overrun() -> None:
        _send(host, ended())
        os._exit(0)

    trial = Trial(
        spec, device=device, send=send, clock=time.perf_counter, overrun=overrun, look=peak.look, keep=write_model
    )
    try:
        with contextlib.nullcontext() if elsewhere else _step_guard(trial):
            objective.train(trial, spec)
    except TrialPruned:
        if trial.stopped_at is None:  # The user's own TrialPruned, without a verdict of ours.
            raise
    except Exception as error:
        failure = failure_of(error, near_cap=near_capacity(device))
        return replace(failure, samples=trial.last_samples, seconds=time.perf_counter() - start_s)
    return ended()


class _step_guard:  # Reads as the statement that it is.
    """Watches a loop's optimizer steps, so that a loop that swallows `TrialPruned` and reports no more is ended too."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._first: Any = None
        self._steps_since_stop = 0

    def __enter__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handle = register_optimizer_step_post_hook(self._after)

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._first = self._first or optimizer
        if optimizer is self._first and self._trial.stopped_at is not None:
            self._steps_since_stop += 1
            self._trial.check_overrun(self._trial.stopped_at + self._steps_since_stop * self._trial.global_batch_size)


def failure_of(error: BaseException, *, near_cap: bool = True) -> messages.Failure:
    """Turn an exception into plain text with the user's part of its traceback; `near_cap`: see `classify`."""
    name = type(error).__qualname__
    try:
        said, outcome = str(error) or name, classify(error, near_cap)
    except Exception:  # Its class is the user's, and so is the code that says what it says.
        said, outcome = f"{name}, which does not say more: its __str__ fails", "error"
    return messages.Failure(
        outcome=outcome,
        error_type=told(name, MOST_NAME),
        message=told(said, MOST_MESSAGE),
        traceback=told(user_traceback(error), MOST_TRACEBACK),
        ours=isinstance(error, BstuneError),
    )


def user_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, without bstune's frames and those of the import machinery."""
    told = traceback.TracebackException.from_exception(error)
    kept = [frame for frame in told.stack if not _is_machinery(frame.filename)]
    if kept or isinstance(error, SyntaxError):  # A SyntaxError names the user's line itself, and no frame of theirs.
        told.stack = traceback.StackSummary.from_list(kept)
    return "".join(told.format())


def _is_machinery(filename: str) -> bool:
    return filename.startswith((*PACKAGE_FOLDERS, "<frozen importlib")) or filename.endswith("/cloudpickle.py")
