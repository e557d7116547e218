"""The engine `ray`: the same search as on this machine, on a real Ray.

And what is left of it when processes and nodes are killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import bstune
import optuna
import psutil
import pytest
from bstune.tests.engines.ray_searches import (
    SPACE,
    Once,
    asked,
    gone,
    node_arguments,
    ray_processes,
    reported,
    search,
    trial_actors,
    users_of,
    watchful,
)
from bstune.tuner.core.progress import Progress
from bstune.tuner.engines.ray_actor import KIND_LABEL
from bstune.tuner.report.text import search_text
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage

pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'bstune[ray]'")


def test_ray_asks_for_the_same_and_answers_the_same(
    model: Path, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first `jobs` settings and the recommendation are the local engine's; nothing is printed or left behind."""
    local = search(model, f"sqlite:///{tmp_path}/local.db", engine="optuna", jobs=2)
    capfd.readouterr()
    before = random.getstate(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), dict(os.environ)

    result = search(model, url, jobs=2)

    printed = capfd.readouterr()
    assert asked(result, 2) == asked(local, 2)
    assert result.recommendation.learning_rate == local.recommendation.learning_rate == 0.01
    assert result.recommendation.verified
    assert {record.state for record in result.records} <= {"complete", "pruned"}
    assert result.spent.full_runs <= 3 + 2 / 4
    states = {trial.state.name for trial in optuna.load_study(study_name="model", storage=url).trials}
    assert "PRUNED" in states  # Tune itself would call these complete.
    assert printed.out == ""
    assert all(line.startswith("Forecast:") for line in printed.err.splitlines())
    assert (
        random.getstate(),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        dict(os.environ),
    ) == before
    assert not threading.current_thread().daemon
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "local.db", "model"]
    assert gone(ray_processes)


