"""The processes in which user code runs: what they survive, what they hide, and that they leave nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bstune
import numpy
import psutil
import pytest
import torch
from bstune.tests.warm_start import others_below
from bstune.tuner.core.trials import MeasureSpec, TrialSpec, Verdict
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host
from bstune.tuner.workers.template import Died

MODEL = """
import os, signal, sys, time
import bstune, torch

print("noise at import")
kept = []

@bstune.objective(n_samples=1000, epochs=1)
def objective(trial):
    print("noise in the loop")
    os.write(1, b"noise below Python\\n")
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate)
    does = trial.params.get("does", "train")
    samples = 0
    while samples < trial.max_samples:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        samples += trial.global_batch_size
        if samples >= 300:
            if does == "raise":
                raise KeyError("my own mistake")
            if does == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if does == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if does == "exit":
                os._exit(7)
            if does == "hang":
                time.sleep(600)
            if does == "memory":
                kept.append(torch.ones(1 << 40))
            if does == "leak":
                kept.append(torch.ones(1 << 24))
        if does == "silent" and samples > 500:
            time.sleep(0.001)
            continue
        try:
            trial.report(1.0 / samples, samples=samples)
        except bstune.TrialPruned:
            if does not in ("silent", "deaf"):
                raise
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a loop that misbehaves as its parameter says."""
    path = tmp_path_factory.mktemp("worker") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def host(model: Path) -> Iterator[Host]:
    """The worker processes of that file."""
    with Host(bstune.load(model), device="cpu", jobs=2) as host:
        yield host


def spec_of(does: str, number: int = 0, end_samples: int = 1000) -> TrialSpec:
    """Return a run of 100 samples a step that reports at 500 and at its end."""
    return TrialSpec(number, "search", 100, 100, 1, 0.1, 0, end_samples, (500, end_samples), params={"does": does})


def run(host: Host, *specs: TrialSpec, verdict: Verdict = "go", timeout_s: float = 30) -> list[Event]:
    """Run trials side by side to their ends and return all events."""
    pool, events, left = LocalPool(host, slots=2, fence_bytes=1 << 33), [], {spec.number for spec in specs}
    for spec in specs:
        pool.submit(spec)
    deadline = time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        for event in pool.events(1.0):
            events.append(event)
            if isinstance(event, Reported):
                pool.reply(event.report.number, verdict)
            else:
                left.discard(event.number)
    pool.close()
    return events


def test_what_a_file_draws_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Random data made at the top of a file would else change when a search goes on, or between unforked trials."""
    path = tmp_path / "drawn.py"
    path.write_text(
        "import random, bstune, numpy, torch\n"
        "drawn = (random.random(), numpy.random.rand(), torch.rand(()).item())\n"
        "objective = bstune.objective(n_samples=10, name=repr(drawn))(print)\n"
    )
    names = []
    for _ in range(2):
        with Host(bstune.load(path), device="cpu") as host:
            names.append(host.facts.name)

    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("does", "cause", "said"),
    [
        ("raise", "error", "my own mistake"),
        ("killed", "killed", "SIGKILL"),
        ("segfault", "crashed", "SIGSEGV"),
        ("exit", "crashed", "code 7"),
        ("memory", "oom", "can't allocate memory"),
    ],
)
def test_a_lost_trial_is_a_result_with_a_cause(host: Host, does: str, cause: str, said: str) -> None:
    """Whatever ends the child, the other trial goes on, and the cause and the last printed lines are known."""
    lost, finished = sorted(
        (event for event in run(host, spec_of(does), spec_of("train", 1)) if not isinstance(event, Reported)),
        key=lambda event: event.number,
    )

    assert isinstance(finished, Finished)
    assert finished.samples == 1000
    assert isinstance(lost, Lost)
    assert lost.cause == cause
    assert lost.samples <= 300
    assert said in lost.message
    assert "noise in the loop" in (lost.output or "")


