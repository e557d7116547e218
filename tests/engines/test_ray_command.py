"""A command on Ray: it trains here, with dimensions of its own, and a killed search of it goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import bstune
import pytest
from bstune.tests.engines.ray_searches import executed, gone, lay_traps, users_of
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage

# On a busy machine each start of Ray takes a minute.
pytestmark = [pytest.mark.usefixtures("needs_ray"), pytest.mark.timeout(900)]
SCRIPT = """
import sys
lr, decay, epochs = map(float, sys.argv[2:])
print("decay", decay)
for epoch in range(1, int(epochs) + 1):
    print(f"epoch {epoch} val_loss={1 / epoch + abs(lr - 0.1) + abs(decay - 0.01):.4f}", flush=True)
"""
SPACE = {"batch_size": 32, "learning_rate": 0.1, "weight_decay": [0.01, 0.1]}
WORDS = [sys.executable, "train.py", "{micro_batch_size}", "{learning_rate}", "{weight_decay}", "{max_epochs}"]
VICTIM = f"""
import os, signal
import bstune

def hear(progress):
    if progress.kind == "report" and progress.trial.number >= 1:
        os.kill(os.getpid(), signal.SIGKILL)

command = bstune.Command({WORDS}, samples_per_epoch=64, epochs=2)
bstune.search(command, engine="ray", device="cpu", space={SPACE}, budget=4, n_trials=4, callbacks=[hear])
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a script that has a place for its weight decay, and with traps."""
    folder = lay_traps(tmp_path / "here")
    (folder / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    return folder


def test_a_killed_driver_goes_on_where_it_was(here: Path, short: Path, tmp_path: Path) -> None:
    """SIGKILL of the search itself: no process of it is left, no finished trial is run again, and the answer comes.

    Ray's processes ran nothing of the current folder. The command ran there, with its weight decay filled in, and what
    it printed is kept.
    """
    script = tmp_path / "script.py"
    script.write_text(VICTIM)
    killed = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(short.glob("bstune-ray-*"))
    with read_storage("sqlite:///bstune.db") as storage:
        study = find_study(storage, "train")
        assert study is not None
        ended = [record for record in study.records if record.state != "running"]
    assert ended

    command = bstune.Command(WORDS, samples_per_epoch=64, epochs=2)
    result = bstune.search(command, engine="ray", device="cpu", space=SPACE, budget=4, n_trials=4)

    assert result.records[: len(ended)] == tuple(ended)
    assert [record.cause for record in result.records if record.state == "failed"] == ["orphan"]
    complete = [record for record in result.records if record.state != "failed"]
    assert {record.state for record in complete} == {"complete"}
    assert result.recommendation.params == {"weight_decay": 0.01}
    assert result.recommendation.verified
    for record in complete:
        log = here / f"bstune.db.logs-train/trial-{record.number}.log"
        assert log.read_text().startswith(f"decay {record.params['weight_decay']}\n")
    assert executed(here) == []
    assert gone(
        lambda: users_of(short)
    )  # Among them what the killed one left: two agents of Ray that would stay for minutes.
    assert gone(lambda: list(short.glob("bstune-ray-*")))


@pytest.mark.usefixtures("here")
def test_a_command_is_not_sent_to_other_machines() -> None:
    """Its program and its files are here; that is said before anything is joined."""
    command = bstune.Command(WORDS, samples_per_epoch=64, epochs=2)
    with pytest.raises(bstune.ArgumentError, match="a command runs on this machine only"):
        bstune.search(command, engine="ray", ray_address="127.0.0.1:1", space=SPACE)
