"""What a trial trains on Ray is what it trains here: commands on this machine, with dimensions of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import bstune
import pytest

pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'bstune[ray]'")
SCRIPT = """
import sys
lr, decay, epochs = map(float, sys.argv[2:])
print("decay", decay)
for epoch in range(1, int(epochs) + 1):
    print(f"epoch {epoch} val_loss={1 / epoch + abs(lr - 0.1) + abs(decay - 0.01):.4f}", flush=True)
"""


def command(folder: Path) -> bstune.Command:
    """Return a script with a place for its weight decay."""
    (folder / "train.py").write_text(SCRIPT)
    words = ["{micro_batch_size}", "{learning_rate}", "{weight_decay}", "{max_epochs}"]
    return bstune.Command([sys.executable, "train.py", *words], samples_per_epoch=64, epochs=2)


def test_a_command_runs_on_ray_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of the search, with its weight decay filled in; what it printed is kept."""
    monkeypatch.chdir(tmp_path)
    space = {"batch_size": 32, "learning_rate": 0.1, "weight_decay": [0.01, 0.1]}

    result = bstune.search(command(tmp_path), engine="ray", device="cpu", space=space, budget=4, n_trials=3)

    assert {record.state for record in result.records} == {"complete"}
    assert result.recommendation.params == {"weight_decay": 0.01}
    assert result.recommendation.verified
    for record in result.records:
        log = tmp_path / f"bstune.db.logs-train/trial-{record.number}.log"
        assert log.read_text().startswith(f"decay {record.params['weight_decay']}\n")


def test_a_command_is_not_sent_to_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program and its files are here; that is said before anything is joined."""
    monkeypatch.chdir(tmp_path)
    space = {"batch_size": 32, "learning_rate": 0.1, "weight_decay": [0.01, 0.1]}
    with pytest.raises(bstune.ArgumentError, match="a command runs on this machine only"):
        bstune.search(command(tmp_path), engine="ray", ray_address="127.0.0.1:1", space=space)
