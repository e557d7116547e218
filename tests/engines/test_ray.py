"""The engine `ray`: the same search as on this machine, on a real Ray, also when processes of it are killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import bstune
import optuna
import psutil
import pytest
from bstune.tests.engines.ray_searches import (
    Once,
    asked,
    executed,
    gone,
    lay_traps,
    ray_processes,
    reported,
    search,
    trial_actors,
)

# On a busy machine each start of Ray takes a minute.
pytestmark = [pytest.mark.usefixtures("needs_ray"), pytest.mark.timeout(900)]


def test_ray_asks_for_the_same_and_answers_the_same_whatever_goes_wrong(
    model: Path, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first `jobs` settings, what becomes of faults and the recommendation are the local engine's.

    Nothing is printed or left behind, and nothing of the current folder runs. A trial whose process is killed costs
    just that trial.
    """
    monkeypatch.setenv("MISBEHAVE", "1")
    monkeypatch.chdir(lay_traps(here := tmp_path / "here"))
    local = search(model, f"sqlite:///{tmp_path}/local.db", engine="optuna", jobs=2, budget=6)
    listening: list[str] = []

    def strike() -> None:
        for process in ray_processes():
            listening.extend(c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
        trial_actors()[0].kill()

    capfd.readouterr()
    before = random.getstate(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ)

    result = search(model, url, jobs=2, budget=6, callbacks=[Once(strike, reported(4))])

    printed = capfd.readouterr()
    assert (
        random.getstate(),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        dict(os.environ),
    ) == before
    assert printed.out == ""
    assert all(line.startswith("Forecast:") for line in printed.err.splitlines())
    assert not threading.current_thread().daemon
    assert gone(ray_processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "here", "local.db", "model"]
    assert executed(here) == []
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}

    assert asked(result, 2) == asked(local, 2)
    for each in (local, result):
        check_faults(each)
        assert each.recommendation.learning_rate == 0.01
        assert each.recommendation.verified
    assert {record.cause for record in local.records} == {None, "oom", "error"}
    (killed,) = [record for record in result.records if record.cause == "killed"]
    assert killed.reason == "killed: the Ray worker process that it ran in died"
    assert result.spent.full_runs <= 6 + 2 / 4
    states = {trial.state.name for trial in optuna.load_study(study_name="model", storage=url).trials}
    assert states == {"COMPLETE", "FAIL", "PRUNED"}  # Tune itself would call those that are stopped complete.


def check_faults(result: bstune.SearchResult) -> None:
    """Out of memory in a run is a result and not tried again; a mistake is not that; no trial inherits a tensor."""
    failed = [record for record in result.records if record.state == "failed" and record.cause != "killed"]
    assert [(record.number, record.cause, record.samples > 0) for record in failed] == [
        (1, "oom", True),
        (2, "error", True),
    ]
    assert failed[1].reason == "RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x10 and 20x30)"
    cells = [(record.global_batch_size, record.learning_rate) for record in result.records]
    assert not {cells[1], cells[2]} & set(cells[3:])


def test_absent_resources_are_an_error_at_once(model: Path, url: str) -> None:
    """Nothing hangs where a cluster, a card or a core is not there."""
    start_s = time.monotonic()
    for arguments, said in (
        ({"ray_address": "127.0.0.1:1"}, "There is no Ray cluster at 127.0.0.1:1"),
        ({"ray_address": "nonsense"}, "expected auto or HOST:PORT"),
        ({"device": "cuda:1"}, "Ray chooses the card"),
    ):
        with pytest.raises(bstune.DeviceError, match=said):
            search(model, url, **arguments)
    with pytest.raises(bstune.ArgumentError, match="it goes with engine='ray'"):
        search(model, url, engine="optuna", ray_address="auto")
    assert time.monotonic() - start_s < 60
