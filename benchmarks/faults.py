"""Run hundreds of short searches under random faults from a seeded list, and check after each that nothing is lost.

    python benchmarks/faults.py                  # 300 searches; about a quarter of an hour on 2 cores. Also: make soak
    python benchmarks/faults.py --searches 30 --seed 7 --only driver_sigkill,trial_hang

Each search runs in a process of its own, in a folder of its own; where the fault ends it, a second process runs the
same search again, as a user would. Then: every trial that was told to be finished is in the storage, once and as it was
told; the budget was kept; no process, temporary file or shared memory is left; plain Optuna opens the study; and the
answer is that of an undisturbed search within seed noise. Nothing of it needs more than a formula to train, so what
takes time is starting processes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bstune
import optuna
import psutil
import torch
from bstune.tuner.core.progress import Progress
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.studies.writer_lock import InUseError
from bstune.tuner.testing.fake_device import known_probe

BUDGET = 4.0
ONE_REPORT = 0.25
"""Full runs by which a loop of the user's own may pass the budget."""
NOISE = 0.03
SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
MARK = "BSTUNE_SOAK"
PATIENCE_S = 90.0
MODEL = """
import ctypes, math, os, signal, subprocess, time
import bstune, torch

KIND, AT = os.environ.get("SOAK_FAULT", ""), int(os.environ.get("SOAK_AT", "-1"))

def misbehave(trial, samples):
    if KIND == "trial_sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "trial_segfault":
        ctypes.string_at(0)
    if KIND == "trial_exit":
        os._exit(7)
    if KIND == "trial_hang":
        time.sleep(1000)
    if KIND == "trial_children":
        subprocess.Popen(["sleep", "1000"])
        os._exit(9)
    if KIND == "trial_early_return":
        return True
    if trial.learning_rate == 0.1:  # Faults that speak against the setting, so that they may not hit the best one.
        if KIND == "trial_exception":
            raise ValueError("a bug that shows at large learning rates")
        if KIND == "trial_late_oom" and trial.global_batch_size == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if KIND == "trial_nan":
            trial.report(val_loss=math.nan, samples=samples + 16)

@bstune.objective(n_samples=320, epochs=4, evals=4, name="soak")
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
            trial.report(val_loss=loss * (1 + 0.002 * trial.seed), samples=samples)
            always = KIND in ("trial_exception", "trial_late_oom", "trial_nan")
            if (trial.number == AT or always and trial.number > 0) and misbehave(trial, samples):
                return
"""
PROBE = known_probe(32, step_s=None, n_train_samples=320)
TRIAL_FAULTS = (
    "trial_sigkill",
    "trial_segfault",
    "trial_exit",
    "trial_hang",
    "trial_children",
    "trial_early_return",
    "trial_exception",
    "trial_late_oom",
    "trial_nan",
)
DRIVER_FAULTS = (
    "driver_sigkill",
    "driver_sigint",
    "driver_between_writes",
    "driver_timeout",
    "driver_sigkill_with_workers",
    "template_sigkill",
)
STORAGE_FAULTS = ("disk_full", "storage_locked", "second_search", "torn_journal", "clock_jumps")
FAULTS = (*TRIAL_FAULTS, *DRIVER_FAULTS, *STORAGE_FAULTS)
WITH_PROCESSES = (*TRIAL_FAULTS, "driver_sigkill_with_workers", "template_sigkill")


@dataclass(frozen=True)
class Case:
    """One search and what befalls it."""

    index: int
    fault: str
    at: int
    """Which trial, or which step of the search, it hits."""

    @property
    def mark(self) -> str:
        """What the processes of its searches have in their environment."""
        return f"{os.getpid()}-{self.index}"


def arguments_of(case: Case, folder: Path) -> dict[str, Any]:
    isolated = case.fault in WITH_PROCESSES
    kind = "journal" if case.fault == "torn_journal" else "sqlite"
    return {
        "space": SPACE,
        "budget": BUDGET,
        "storage": f"{kind}:///{folder / 'runs' / 'bstune.db'}",
        "study": "soak",
        "device": "cpu",
        "isolation": "process" if isolated else "none",
        "probe": PROBE if isolated else None,
        "jobs": 2 if isolated else 1,
        "trial_timeout": 2.0 if case.fault == "trial_hang" else None,
    }


# --- the process of one search ------------------------------------------------------------------------------------