def test_a_killed_ray_worker_costs_one_trial(model: Path, url: str) -> None:
    """SIGKILL of an actor while its trial trains: one FAIL with its cause, and still the right answer."""
    seen: list[str] = []

    def strike() -> None:
        for process in ray_processes():
            seen.extend(c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
        trial_actors()[0].kill()

    result = search(model, url, callbacks=[Once(strike, reported(1))])

    failed = [record for record in result.records if record.state == "failed"]
    assert [(record.cause, record.reason) for record in failed] == [
        ("killed", "killed: the Ray worker process that it ran in died")
    ]
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified
    assert seen
    assert {address.removeprefix("::ffff:") for address in seen} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("engine", ["optuna", "ray"])
def test_memory_and_mistakes_are_told_apart_by_both_engines(
    model: Path, url: str, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Out of memory in a run is a result and not tried again; a mistake is not that; no trial inherits a tensor."""
    monkeypatch.setenv("MISBEHAVE", "1")

    result = search(model, url, engine=engine)

    failed = [record for record in result.records if record.state == "failed"]
    assert [(record.number, record.cause, record.samples > 0) for record in failed] == [
        (1, "oom", True),
        (2, "error", True),
    ]
    assert failed[1].reason == "RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x10 and 20x30)"
    cells = [(record.global_batch_size, record.learning_rate) for record in result.records]
    assert not {cells[1], cells[2]} & set(cells[3:])
    assert result.recommendation.verified


VICTIM = """
    import os, signal
    import bstune

    def hear(progress):
        if progress.kind == "report" and progress.trial.number >= 2:
            os.kill(os.getpid(), signal.SIGKILL)

    objective = bstune.load({model!r})
    limits = dict(device="cpu", space={space!r}, budget=3)
    bstune.search(objective, engine="ray", storage={url!r}, callbacks=[hear], **limits)
"""


def test_a_killed_driver_goes_on_where_it_was(model: Path, url: str, short: Path) -> None:
    """SIGKILL of the search itself: no process of it is left, no finished trial is run again, and the answer comes."""
    code = textwrap.dedent(VICTIM).format(model=str(model), space=SPACE, url=url)
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
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


TRAP = "open({mark!r}, 'w').close()\nraise ImportError('a trap')\n"
SCRIPT = """
import bstune

result = bstune.search(bstune.load({model!r}), engine="ray", device="cpu", space={space!r}, budget=2, storage={url!r})
print(result.recommendation.learning_rate)
"""


def test_rays_processes_run_nothing_of_the_current_folder(model: Path, url: str, tmp_path: Path) -> None:
    """Ray would put that folder first in the path of its workers, and its modules would hide those of others."""
    here = tmp_path / "here"
    here.mkdir()
    for name in (
        "socket",
        "json",
        "base64",
        "numpy",
        "cloudpickle",
        "psutil",
        "torch",
        "optuna",
        "bstune",
        "sitecustomize",
    ):
        (here / f"{name}.py").write_text(TRAP.format(mark=str(here / f"executed-{name}")))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(model=str(model), space=SPACE, url=url))

    done = subprocess.run([sys.executable, str(script)], cwd=here, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.01\n"
    assert list(here.glob("executed-*")) == []


@pytest.mark.parametrize("cluster", [dict[str, str]], indirect=True, ids=["two nodes"])
def test_a_lost_node_costs_the_trial_that_ran_on_it(model: Path, url: str, cluster: Any, tmp_path: Path) -> None:
    """The user's code travels to two nodes; one is lost and its trial fails with the cause; the other goes on alone."""
    (marks := tmp_path / "marks").mkdir()
    nodes = [
        cluster.add_node(**node_arguments(1), env_vars={"MEET": str(marks), "NODE": str(node)}) for node in range(2)
    ]
    cluster.wait_for_nodes()

    def on_the_second(progress: Progress) -> bool:
        trial = progress.trial if progress.kind == "report" else None
        return trial is not None and (marks / f"{trial.number} 1").exists()

    strike = Once(lambda: cluster.remove_node(nodes[1], allow_graceful=False), on_the_second)
    # Without a pruner the trial has no other reason to end than the loss of its node.
    result = search(model, url, jobs=2, ray_address=cluster.address, pruner="none", budget=6, callbacks=[strike])

    failed = [record for record in result.records if record.state == "failed"]
    assert [(record.cause, record.reason) for record in failed] == [
        ("killed", "killed: the node that it ran on was lost, or cannot be reached")
    ]
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified


@pytest.mark.parametrize("cluster", [watchful], indirect=True, ids=["memory monitor"])
def test_a_memory_kill_costs_one_trial(
    model: Path, url: str, cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray's own monitor kills the actor of a trial that takes too much: in Ray 2.60 that would end all of Tune."""
    monkeypatch.setenv("HOARD", str(tmp_path / "hoarded"))
    cluster.add_node(**node_arguments(1))
    cluster.wait_for_nodes()

    result = search(model, url, ray_address=cluster.address)

    failed = [record for record in result.records if record.state == "failed"]
    said = "killed: Ray ended its process, because its node was running out of host memory"
    assert [(record.number, record.cause, record.reason) for record in failed] == [(1, "killed", said)]
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified


SIZED = """
import os, time
from pathlib import Path
import bstune, torch
from shape import bowl, meet

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    fits, seen, late = int(os.environ["FITS"]), Path(os.environ["SEEN"]), Path(os.environ["LATE"])
    if trial.micro_batch_size > fits:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if trial.number >= 0:
        other = Path(os.environ["MEET"], str(fits)).read_text()
        meet(seen, f"{trial.number} {fits} {trial.micro_batch_size} {trial.accumulation_steps}", other)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)  # The probe counts its steps.
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        time.sleep(0.001 * trial.accumulation_steps)
        optimizer.step()
        if samples >= trial.next_report:
            trial.report(val_loss=bowl(samples, trial.learning_rate) + 0.001 * trial.seed, samples=samples)
            if fits == 8 and late.exists():  # What fitted for the probe's few steps does not fit for long, once.
                late.unlink()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""


@pytest.mark.parametrize("cluster", [dict[str, str]], indirect=True, ids=["two kinds"])
def test_each_kind_of_device_trains_with_its_own_split(model: Path, url: str, cluster: Any, tmp_path: Path) -> None:
    """Each kind is probed once, trials are split for the one they run on, late out-of-memory affects one kind."""
    model.write_text(SIZED)
    seen, late, meeting = tmp_path / "seen", tmp_path / "late", tmp_path / "meeting"
    seen.mkdir()
    meeting.mkdir()
    (meeting / "8").write_text("* 64 * *")  # A trial on either kind waits until the other has had one.
    (meeting / "64").write_text("* 8 * *")
    for kind, fits in (("small", 8), ("large", 64)):
        environment = {"FITS": str(fits), "SEEN": str(seen), "LATE": str(late), "MEET": str(meeting)}
        cluster.add_node(**node_arguments(1), labels={KIND_LABEL: kind}, env_vars=environment)
    cluster.wait_for_nodes()
    probed: list[str] = []
    # At random, so that it fills its places until the budget ends; with more cells than that.
    space = {"batch_size": [16, 32], "learning_rate": [0.01 * 2**k for k in range(-5, 6)]}
    options = {"jobs": 2, "ray_address": cluster.address, "sampler": "random", "space": space}

    def hear(progress: Progress) -> None:
        if progress.kind == "probe" and progress.attempt is None:
            probed.append(progress.message)

    first = search(model, url, **options, budget=4, callbacks=[hear])

    assert sorted(probed) == ["large", "small"]
    assert [(kind, probe.micro_batch_size) for kind, probe in first.probes.items()] == [
        ("large", 64),
        ("small", 8),
    ]  # The faster first.
    assert first.probe == first.probes["large"]
    assert used(first) == trained(seen)
    assert {record.global_batch_size for record in first.records} == {16, 32}
    assert {(record.device, record.global_batch_size // record.accumulation_steps) for record in first.records} <= {
        *(("large", 16), ("large", 32), ("small", 8))
    }
    assert set(first.trials.device) == {"large", "small"}
    assert list(first.trials.columns)[-1] == "device"
    best = first.recommendation
    assert best.micro_batch_size == best.global_batch_size  # Of the kind that is named, which takes it whole.
    assert [(each.device, each.micro_batch_size) for each in best.by_device] == [
        ("large", best.global_batch_size),
        ("small", 8),
    ]
    assert best.by_device[0].samples_per_s == best.samples_per_s
    assert (best.by_device[1].samples_per_s or 0) < (best.by_device[0].samples_per_s or 0)
    text = search_text(first)
    assert "  split    large: micro-batch " in text
    assert "  split    small: micro-batch 8 x" in text
    assert bstune.SearchResult.from_dict(json.loads(first.to_json())) == first

    late.touch()
    (meeting / "8").write_text("*")
    (meeting / "64").write_text("* 8 4 *")  # Until the small kind has lost a trial, and has been given another.
    told: list[Progress] = []
    second = search(model, url, **options, budget=12, callbacks=[hear, told.append])

    assert len(probed) == 2
    assert second.records[: len(first.records)] == first.records
    assert used(second) == trained(seen)
    (lost,) = [record for record in second.records if record.state == "failed"]
    assert (lost.cause, lost.device, lost.micro_batch_size) == ("oom", "small", 8)
    known = next(
        i
        for i, each in enumerate(told)
        if each.kind == "finish" and each.trial is not None and each.trial.number == lost.number
    )
    begun = {
        each.trial.number for each in told[known:] if each.kind == "start" and each.trial is not None
    }  # Not those on their way by then.
    assert {
        record.micro_batch_size for record in second.records if record.number in begun and record.device == "small"
    } == {4}
    assert {record.accumulation_steps for record in second.records if record.device == "large"} == {1}
    assert [(each.device, each.micro_batch_size) for each in second.recommendation.by_device][1] == ("small", 4)
    assert second.recommendation.verified


def used(result: bstune.SearchResult) -> set[tuple[int, str | None, int, int]]:
    """What the records say of where each trial ran, and how its batch was split there."""
    return {
        (record.number, record.device, record.micro_batch_size, record.accumulation_steps) for record in result.records
    }


def trained(seen: Path) -> set[tuple[int, str | None, int, int]]:
    """The same as the training loop itself saw it."""
    rows = [tuple(map(int, path.name.split())) for path in seen.iterdir()]
    return {(number, {8: "small", 64: "large"}[fits], micro, steps) for number, fits, micro, steps in rows}


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
