"""The engine `ray`: the same search as on this machine, on a real Ray.

And what is left of it when processes and nodes are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bstune
import optuna
import psutil
import pytest
from bstune.tuner.core.progress import Progress
from bstune.tuner.device.memory import Memory
from bstune.tuner.report.text import search_text
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage
from bstune.tuner.workers.messages import Pickled

pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'bstune[ray]'")

from bstune.tuner.core.trials import Split, TrialSpec
from bstune.tuner.engines import ray_actor
from bstune.tuner.engines.ray_actor import KIND_LABEL, Carried, Task, decode_spec, encode_spec
from bstune.tuner.engines.ray_layout import Slots, lay_out
from bstune.tuner.engines.ray_source import pack
from bstune.tuner.engines.ray_start import token

MODEL = """
import os, time
import bstune, torch
from shape import bowl, meet  # A neighbour of this file, which has to travel with it.

held = []

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    hoard = []
    held.append(torch.ones(1 << 20))  # Nothing that a trial keeps is there in the next.
    assert len(held) == 1
    mark = os.environ.get("HOARD")  # Takes host memory without end, once.
    if trial.number == 1 and mark and not os.path.exists(mark):
        open(mark, "w").close()
        while True:
            hoard.append(torch.ones(50 << 20))
            time.sleep(0.02)  # A moment for Ray to look.
    if trial.number >= 0 and "MEET" in os.environ:
        meet(os.environ["MEET"], f"{trial.number} {os.environ['NODE']}", "* 0", "* 1")
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)  # The probe counts its steps.
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        optimizer.step()
        if samples >= trial.next_report:
            time.sleep(0.02)
            trial.report(val_loss=bowl(samples, trial.learning_rate) + 0.001 * trial.seed, samples=samples)
            while trial.number >= 0 and os.environ.get("NODE") == "1":  # Until its node is lost.
                time.sleep(0.02)
            if os.environ.get("MISBEHAVE") and trial.number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if os.environ.get("MISBEHAVE") and trial.number == 2:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x10 and 20x30)")
"""
SHAPE = '''
import math, time
from pathlib import Path

def bowl(samples, lr):
    return 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(lr / 0.01) ** 2

def meet(folder, name, *others):
    """Leave a mark that says where a trial runs, and wait for marks like these."""
    Path(folder, name).touch()
    while not all(any(Path(folder).glob(other)) for other in others):
        time.sleep(0.02)
'''
SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A formula in a file with a neighbour, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "shape.py").write_text(SHAPE)
    (folder / "socket.py").write_text("raise ImportError('a file of the user was taken for one of Python')\n")
    (folder / "model.py").write_text(MODEL)
    return folder / "model.py"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"


def search(model: Path, url: str, **changes: Any) -> bstune.SearchResult:
    """Search the formula, by Ray unless changed."""
    arguments: dict[str, Any] = {"engine": "ray", "device": "cpu", "space": SPACE, "budget": 3, "storage": url}
    return bstune.search(bstune.load(model), **(arguments | changes))


def asked(result: bstune.SearchResult, n: int) -> list[tuple[Any, ...]]:
    """What the first trials were asked to do."""
    return [
        (record.global_batch_size, record.learning_rate, record.seed, record.end_samples)
        for record in result.records[:n]
    ]


def ray_processes() -> list[psutil.Process]:
    """The processes of this test's Ray."""
    return [child for child in psutil.Process().children(recursive=True) if "ray" in " ".join(child.cmdline()[:2])]


