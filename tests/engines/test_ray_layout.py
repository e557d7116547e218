"""How trials are laid out over the nodes of a Ray cluster, and what travels there; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tests.objectives.small import supervised
from bstune.tuner.core.trials import Split, TrialSpec
from bstune.tuner.device.memory import Memory
from bstune.tuner.engines import ray_survey
from bstune.tuner.engines.ray_layout import Slots, lay_out, ranks_with_gpus
from bstune.tuner.engines.ray_source import pack
from bstune.tuner.engines.ray_survey import KIND_LABEL, ActorTask, Carried
from bstune.tuner.workers.messages import Pickled


@pytest.mark.parametrize(
    ("nodes", "device", "jobs", "ranks", "slots"),
    [
        ([{"CPU": 8}], "auto", 1, 1, Slots(1, 8, 0)),
        ([{"CPU": 8}], "cpu", 3, 1, Slots(3, 2, 0)),
        ([{"CPU": 0}, {"CPU": 1}, {"CPU": 1}], "auto", 2, 1, Slots(2, 1, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 4}], "auto", 1, 1, Slots(4, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], "cuda", 2, 1, Slots(2, 4, 1)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 4, "GPU": 1}], "cuda", 1, 2, Slots(2, 8, 2)),
        ([{"CPU": 16, "GPU": 4}], "cpu", 2, 1, Slots(2, 8, 0)),
    ],
)
def test_trials_are_laid_out_over_nodes(
    nodes: list[dict[str, float]], device: str, jobs: int, ranks: int, slots: Slots
) -> None:
    """A GPU takes one trial, and each of its processes one; without GPUs the cores are shared among all trials."""
    assert lay_out(nodes, device, jobs, ranks) == slots


@pytest.mark.parametrize(
    ("device", "jobs", "said"),
    [("cuda", 1, "has no GPU"), ("auto", 9, "has 8 CPUs"), ("auto", 9, "Use jobs=8 or fewer")],
)
def test_more_than_the_cluster_has_is_refused(device: str, jobs: int, said: str) -> None:
    """The message names both numbers."""
    with pytest.raises(bstune.DeviceError, match=said):
        lay_out([{"CPU": 8}], device, jobs)


def test_processes_that_no_node_has_gpus_for_are_refused() -> None:
    """Two nodes with one each are not one with two."""
    nodes = [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}]
    with pytest.raises(bstune.DeviceError, match=r"has 2 processes with a GPU each, and no node .* --num-gpus 2"):
        lay_out(nodes, "auto", 1, 2)


def test_only_a_command_has_a_gpu_for_each_of_its_processes() -> None:
    """Those of a Supervised train on CPU, so a cluster is not asked for more GPUs than one."""
    words = "torchrun --nproc-per-node 2 train.py --batch-size {micro_batch_size}"
    command = bstune.Command(words, samples_per_epoch=64, world_size=2)

    assert ranks_with_gpus(command) == 2
    assert ranks_with_gpus(supervised(world_size=2)) == 1


@pytest.mark.parametrize(
    ("nodes", "jobs", "ranks", "said"),
    [
        ([{"CPU": 1, "GPU": 2}, {"CPU": 8}], 1, 2, r"needs 2 CPUs beside as many GPUs, .* --num-cpus 2 --num-gpus 2"),
        ([{"GPU": 2}, {"CPU": 8}], 2, 1, r"needs 1 CPU beside as many GPUs, .* --num-cpus 1 --num-gpus 1"),
    ],
)
def test_gpus_without_cpus_are_refused(nodes: list[dict[str, float]], jobs: int, ranks: int, said: str) -> None:
    """A trial needs a CPU for each of its processes, on the same node."""
    with pytest.raises(bstune.DeviceError, match=said):
        lay_out(nodes, "auto", jobs, ranks)


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
    monkeypatch.setattr(ray_survey, "this_node", lambda: here)
    monkeypatch.setattr(
        ray_survey, "nvml_devices", lambda: [{"name": name, "total_bytes": total} for name, total in cards]
    )
    monkeypatch.setattr("bstune.tuner.device.memory.cpu_memory", lambda: Memory(16 * GIB, 8 * GIB, "ram"))
    monkeypatch.setattr("bstune.tuner.device.cuda.cpu_memory", lambda: Memory(16 * GIB, 8 * GIB, "ram"))
    monkeypatch.setattr("bstune.tuner.device.memory._cpu_name", lambda: "a CPU")
    task = ActorTask(Pickled(b""), device, 4, None, None)

    assert task.kind() == kind
    assert task.sharing(here) == (4 if kind == "a CPU, 4 GiB" else 1)
    here["Labels"][KIND_LABEL] = "shared"
    assert task.kind() == "shared"


@pytest.mark.usefixtures("needs_ray")
def test_a_run_survives_the_way_through_tune() -> None:
    """With its splits and all else."""
    from bstune.tuner.engines.ray_actor import decode_spec, encode_spec

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
