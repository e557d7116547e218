"""The engine `ray`: the same search as on this machine, on a real Ray.

And what is left of it when processes are killed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bstune
import optuna
import psutil
import pytest
from bstune.tests.engines.ray_searches import (
    SPACE,
    Once,
    asked,
    gone,
    ray_processes,
    reported,
    search,
    trial_actors,
    users_of,
)
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage

pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'bstune[ray]'")


@pytest.mark.timeout(600)  # Two engines, and all that may go wrong with a trial.
def test_ray_asks_for_the_same_and_answers_the_same_whatever_goes_wrong(
    model: Path, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first `jobs` settings, what becomes of faults and the recommendation are the local engine's.

    Nothing is printed or left behind. A trial whose process is killed costs just that trial.
    """
    monkeypatch.setenv("MISBEHAVE", "1")
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "local.db", "model"]
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


TRAP = "open({mark!r}, 'w').close()\nraise ImportError('a trap')\n"
TRAPS = ("socket", "json", "base64", "numpy", "cloudpickle", "psutil", "torch", "optuna", "bstune", "sitecustomize")
VICTIM = """
import os, signal
import bstune

def hear(progress):
    if progress.kind == "report" and progress.trial.number >= 2:
        os.kill(os.getpid(), signal.SIGKILL)

objective = bstune.load({model!r})
bstune.search(objective, engine="ray", device="cpu", space={space!r}, budget=3, storage={url!r}, callbacks=[hear])
"""


def test_a_killed_driver_goes_on_where_it_was(model: Path, url: str, short: Path, tmp_path: Path) -> None:
    """SIGKILL of the search itself: no process of it is left, no finished trial is run again, and the answer comes.

    Ray's processes ran nothing of the current folder: Ray would put that first in the path of its workers, and its
    modules would hide those of others.
    """
    here = tmp_path / "here"
    here.mkdir()
    for name in TRAPS:
        (here / f"{name}.py").write_text(TRAP.format(mark=str(here / f"executed-{name}")))
    script = tmp_path / "script.py"
    script.write_text(VICTIM.format(model=str(model), space=SPACE, url=url))
    killed = subprocess.run([sys.executable, str(script)], cwd=here, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(here.glob("executed-*")) == []
    assert list(short.glob("bstune-ray-*"))
    with read_storage(url) as storage:
        study = find_study(storage, "model")
        assert study is not None
        ended = [record for record in study.records if record.state != "running"]
    assert ended

    result = search(model, url)

    assert result.records[: len(ended)] == tuple(ended)
    assert [record.cause for record in result.records if record.state == "failed"] == ["orphan"]
    assert result.recommendation.learning_rate == 0.01
    assert gone(
        lambda: users_of(short)
    )  # Among them what the killed one left: two agents of Ray that would stay for minutes.
    assert gone(lambda: list(short.glob("bstune-ray-*")))


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