def test_an_exception_comes_with_the_users_own_traceback(host: Host) -> None:
    """The user's line is in it, and none of bstune's."""
    (lost,) = (event for event in run(host, spec_of("raise")) if isinstance(event, Lost))

    assert lost.error_type == "KeyError"
    assert "model.py" in (lost.traceback or "")
    assert "tuner/workers/worker.py" not in (lost.traceback or "")


@pytest.mark.parametrize("does", ["train", "deaf", "silent"])
def test_a_stopped_loop_ends_even_if_it_does_not_listen(host: Host, does: str) -> None:
    """One that passes the signal on ends where it was stopped; one that swallows it is ended by its process."""
    (finished,) = (
        event
        for event in run(host, spec_of(does, end_samples=100_000), verdict="stop")
        if not isinstance(event, Reported)
    )

    assert isinstance(finished, Finished)
    assert finished.samples == 500


def test_nothing_is_kept_from_one_trial_to_the_next(host: Host) -> None:
    """A trial that keeps 64 MiB in a global at each step leaves the next one as much memory as the first had."""
    peaks = {}
    for number, does in enumerate(("train", "leak", "raise", "train")):
        events = run(host, spec_of(does, number))
        peaks[number] = max((event.peak_bytes or 0 for event in events if isinstance(event, Finished)), default=0)

    assert peaks[1] > peaks[0] + (64 << 20)
    assert peaks[3] < peaks[0] + (8 << 20)


def test_user_output_stays_off_stdout(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """Prints at import, in the loop, and below Python all go to the log of the trial."""
    run(host, spec_of("train"))

    assert capfd.readouterr() == ("", "")


def gone(pids: set[int], within_s: float = 8.0) -> bool:
    """Tell whether all processes have ended, waiting a little for them."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_closing_ends_a_hung_child(model: Path) -> None:
    """No process of ours is left after the host is closed in the middle of a trial."""
    before = others_below()
    host = Host(bstune.load(model), device="cpu")
    pool = LocalPool(host)
    pool.submit(spec_of("hang"))
    time.sleep(0.5)
    pids = {child.pid for child in others_below() if child not in before}

    host.close()

    assert len(pids) >= 2
    assert gone(pids)


CALLER = """
import sys, time, torch, bstune
from bstune.tuner.workers.fork_server import Host
from bstune.tuner.workers.messages import Measure
from bstune.tuner.core.trials import MeasureSpec

data = torch.utils.data.TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1))
def hang(model, batch):
    time.sleep(600)
objective = bstune.Supervised(lambda: torch.nn.Linear(4, 1), data, data, training_step=hang, num_workers=1)
host = Host(objective, device="cpu")
worker = host.start(Measure(MeasureSpec(4, 4, 1, 2, 0)))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGHUP])
def test_a_dead_parent_leaves_no_orphan(tmp_path: Path, signal_number: signal.Signals) -> None:
    """Template, trial and its loader worker end with the caller, whether it ends in order or at once.

    No __main__ guard is needed. For other signals see `test_killed.py`.
    """
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    caller = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 10
    pids: set[int] = set()
    while len(pids) < 3 and time.monotonic() < deadline:
        pids = {child.pid for child in psutil.Process(caller.pid).children(recursive=True)}
        time.sleep(0.05)

    caller.send_signal(signal_number)
    caller.wait(10)
    caller.stdout.close()

    assert len(pids) >= 3
    assert gone(pids)


A_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
THE_THREAD_OF_JEMALLOC = """
import ctypes, threading, time
named = threading.Event()
def background():
    ctypes.CDLL(None).prctl(15, b"jemalloc_bg_thd", 0, 0, 0)  # PR_SET_NAME
    named.set()
    time.sleep(600)
threading.Thread(target=background, daemon=True).start()
named.wait()
"""


