"""Memory of the machine: the limits of containers, what is left, and what moved in between."""

from __future__ import annotations

import math
import types
from pathlib import Path

import pytest
from bstune.tuner.device import memory
from bstune.tuner.device.memory import Memory

MIB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def limits(tmp_path: Path, proc: str, files: dict[str, str]) -> list[tuple[int, int]]:
    """Return the limits of a made-up machine."""
    (tmp_path / "cgroup").write_text(proc)
    return memory.cgroup_limits(tmp_path / "cgroup", tree(tmp_path / "fs", files))


def test_every_ancestor_of_a_version_2_group_may_limit_it(tmp_path: Path) -> None:
    """The tightest limit counts, which need not be the process's own; a level without a limit says `max`."""
    found = limits(
        tmp_path,
        "0::/user/job/step\n",
        {
            "user/memory.max": "4000",
            "user/memory.current": "3500",
            "user/memory.stat": "anon 9\ninactive_file 500\n",
            "user/job/memory.max": "max",
            "user/job/memory.current": "3000",
            "user/job/step/memory.max": "8000",
            "user/job/step/memory.current": "1000",
        },
    )

    assert found == [(8000, 1000), (4000, 3000)]


def test_a_high_water_mark_counts_as_a_limit(tmp_path: Path) -> None:
    """Above `memory.high` the kernel throttles a group until it hardly moves."""
    files = {"a/memory.max": "9000", "a/memory.high": "6000", "a/memory.current": "100"}

    assert limits(tmp_path, "0::/a\n", files) == [(6000, 100)]


def test_version_1_says_no_limit_with_a_large_number(tmp_path: Path) -> None:
    """And other controllers of version 1 have nothing to say."""
    none = {"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "5"}
    proc = "12:cpu,cpuacct:/a\n5:memory:/a\n"

    assert limits(tmp_path, proc, none) == []
    some = {
        "memory/a/memory.limit_in_bytes": "7000",
        "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2\n",
    }
    assert limits(tmp_path, proc, some) == [(7000, 3)]


def test_inside_a_container_the_path_may_be_the_hosts(tmp_path: Path) -> None:
    """It does not exist in the container, whose root then has the limit."""
    assert limits(tmp_path, "0::/docker/4f6c\n", {"memory.max": "5000", "memory.current": "700"}) == [(5000, 700)]


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    """As on macOS."""
    assert memory.cgroup_limits(tmp_path / "absent", tmp_path) == []


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000"}, 3.0),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "20000", "cpu/a/cpu.cfs_period_us": "10000"}, 2.0),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "10000"}, math.inf),
        ("0::/a\n", {"a/cpu.max": "garbage"}, math.inf),
    ],
    ids=["an ancestor", "a container", "version 1", "version 1 without", "garbage"],
)
def test_a_limit_of_processor_time_is_found(tmp_path: Path, groups: str, files: dict[str, str], cores: float) -> None:
    """As a number of cores; without a limit it is infinite."""
    (tmp_path / "cgroup").write_text(groups)

    assert memory.core_quota(tmp_path / "cgroup", tree(tmp_path / "fs", files)) == cores


def test_memory_is_the_least_that_anyone_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Total and available may be bounded by different groups."""
    ram = types.SimpleNamespace(total=100, available=60)
    monkeypatch.setattr("psutil.virtual_memory", lambda: ram)

    monkeypatch.setattr(memory, "cgroup_limits", lambda: [(80, 70), (90, 40)])
    assert memory.cpu_memory() == Memory(80, 10, "cgroup")
    monkeypatch.setattr(memory, "cgroup_limits", list)
    assert memory.cpu_memory() == Memory(100, 60, "ram")


@pytest.mark.parametrize(
    ("after_mib", "says"), [(10_000, None), (9_901, None), (10_099, None), (8_976, "-1.00 GiB"), (11_024, "+1.00 GiB")]
)
def test_free_memory_that_moves_is_reported(after_mib: int, says: str | None) -> None:
    """From 1 % on, in either direction, with the figures."""
    text = memory.memory_moved(
        Memory(20_000 * MIB, 10_000 * MIB, "nvml"), Memory(20_000 * MIB, after_mib * MIB, "nvml")
    )

    assert (text is None) == (says is None)
    assert says is None or (text is not None and says in text)
