"""What NVML says of cards and their processes, on a stand-in for its module."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from bstune.tuner.device import nvml
from bstune.tuner.device.nvml import CudaProcess
from bstune.tuner.testing.fake_device import GIB
from bstune.tuner.testing.fake_nvml import FakeCard, fake_nvml


def use_nvml(monkeypatch: pytest.MonkeyPatch, *cards: FakeCard, **options: Any) -> None:
    """Put a stand-in in the place of pynvml."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(cards, **options))


@pytest.mark.parametrize("why", ["no module", "no driver", "a module that fails"])
def test_without_nvml_nothing_is_known_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Three ways not to have it."""
    if why == "no module":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif why == "no driver":
        use_nvml(monkeypatch, driver=None)
    else:
        monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    monkeypatch.setattr(nvml, "DRIVER_NODES", ())

    assert nvml.nvml_devices() == []
    assert nvml.nvml_memory("GPU-a") is None
    assert nvml.cuda_processes("GPU-a") == ()
    assert not nvml.card_in_sight()


def test_a_whole_card_is_not_taken_for_the_slice_that_cuda_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA gives the card's own UUID for a slice, the totals differ, and NVML is not believed."""
    use_nvml(monkeypatch, FakeCard("GPU-a", total_bytes=80 * GIB, free_bytes=70 * GIB))

    assert nvml.nvml_memory("a", total_bytes=10 * GIB) is None
    known = nvml.nvml_memory("a", total_bytes=79 * GIB)
    assert known is not None
    assert known.available_bytes == 70 * GIB


def test_processes_are_listed_where_they_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver need not tell how much each of them holds."""
    use_nvml(monkeypatch, FakeCard("GPU-a", processes=((7, 2 * GIB), (8, None))))

    assert nvml.cuda_processes("a") == (CudaProcess(7, 2 * GIB), CudaProcess(8, None))
    assert nvml.cuda_processes("GPU-unknown") == ()


@pytest.mark.parametrize(("hidden", "seen"), [(None, True), ("0", True), ("", False), ("-1", False)])
def test_cards_that_the_user_has_hidden_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, hidden: str | None, seen: bool
) -> None:
    """`CUDA_VISIBLE_DEVICES=` means: use the CPU, and say nothing of the card."""
    use_nvml(monkeypatch, FakeCard("GPU-a"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    assert nvml.card_in_sight() is seen


def test_a_card_without_nvml_is_in_sight_by_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On boards where NVML is missing."""
    use_nvml(monkeypatch, driver=None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvmap").touch()
    monkeypatch.setattr(nvml, "DRIVER_NODES", (str(tmp_path / "nvmap"),))

    assert nvml.card_in_sight()