@pytest.mark.parametrize(("line", "said"), [(A_THREAD, "2 threads"), (THE_THREAD_OF_JEMALLOC, None), ("pass", None)])
def test_a_file_that_makes_forking_unsafe_gets_fresh_programs(tmp_path: Path, line: str, said: str | None) -> None:
    """Threads started at import do not survive a fork, so each job gets a program of its own, and the user is told.

    That of an allocator that is ready for a fork, as pyarrow has it and pandas imports it, is none to speak of.
    """
    path = tmp_path / "model.py"
    path.write_text(f"{line}\n{MODEL}")
    with Host(bstune.load(path), device="cpu") as host:
        events = [
            event for number in range(2) for event in run(host, spec_of("train", number)) if isinstance(event, Finished)
        ]

        assert host.fork is (said is None)
        assert all(said in warning for warning in host.warnings) if said else not host.warnings
        assert [event.samples for event in events] == [1000, 1000]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; os._exit(3)", "code 3"),
        ("import sys; sys.exit('stop here')", "SystemExit"),
        ("def f(:", "SyntaxError"),
        ("objective = 3", "of type int, not an objective"),
        ("import no_such_module_of_mine", "no_such_module_of_mine"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    """Whatever it does, the caller gets an ObjectiveError that says it."""
    path = tmp_path / "model.py"
    path.write_text(f"{text}\n")

    with pytest.raises(bstune.ObjectiveError, match=said):
        Host(bstune.load(path), device="cpu")


@pytest.mark.parametrize("device", ["mps", "cuda:x", "tpu"])
def test_unknown_device_says_what_to_use(model: Path, device: str) -> None:
    """The message names the device, what is expected, and the way out."""
    with pytest.raises(bstune.DeviceError, match=rf"{device}.*expected auto, cpu, cuda"):
        Host(bstune.load(model), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_cuda_that_is_not_there_says_why_and_auto_takes_the_cpu(model: Path) -> None:
    """`cuda` is an error with a reason; `auto` goes on."""
    with pytest.raises(bstune.DeviceError, match="cuda is not available"):
        Host(bstune.load(model), device="cuda")
    with Host(bstune.load(model)) as host:
        assert host.device_info.kind == "cpu"


def state() -> tuple[object, ...]:
    """Return everything of the caller that bstune must not touch."""
    numpy_state = numpy.random.get_state(legacy=False)
    return (
        random.getstate(),
        str(numpy_state),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        dict(os.environ),
        os.getcwd(),
        list(sys.path),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    )


def _use(model: Path, use: Callable[[Host], object]) -> None:
    with Host(bstune.load(model), device="cpu") as host:
        use(host)


def test_the_caller_is_as_before(model: Path) -> None:
    """Random states, threads, environment, signals and open files are the same after work that ended well or raised."""
    _use(model, lambda host: host.facts)
    before = state()

    _use(model, lambda host: run(host, spec_of("train")))
    with pytest.raises(ZeroDivisionError):
        _use(model, lambda host: 1 / 0)

    assert state() == before


def test_a_killed_template_is_an_error_and_not_a_hang(model: Path) -> None:
    """The template is killed from outside while a trial hangs: the trial is lost, and the next start says so."""
    with Host(bstune.load(model), device="cpu") as host:
        worker = host.start(messages.Train(spec_of("hang")))
        template = psutil.Process(worker.pid).parent()
        assert template is not None
        template.kill()

        assert isinstance(host.answer(worker, 10), Died)
        with pytest.raises(bstune.BstuneError, match="template process died"):
            host.start(messages.Train(spec_of("train")))


def test_loop_is_measured_by_the_optimizer_hook(host: Host) -> None:
    """Three steps are counted and timed although bstune does not own the loop."""
    worker = host.start(messages.Measure(MeasureSpec(8, 8, 2, 3, 0)))
    answer = host.answer(worker)
    worker.end()

    assert isinstance(answer, messages.Measured)
    assert (answer.reading.steps, answer.notes.samples, answer.notes.optimizer) == (3, 48, "SGD")
    assert answer.reading.parameters_bytes == 20
    assert answer.notes.eval_batch_size is None
