"""The checks of `make gpu`, tried without a card.

Each runs, each can fail, and golden traces replay where there are any.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import gpu_cards
import pytest
import torch
from bstune.tuner.memory.dispatch_recorder import recording
from gpu_cards import DryCard, Golden
from gpu_checks import CHECKS

CARD = DryCard()
"""One for all, so that each tiny model is traced once."""
GOLDEN = sorted((Path(gpu.__file__).parent / "results").glob("golden-*.json.gz"))

WITHOUT = """
import runpy, sys
for name in ("optuna", "pandas", "ray", "sqlalchemy", "click", "rich", "cloudpickle", "psutil"):
    sys.modules[name] = None
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [folder for folder in sys.path if folder not in ("", ".")]
sys.path.insert(0, sys.argv[1])
sys.argv = ["gpu.py", "--dry", "--only", "context", "--only", "errors", "--only", "search"]
runpy.run_path(sys.path[0] + "/gpu.py", run_name="__main__")
"""


@pytest.fixture(autouse=True)
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every dry run use the same stand-in."""
    monkeypatch.setattr(gpu, "DryCard", lambda: CARD)


def test_every_check_runs_dry_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is left out, each states its claim and its figures, and the file says what they were taken on."""
    assert gpu.main(["--dry", "--output", str(tmp_path)]) == 0

    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    assert {"card", "driver", "torch", "commit", "command", "date"} <= set(document)
    assert document["card"] == "dry"
    assert document["golden"] == []
    assert [record["name"] for record in document["records"]] == list(CHECKS)
    for record in document["records"]:
        assert (record["status"], record["why"]) == ("passed", "")
        assert record["claim"]
        assert record["measured"]
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS) + 1


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_is_broken_fails(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that cannot fail would prove nothing on a card."""
    assert gpu.main(["--dry", "--only", name, "--break", name]) == 1
    assert capsys.readouterr().out.startswith("failed")


def test_a_check_that_crashes_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, in its record."""

    def crash(*_: Any) -> None:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setitem(CHECKS, "fake", crash)

    assert gpu.main(["--dry", "--only", "fake", "--only", "timing"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("failed")
    assert "unknown error" in first
    assert second.startswith("passed")


def test_when_the_time_is_over_the_rest_is_not_run() -> None:
    """Which is said, and is no failure."""
    record = gpu.run_check("timing", CARD, broken=False, deadline_s=time.monotonic() - 1)

    assert (record.status, record.why) == ("not run", "the time was over")


def test_without_a_card_there_is_nothing_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no figure is claimed."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert gpu.main([]) == 2
    assert "No CUDA device" in capsys.readouterr().err


def test_the_checks_need_neither_an_installed_bstune_nor_its_other_packages() -> None:
    """A machine with a card may have torch and numpy, and no internet."""
    folder = Path(gpu.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(folder)], cwd="/", capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["passed"] * 3


def test_a_golden_trace_is_held_against_what_the_card_counted(tmp_path: Path) -> None:
    """On events written by hand: what the card would have counted is plain arithmetic here."""
    mib = 1 << 20
    rows = [("alloc", 1, 30 * mib), ("free_completed", 1, 30 * mib), ("alloc", 2, 40 * mib), ("alloc", 3, 100)]
    entries = [{"action": action, "addr": addr, "size": size, "stream": 0} for action, addr, size in rows]
    snapshot = {"device_traces": [entries], "segments": []}
    golden = Golden("none", "2.13", "by hand", 1, 60 * mib, snapshot, 40 * mib + 512, 42 * mib, 1)
    golden.save(tmp_path / "golden.json.gz")

    assert Golden.load(tmp_path / "golden.json.gz").differences() == []
    counted_otherwise = Golden("none", "2.13", "by hand", 1, None, snapshot, 40 * mib + 512, 42 * mib, 1)
    assert counted_otherwise.differences() == [
        f"reserved_bytes: simulator {72 * mib}, card {42 * mib}",
        "retries: simulator 0, card 1",
    ]


NONE_YET = pytest.param(
    None, id="none", marks=pytest.mark.skip(reason="no golden trace has been recorded on a CUDA device yet")
)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in GOLDEN] or [NONE_YET])
def test_the_simulator_replays_what_a_card_did(path: Path) -> None:
    """Peak allocated and reserved to the byte, and as many retries; skipped as long as no card has been at hand."""
    assert Golden.load(path).differences() == []


class FakeEvent:
    """An event of torch.cuda, by the host's clock."""

    def __init__(self, *, enable_timing: bool) -> None:
        """Begin unrecorded."""
        assert enable_timing
        self.at_s = 0.0

    def record(self) -> None:
        """Keep the time."""
        self.at_s = time.perf_counter()

    def elapsed_time(self, end: FakeEvent) -> float:
        """Return milliseconds, as torch does."""
        return 1000 * (end.at_s - self.at_s)


def test_the_code_for_a_card_runs_on_a_stand_in_for_torch_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A slip in code for cards only is found here: real steps on CPU, with the functions of torch.cuda replaced."""
    fractions: list[float] = []
    replaced: dict[str, Any] = {
        "init": lambda: None,
        "get_device_name": lambda device: "NVIDIA Fake",
        "mem_get_info": lambda device: (15 << 30, 16 << 30),
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "set_per_process_memory_fraction": lambda fraction, device: fractions.append(fraction),
        "memory_stats": lambda device: {"num_alloc_retries": 2},
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: 42 << 20,
        "max_memory_reserved": lambda device: 64 << 20,
        "Event": FakeEvent,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(f"torch.cuda.{name}", function)
    monkeypatch.setattr(gpu_cards, "DEVICE", "cpu")

    @contextlib.contextmanager
    def fake_history(n: int, device: str) -> Iterator[types.SimpleNamespace]:
        with recording(n, "cpu") as recorder:
            yield (seen := types.SimpleNamespace(trace=recorder.trace, snapshot=None))
        seen.snapshot = {
            "device_traces": [[{"action": "alloc", "addr": 1, "size": 42 << 20, "stream": 0}]],
            "segments": [],
        }

    monkeypatch.setattr(gpu_cards, "history", fake_history)
    card = gpu_cards.CudaCard()
    assert [case.limit_bytes >> 30 for case in card.cases] == [8, 8]
    card.kinds = CARD.kinds

    seen = card.run(card.kinds[0], 4, limit_bytes=8 << 30, traced=True)

    assert (seen.outcome, seen.allocated_bytes, seen.reserved_bytes, seen.retries) == ("ok", 42 << 20, 64 << 20, 0)
    assert fractions == [0.5]
    assert card.fake_backward() == 4
    assert seen.trace is not None
    assert seen.trace.peak_bytes > 0
    event_s, wall_s = card.time_block(card.kinds[0], 4)
    assert fractions[-1] == 1.0
    assert 0 < event_s <= wall_s
    names = gpu_cards.record_golden(card, tmp_path, "fake")
    assert len(names) == 2 * len(card.kinds)
    assert Golden.load(tmp_path / names[0]).differences() == [f"reserved_bytes: simulator {42 << 20}, card {64 << 20}"]

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(gpu_cards, "step", fail)
    assert card.run(card.kinds[0], 4, traced=True).outcome == "oom"