def in_child(work: Callable[[], None], log: Path, environment: dict[str, str]) -> int:
    """Do something in a fork of this process, which has everything imported, and return its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.environ.update(environment)
            tempfile.tempdir = environment["TMPDIR"]
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"the search did not end within {PATIENCE_S:g} s")


def search(case: Case, folder: Path, *, disturbed: bool) -> None:
    """Search once; what is told of finished trials goes to a file as it is told."""
    arguments = arguments_of(case, folder)
    told = open(folder / "told.jsonl", "a", buffering=1)  # noqa: SIM115  # For as long as the process lives.
    events = 0

    def hear(progress: Progress) -> None:
        nonlocal events
        if progress.kind == "finish" and progress.trial is not None:
            trial = progress.trial
            told.write(json.dumps([trial.number, trial.state, trial.samples, trial.val_loss]) + "\n")
        if progress.kind in ("start", "report", "finish"):
            events += 1
            if disturbed and events == case.at:
                strike(case, folder)

    if disturbed and case.fault == "driver_timeout":
        arguments["timeout"] = 0.01 * case.at
    with disturbance(case) if disturbed else contextlib.nullcontext():
        result = bstune.search(bstune.load(folder / "model.py"), callbacks=[hear], **arguments)
    if not (disturbed and case.fault == "driver_timeout"):
        (folder / "result.json").write_text(result.to_json())


def strike(case: Case, folder: Path) -> None:
    """Let the fault of a case happen, within the search."""
    fault = case.fault
    if fault in ("driver_sigkill", "driver_sigkill_with_workers", "torn_journal"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "driver_sigint":
        raise KeyboardInterrupt
    if fault == "template_sigkill":
        for child in psutil.Process().children():
            child.kill()
    if fault == "disk_full":
        limit = max(1, (folder / "runs" / "bstune.db").stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if fault == "storage_locked":
        lock_for_a_while(folder / "runs" / "bstune.db", 0.5)
    if fault == "second_search":
        with contextlib.suppress(InUseError):
            open_storage(f"sqlite:///{folder / 'runs' / 'bstune.db'}")
            raise AssertionError("a second writer was let in")


def lock_for_a_while(path: Path, seconds: float) -> None:
    """Lock the database as another program would, and release it."""
    held = threading.Event()

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as other:
            other.execute("BEGIN IMMEDIATE")
            held.set()
            time.sleep(seconds)
            other.rollback()

    threading.Thread(target=hold, daemon=True).start()
    held.wait(10)


@contextlib.contextmanager
def disturbance(case: Case) -> Iterator[None]:
    """Keep a fault up that lasts."""
    if case.fault == "clock_jumps":
        real, jumps = time.time, random.Random(case.index)
        time.time = lambda: real() + jumps.choice([0, 86_400, -86_400, 31_536_000])
    if case.fault == "driver_between_writes":
        original = trial_writes.end_trial
        left = [1 + case.at // 3]

        def dying(backend: Any, trial_id: int, state: Any, value: Any, attributes: Any) -> None:
            left[0] -= 1
            if left[0] == 0:  # As on a storage without transactions.
                trial_writes.write_trial(backend, trial_id, attributes=attributes)
                os.kill(os.getpid(), signal.SIGKILL)
            original(backend, trial_id, state, value, attributes)

        trial_writes.end_trial = dying
    yield


# --- one case and its checks --------------------------------------------------------------------------------------


def run(case: Case, home: Path, truth: dict[str, Any] | None) -> dict[str, Any]:
    """Run a case to its end, check everything, and return what it came to."""
    folder = home / f"case-{case.index}"
    for name in ("runs", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    shared_memory = set(os.listdir("/dev/shm"))
    environment = {
        MARK: case.mark,
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(home / "inductor")  # Torch's own, which it keeps on purpose.
    fault = {"SOAK_FAULT": case.fault, "SOAK_AT": str(case.at % 6)} if case.fault in TRIAL_FAULTS else {}
    log = folder / "log.txt"
    status = in_child(lambda: search(case, folder, disturbed=True), log, environment | fault)
    ended_early = not (folder / "result.json").exists()
    if case.fault == "torn_journal":
        with open(folder / "runs" / "bstune.db", "ab") as journal:
            journal.write(b'{"op_code": 4, "wor')
        (folder / "runs" / "bstune.db.lock").write_text('{"bstune journal write": "of a writer that was killed"}')
        ended_early = True
    if ended_early:
        again = in_child(lambda: search(case, folder, disturbed=False), log, environment)
        assert again == 0, f"the second search failed: {log.read_text()[-1500:]}"
    outcome: dict[str, Any] = json.loads((folder / "result.json").read_text())
    check(case, folder, outcome, truth)
    assert set(os.listdir("/dev/shm")) <= shared_memory, "shared memory was left"
    shutil.rmtree(folder)
    return {"outcome": outcome, "struck": ended_early or status != 0 or lost(outcome) or case.fault in STORAGE_FAULTS}


def lost(outcome: dict[str, Any]) -> bool:
    return any(record["state"] == "failed" or "diverged" in record["reason"] for record in outcome["trials"])


def check(case: Case, folder: Path, outcome: dict[str, Any], truth: dict[str, Any] | None) -> None:
    """Compare what is left of a case with what was promised."""
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    numbers = Counter(number for number, *_ in told)
    assert max(numbers.values()) == 1, f"finished twice: {numbers}"
    url = arguments_of(case, folder)["storage"]
    storage: Any = url
    if url.startswith("journal"):
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(url.removeprefix("journal:///"))
        )
    stored = {trial.number: trial for trial in optuna.load_study(study_name="soak", storage=storage).trials}
    assert sorted(stored) == list(range(len(stored))), "trials are missing"
    assert all(trial.state.is_finished() for trial in stored.values()), "a trial is left unfinished"
    for number, state, samples, _ in told:
        result = stored[number].user_attrs["result"]
        assert (result["state"], result["samples"]) == (state, samples), (
            f"trial {number} was told {state}, is {result['state']}"
        )
    spent = outcome["spent"]["full_runs"]
    assert spent <= BUDGET + ONE_REPORT * arguments_of(case, folder)["jobs"] + 1e-9, f"spent {spent} of {BUDGET}"
    left = processes_of(case)
    assert not left, f"processes are left: {left}"
    assert list((folder / "tmp").iterdir()) == [], f"temporary files are left: {list((folder / 'tmp').iterdir())}"
    assert [path.name for path in (folder / "runs").iterdir()] == ["bstune.db"], (
        f"files are left: {list((folder / 'runs').iterdir())}"
    )
    if truth is not None:
        best, true = outcome["recommendation"], truth["recommendation"]
        assert best["learning_rate"] == true["learning_rate"], (
            f"recommends {best['learning_rate']}, not {true['learning_rate']}"
        )
        assert best["verified"], f"not verified: {best['warnings']}"
        gap = abs(best["val_loss"]["mean"] / true["val_loss"]["mean"] - 1)
        assert gap <= NOISE, f"its loss is {gap:.1%} off"


def processes_of(case: Case) -> list[int]:
    """Return the processes that have the mark of a case, a moment after it has ended."""
    deadline_s = time.monotonic() + 5
    while True:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    process.pid != os.getpid()
                    and process.environ().get(MARK) == case.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    left.append(process.pid)
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.05)


def warm_up(home: Path) -> None:
    """Import what every search imports, so that its process, a fork of this one, has it already."""
    torch.set_num_threads(1)
    open_storage(f"sqlite:///{home / 'warm.db'}").close()
    for name in (
        "bstune.tuner.search",
        "bstune.tuner.strategy.strategy",
        "bstune.tuner.workers.fork_server",
        "optuna.storages.journal",
    ):
        importlib.import_module(name)


# --- all of them --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds of fault, separated by commas")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a case that failed")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = arguments.only.split(",") if arguments.only else list(FAULTS)
    rng = random.Random(arguments.seed)
    if (
        not arguments.only
    ):  # Those that need no template process are had for a third of the time, so they come twice as often.
        kinds = [*kinds, *(kind for kind in kinds if kind not in WITH_PROCESSES)]
    # Each kind in turn, then in random order, so that few searches are enough to see all.
    cases = [Case(index, kinds[index % len(kinds)], rng.randint(2, 24)) for index in range(arguments.searches)]
    rng.shuffle(cases)
    home = Path(tempfile.mkdtemp(prefix="bstune-soak-"))
    warm_up(home)
    started_s = time.monotonic()
    done: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    problems: list[str] = []
    truths = {
        isolated: run(Case(-1 - isolated, kind, 10**6), home, None)["outcome"]
        for isolated, kind in enumerate(("none", "driver_sigkill_with_workers"))
    }
    for case in cases:
        try:
            struck[case.fault] += run(case, home, truths[int(case.fault in WITH_PROCESSES)])["struck"]
        except (AssertionError, TimeoutError, OSError, KeyError) as error:
            problems.append(f"search {case.index}, {case.fault} at {case.at}: {error or type(error).__name__}")
            print(problems[-1], flush=True)
            if not arguments.keep:
                shutil.rmtree(home / f"case-{case.index}", ignore_errors=True)
        done[case.fault] += 1
        if sum(done.values()) % 25 == 0:
            print(
                f"{sum(done.values())} searches, {len(problems)} problems, {time.monotonic() - started_s:.0f} s",
                flush=True,
            )
    print(f"\n{'fault':<30} {'searches':>8} {'it showed':>10}")
    for fault in sorted(done):
        print(f"{fault:<30} {done[fault]:>8} {struck[fault]:>10}")
    print(
        f"\n{sum(done.values())} searches, {len(done)} kinds of fault, {len(problems)} problems, "
        f"{time.monotonic() - started_s:.0f} s"
    )
    if not arguments.keep or not problems:
        shutil.rmtree(home, ignore_errors=True)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
