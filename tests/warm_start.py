"""Worker programs that begin with torch loaded: forked from one that has loaded it once, in place of seconds for each.

Only how such a program begins differs from what users have. It is a child of the process that starts it, leads a
session of its own, gets the same descriptors and the same environment, bears the same mark of its search, and runs the
same `main`. Tests whose subject is that beginning are marked `cold_start`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import psutil
from bstune.tuner.workers.launch import command, safe_environment
from bstune.tuner.workers.leftovers import MARK, PR_SET_CHILD_SUBREAPER

PR_GET_CHILD_SUBREAPER = 37
READ_WHEN_LOADED = (
    "PYTHON",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "LD_",
    "MALLOC_",
    "GLIBC_",
)
"""How the variables begin that Python, torch and its libraries read when they are loaded.

Not those of threads: a worker program sets one, and each trial its own number.
"""
READ_LATER = {"PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR"}
"""A worker sets its path itself; torch's compiler names its folder in the process of the tests when it is imported."""
REQUEST_BYTES = 1 << 18
PLACE = "-" * 32
"""In the program's environment: the place for the mark of a search, which is as long."""
ENV_START = 47
"""Which word it is in `/proc/PID/stat` after the name: where in memory the environment begins that others see."""
PLAIN = dict(os.environ)
"""Before a test changes it: a program is for all tests, also where one that changes it is the first to need it."""
MOST_PROGRAMS = 2
"""Each holds what torch takes, some 200 MB."""


def _read_when_loaded(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_WHEN_LOADED) and name not in READ_LATER
    }


class WarmProgram:
    """The program that has torch loaded, as the tests see it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it, to load what a worker with this environment would load."""
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._loaded_with = _read_when_loaded(environment)
            # The rest is that of the tests: a search ends whatever bears a mark of its own.
            rest = {name: value for name, value in PLAIN.items() if name not in _read_when_loaded(PLAIN)}
            self._process = subprocess.Popen(
                command("bstune.tests.warm_start", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                env=safe_environment({**rest, **self._loaded_with}) | {MARK: PLACE},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it, and not one that this process was forked from."""
        return os.getpid() == self._owner

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a program with this environment would have loaded the same."""
        return _read_when_loaded(environment) == self._loaded_with

    def fork(self, module: str, fd: int, log_fd: int, folder: str | None, environment: Mapping[str, str]) -> int:
        """Start `main()` of a module with one descriptor, and return its ID as a child; 0 if the program is gone."""
        prctl = ctypes.CDLL(None).prctl
        before = ctypes.c_int()
        with self._lock:
            # What the program's child leaves behind when it ends becomes a child of this process.
            prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                request = {
                    "parent": os.getpid(),
                    "module": module,
                    "folder": folder or os.getcwd(),
                    "environment": dict(environment),
                }
                socket.send_fds(self._socket, [json.dumps(request).encode()], [fd, log_fd])
                return int(self._socket.recv(64) or 0)
            except OSError:
                return 0
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait(30)


class WarmPopen(subprocess.Popen[bytes]):
    """`subprocess.Popen` as `tuner/workers/template.py` uses it."""

    programs: ClassVar[list[WarmProgram]] = []
    """The last that were used: one as Python, torch and malloc are by default, and one as a test has set them."""
    _choosing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        words: list[str],
        *,
        stdout: IO[bytes],
        env: dict[str, str],
        cwd: str | None,
        pass_fds: tuple[int],
        **rest: Any,
    ) -> None:
        """Fork a worker from a program that has loaded the same; start that first, if there is none."""
        program = WarmPopen._program(env)
        pid = 0 if program is None else program.fork(words[-2], pass_fds[0], stdout.fileno(), cwd, env)
        if not pid:
            super().__init__(words, stdout=stdout, env=env, cwd=cwd, pass_fds=pass_fds, **rest)
            return
        self.args, self.returncode = words, None
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        self.pid = pid
        self._child_created = True

    @classmethod
    def _program(cls, environment: Mapping[str, str]) -> WarmProgram | None:
        """Return the program for this environment, started if need be; None in a process that cannot have its child."""
        with cls._choosing:
            programs = cls.programs
            if not all(program.is_ours for program in programs):
                return None
            found = next((program for program in programs if program.serves(environment)), None)
            if found is not None:
                programs.remove(found)
            elif len(programs) == MOST_PROGRAMS:
                programs.pop(0).close()
            programs.append(found or WarmProgram(environment))
            return programs[-1]


def others_below() -> list[psutil.Process]:
    """Return the processes below this one that run, without the warm programs."""
    kept = {program.pid for program in WarmPopen.programs}
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in kept and process.status() != psutil.STATUS_ZOMBIE
    ]


# --- the program itself -----------------------------------------------------------------------------------------------


def main() -> None:
    """Load torch, then fork a process for each request, until the tests are over."""
    import torch
    from bstune.objectives import training  # noqa: F401
    from bstune.tuner.workers import worker

    requests = socket.socket(fileno=int(sys.argv.pop()))
    os.set_inheritable(requests.fileno(), False)
    torch.set_num_threads(1)
    worker._warm_up()
    gc.collect()
    gc.freeze()
    while True:
        body, fds, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 2)
        if not body:
            return
        if (between := os.fork()) == 0:
            if os.fork() != 0:
                os._exit(0)
            _begin(json.loads(body), fds[0], fds[1], requests)
            return
        os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)


def _begin(request: dict[str, Any], fd: int, log_fd: int, requests: socket.socket) -> None:
    deadline_s = time.monotonic() + 30
    while os.getppid() != request["parent"]:  # Until the one between has ended.
        if time.monotonic() > deadline_s:
            return  # The tests are gone.
        os.sched_yield()
    os.setsid()
    _bear(request["environment"].get(MARK, ""))
    requests.send(str(os.getpid()).encode())
    requests.close()
    os.chdir(request["folder"])
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    gc.unfreeze()
    sys.argv.append(str(fd))
    module = sys.modules[request["module"]]
    module.main()


def _bear(mark: str) -> None:
    """Show the mark where others look for it: a program that had been started with it would."""
    begin = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[ENV_START])
    place = Path("/proc/self/environ").read_bytes().index(PLACE.encode())
    word = mark.encode()[-len(PLACE) :]  # The last of several is that of the search itself.
    ctypes.memmove(begin + place, word, len(word))