def trial_actors() -> list[psutil.Process]:
    """The Ray workers with a template process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.name().startswith("ray::") and child.children()
    ]


class Once:
    """Does something at the first progress that it is asked for."""

    def __init__(self, act: Callable[[], None], when: Callable[[Progress], bool]) -> None:
        """Act once."""
        self._act: Callable[[], None] | None = act
        self._when = when

    def __call__(self, progress: Progress) -> None:
        """Hear one progress."""
        if self._act is not None and self._when(progress):
            act, self._act = self._act, None
            act()


def reported(n: int) -> Callable[[Progress], bool]:
    """Tell the first report of a trial with this number or a higher one."""
    return lambda progress: progress.kind == "report" and progress.trial is not None and progress.trial.number >= n


# --- the same search ----------------------------------------------------------------------------------------------


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


def gone(processes: Callable[[], Sequence[object]], within_s: float = 30.0) -> bool:
    """Tell whether the processes are gone within a time."""
    deadline_s = time.monotonic() + within_s
    while processes() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return not processes()


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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test alone, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def users_of(folder: Path) -> list[int]:
    """Return the processes of a Ray started in a folder: those that name it or have one of its files open."""
    users = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            names = [*process.cmdline(), *(os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())]
            if process.pid != os.getpid() and any(f"{folder}/" in name for name in names):
                users.append(process.pid)
    return users


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


# --- a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a cluster on this machine: an empty head and nodes of one trial each; nothing is reachable from outside."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name, value in request.param().items():
        monkeypatch.setenv(name, value)
    from ray._private.authentication import authentication_token_setup
    from ray.cluster_utils import Cluster

    authentication_token_setup._enable_token_auth()  # Ray may have been imported before, and then does not look again.
    cluster = Cluster(initialize_head=True, head_node_args=node_arguments(0))
    try:
        yield cluster
    finally:
        cluster.shutdown()


def watchful() -> dict[str, str]:
    """Have Ray kill when a quarter of what is free now is used as well: far from what other programs need."""
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available / 4) / memory.total
    return {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}


def node_arguments(n_cpus: int) -> dict[str, Any]:
    """A small node."""
    return {"num_cpus": n_cpus, "object_store_memory": 100 << 20, "include_dashboard": False}


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
    assert "figures for:   large (" in text
    assert "elsewhere:     small: micro-batch 8 x" in text
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


@pytest.mark.parametrize(
    ("nodes", "device", "jobs", "slots"),
    [
        ([{"CPU": 8}], "auto", 1, Slots(1, 8, 0)),
        ([{"CPU": 8}], "cpu", 3, Slots(3, 2, 0)),
        ([{"CPU": 0}, {"CPU": 1}, {"CPU": 1}], "auto", 2, Slots(2, 1, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 4}], "auto", 1, Slots(4, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], "cuda", 2, Slots(2, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], "cpu", 2, Slots(2, 8, 0)),
    ],
)
def test_trials_are_laid_out_over_nodes(nodes: list[dict[str, float]], device: str, jobs: int, slots: Slots) -> None:
    """A GPU takes one trial; without one the cores are shared, as many each as let all trials run at once."""
    assert lay_out(nodes, device, jobs) == slots


@pytest.mark.parametrize(
    ("device", "jobs", "said"),
    [("cuda", 1, "has no GPU"), ("auto", 9, "has 8 CPUs"), ("auto", 9, "Use jobs=8 or fewer")],
)
def test_more_than_the_cluster_has_is_refused(device: str, jobs: int, said: str) -> None:
    """The message names both numbers."""
    with pytest.raises(bstune.DeviceError, match=said):
        lay_out([{"CPU": 8}], device, jobs)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("device", "node", "cards", "kind"),
    [
        ("cpu", {"CPU": 4.0}, [], "a CPU, 16 GiB"),
        ("cpu", {"CPU": 16.0}, [], "a CPU, 4 GiB"),  # Four trials share it.
        (
            "cuda",
            {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H200": 1.0},
            [("NVIDIA H200", 140 * GIB)],
            "NVIDIA H200, 140 GiB",
        ),
        ("cuda", {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H200": 1.0}, [], "H200"),
        ("cuda", {"CPU": 16.0, "GPU": 4.0}, [], "GPU"),
    ],
)
def test_a_kind_of_device_is_what_a_trial_gets_on_a_node(
    monkeypatch: pytest.MonkeyPatch, device: str, node: dict[str, float], cards: list[tuple[str, int]], kind: str
) -> None:
    """Name and memory; a label comes first. Trials share the memory of a node without GPUs, and none shares a card."""
    here: dict[str, Any] = {"Resources": node, "Labels": {"ray.io/node-id": "1"}}
    monkeypatch.setattr(ray_actor, "this_node", lambda: here)
    monkeypatch.setattr(
        ray_actor, "nvml_devices", lambda: [{"name": name, "total_bytes": total} for name, total in cards]
    )
    monkeypatch.setattr("bstune.tuner.device.memory.cpu_memory", lambda: Memory(16 * GIB, 8 * GIB, "ram"))
    monkeypatch.setattr("bstune.tuner.device.cuda.cpu_memory", lambda: Memory(16 * GIB, 8 * GIB, "ram"))
    monkeypatch.setattr("bstune.tuner.device.memory._cpu_name", lambda: "a CPU")
    task = Task(Pickled(b""), device, 4, None, None)

    assert task.kind() == kind
    assert task.sharing(here) == (4 if kind == "a CPU, 4 GiB" else 1)
    here["Labels"][KIND_LABEL] = "shared"
    assert task.kind() == "shared"


def test_a_run_survives_the_way_through_tune() -> None:
    """With its splits and all else."""
    spec = TrialSpec(3, "search", 64, 64, 1, 0.1, 0, 640, (320, 640), {"depth": 2}, splits={"small": Split(8, 8, None)})

    assert decode_spec(encode_spec(spec)) == spec


def test_source_travels_and_data_stays(tmp_path: Path) -> None:
    """What is sent to a cluster is code and small settings, not data, caches, environments or hidden files."""
    home = tmp_path / "home"
    for name in (
        "model.py",
        "lib/layers.py",
        "conf.yaml",
        "data/train.json",
        ".git/config.py",
        "venv/pyvenv.cfg",
        "venv/lib.py",
        "w.pt",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (home / "big.json").write_bytes(b"0" * (2 << 20))

    pack(home, tmp_path / "packed")

    packed = tmp_path / "packed"
    assert sorted(str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()) == [
        "conf.yaml",
        "lib/layers.py",
        "model.py",
    ]


def test_an_error_survives_the_way_through_ray() -> None:
    """With its type, its words and its numbers."""
    error = Carried.of(bstune.NothingFitsError("no", needed_bytes=3, budget_bytes=2)).error()
    assert isinstance(error, bstune.NothingFitsError)
    assert (str(error), error.needed_bytes, error.budget_bytes) == ("no", 3, 2)
