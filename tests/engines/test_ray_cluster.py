"""A search that joins a cluster of Ray: nodes that are lost or run out of memory, and nodes of several kinds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bstune
import psutil
import pytest
from bstune.tests.engines.ray_searches import Once, gone, node_arguments, search, watchful
from bstune.tuner.core.progress import Progress
from bstune.tuner.engines.ray_survey import KIND_LABEL
from bstune.tuner.report.text import search_text

# On a busy machine each start of Ray takes a minute.
pytestmark = [pytest.mark.usefixtures("needs_ray"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """Make a cluster on this machine: an empty head to which tests add nodes; nothing is reachable from outside."""
    from bstune.tuner.engines.ray_start import alone, token

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Five calls that find nobody tell that a node is gone; by default there are 3 s between them.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_AUTH_TOKEN", token())
        patch.setenv("RAY_AUTH_MODE", "token")
        from ray._private.authentication import authentication_token_setup
        from ray.cluster_utils import Cluster

        authentication_token_setup._enable_token_auth()  # Ray may have been imported before, and then looks no more.
        with alone():
            cluster = Cluster(initialize_head=True, head_node_args=node_arguments(0))
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(head: Any) -> Iterator[Any]:
    """The cluster, from which a test's own nodes are taken again."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)


@pytest.fixture
def _alone_in_taking_memory() -> Iterator[None]:
    """No other run of these tests on this machine takes memory without end meanwhile.

    Together they would leave too little for all else, and each would be taken for the other.
    """
    with open(sys.executable, "rb") as known_to_all:
        fcntl.flock(known_to_all, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("_alone_in_taking_memory")
def test_a_memory_kill_and_a_lost_node_cost_a_trial_each(model: Path, url: str, cluster: Any, tmp_path: Path) -> None:
    """The user's code travels to two nodes, and the search goes on whatever becomes of them.

    On the first a trial takes too much, and Ray's own monitor kills its actor: in Ray 2.60 that would end all of Tune.
    The second is lost in the middle of a trial.
    """
    (marks := tmp_path / "marks").mkdir()
    hoarded = tmp_path / "hoarded"
    places = [{"NODE": "0", "HOARD": str(hoarded), **watchful()}, {"NODE": "1"}]
    nodes = [cluster.add_node(**node_arguments(1), env_vars={"MEET": str(marks), **place}) for place in places]
    cluster.wait_for_nodes()

    def on_the_second(progress: Progress) -> bool:
        trial = progress.trial if progress.kind == "report" else None
        return trial is not None and (marks / f"{trial.number} 1").exists()

    def lose_the_second() -> None:
        import ray

        cluster.remove_node(nodes[1], allow_graceful=False)
        assert gone(lambda: [node for node in ray.nodes() if node["NodeID"] == nodes[1].node_id and node["Alive"]], 120)

    def let_memory_go(progress: Progress) -> None:
        trial = progress.trial if progress.kind == "finish" else None
        if trial is not None and "host memory" in trial.reason:
            assert gone(lambda: alive(int(hoarded.read_text())), 120)

    # Without a pruner a trial has no other reason to end than these. Before another begins, Ray knows that the node is
    # gone, and memory is free again: else it would send that one to the node, or kill it, too.
    callbacks = [Once(lose_the_second, on_the_second), let_memory_go]
    result = search(model, url, jobs=2, ray_address=cluster.address, pruner="none", budget=6, callbacks=callbacks)

    causes = [(record.cause, record.reason) for record in result.records if record.state == "failed"]
    memory = "killed: Ray ended its process, because its node was running out of host memory"
    lost = {
        "killed: its process was ended by SIGKILL",
        "killed: the node that it ran on was lost, or cannot be reached",
    }
    assert {cause for cause, _ in causes} == {"killed"}
    one, other = sorted((reason for _, reason in causes), key=lambda reason: reason != memory)
    assert one == memory
    assert other in lost
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified


def alive(pid: int) -> list[psutil.Process]:
    """The process of this ID, if it still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process] if process.status() != psutil.STATUS_ZOMBIE else []
    return []


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
            if trial.number >= 0 and fits == 8 and late.exists():  # The probe is too short for it.
                late.unlink()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""


def test_each_kind_of_device_trains_with_its_own_split(model: Path, url: str, cluster: Any, tmp_path: Path) -> None:
    """Each kind is probed once, trials are split for the one they run on, late out-of-memory affects one kind."""
    model.write_text(SIZED)
    seen, late, meeting = tmp_path / "seen", tmp_path / "late", tmp_path / "meeting"
    seen.mkdir()
    late.touch()
    meeting.mkdir()
    (meeting / "8").write_text("* 64 * *")  # A trial on the small kind waits until the large one has had one.
    (meeting / "64").write_text("* 8 4 *")  # And the other way round, until the small kind has lost one, and has more.
    for kind, fits in (("small", 8), ("large", 64)):
        environment = {"FITS": str(fits), "SEEN": str(seen), "LATE": str(late), "MEET": str(meeting)}
        cluster.add_node(**node_arguments(1), labels={KIND_LABEL: kind}, env_vars=environment)
    cluster.wait_for_nodes()
    told: list[Progress] = []
    # At random, so that it fills its places until the budget ends; with more cells than that.
    space = {"batch_size": [16, 32], "learning_rate": [0.01 * 2**k for k in range(-5, 6)]}
    options = {"jobs": 2, "ray_address": cluster.address, "sampler": "random", "space": space}

    result = search(model, url, **options, budget=8, callbacks=[told.append])

    probed = [each.message for each in told if each.kind == "probe" and each.attempt is None]
    assert sorted(probed) == ["large", "small"]
    assert [(kind, probe.micro_batch_size) for kind, probe in result.probes.items()] == [
        ("large", 32),
        ("small", 8),
    ]  # The faster first, and none larger than a batch of the space.
    assert result.probe == result.probes["large"]

    assert used(result) == trained(seen)
    assert {record.global_batch_size for record in result.records} == {16, 32}
    assert {record.accumulation_steps for record in result.records if record.device == "large"} == {1}
    (lost,) = [record for record in result.records if record.state == "failed"]
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
        record.micro_batch_size for record in result.records if record.number in begun and record.device == "small"
    } == {4}

    assert set(result.trials.device) == {"large", "small"}
    assert list(result.trials.columns)[-1] == "device"
    best = result.recommendation
    assert best.verified
    assert best.micro_batch_size == best.global_batch_size  # Of the kind that is named, which takes it whole.
    assert [(each.device, each.micro_batch_size) for each in best.by_device] == [
        ("large", best.global_batch_size),
        ("small", 4),
    ]
    assert best.by_device[0].samples_per_s == best.samples_per_s
    assert (best.by_device[1].samples_per_s or 0) < (best.by_device[0].samples_per_s or 0)
    text = search_text(result)
    assert "  split    large: micro-batch " in text
    assert "  split    small: micro-batch 4 x" in text
    assert bstune.SearchResult.from_dict(json.loads(result.to_json())) == result


def used(result: bstune.SearchResult) -> set[tuple[int, str | None, int, int]]:
    """What the records say of where each trial ran, and how its batch was split there."""
    return {
        (record.number, record.device, record.micro_batch_size, record.accumulation_steps) for record in result.records
    }


def trained(seen: Path) -> set[tuple[int, str | None, int, int]]:
    """The same as the training loop itself saw it."""
    rows = [tuple(map(int, path.name.split())) for path in seen.iterdir()]
    return {(number, {8: "small", 64: "large"}[fits], micro, steps) for number, fits, micro, steps in rows}
