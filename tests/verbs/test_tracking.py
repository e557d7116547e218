"""The callbacks of docs/tracking.md, taken from the page and run with the real packages where those are installed."""

from __future__ import annotations

import inspect
import re
import struct
from pathlib import Path
from typing import Any

import bstune
import pytest


def example(root: Path, name: str) -> Any:
    """The function of this name, as the page shows it."""
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "tracking.md").read_text(), re.DOTALL)
    [block] = [block for block in blocks if f"def {name}(" in block]
    made: dict[str, Any] = {}
    exec(block, made)
    return made[name]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: by name, the values with their steps."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("events.*"):
        data = path.read_bytes()
        while data:
            size = struct.unpack("<Q", data[:8])[0]
            event = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(path.parent.name, []).append((event.step, value.simple_value))
            data = data[16 + size :]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tensorboard_shows_the_curve_of_each_trial(root: Path, tmp_path: Path) -> None:
    """Every report of every trial, under its number and setting, at its samples."""

    @bstune.objective(n_samples=2000, epochs=2, step_time_s=lambda batch: 0.001 + 0.0001 * batch)
    def train(trial: bstune.Trial) -> None:
        samples = 0
        while samples < trial.max_samples:
            samples += trial.global_batch_size
            trial.report(val_loss=1 / (1 + trial.learning_rate * samples), samples=samples)

    tell = example(root, "to_tensorboard")(str(tmp_path / "runs"))
    result = bstune.search(
        train,
        isolation="none",
        budget=1,
        n_trials=3,
        storage="sqlite:///:memory:",
        callbacks=[tell],
    )
    inspect.getclosurevars(tell).nonlocals["writer"].close()  # As the end of the program does.

    shown = scalars(tmp_path / "runs")
    assert len(shown) == len(result.records) == 3
    for record in result.records:
        [name] = [name for name in shown if name.startswith(f"trial {record.number}:")]
        assert [step for step, _ in shown[name]] == [samples for samples, _ in record.values]
        assert [loss for _, loss in shown[name]] == pytest.approx([loss for _, loss in record.values])
