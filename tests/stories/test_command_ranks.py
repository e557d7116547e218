"""A command with several ranks: sizes are those of each, and their product with the ranks is the global batch."""

from __future__ import annotations

import re
from pathlib import Path

import bstune
import pytest
from bstune.cli import main
from bstune.objectives.ranks import ranks_in
from bstune.tuner.core.specs import Plan
from bstune.tuner.report.text import search_text
from bstune.tuner.strategy.space import make_space
from click.testing import CliRunner

LAUNCHER = """#!/bin/sh
shift 3
exec sh "$@"
"""
SCRIPT = """
echo "per rank $1, accumulation $2, global $3"
if [ $1 -gt 8 ]; then echo "RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB."; exit 1; fi
for epoch in 1 2; do sleep 0.2; echo "epoch $epoch val_loss=0.$((9 - 2 * $epoch))"; done
"""
PLACES = ["{micro_batch_size}", "{accumulation_steps}", "{global_batch_size}", "{learning_rate}"]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that a launcher starts with two ranks; 8 samples fit on each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torchrun").write_text(LAUNCHER)
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "train.sh").write_text(SCRIPT)
    return ["./torchrun", "--standalone", "--nproc-per-node", "2", "train.sh", *PLACES]


def test_the_global_batch_is_the_product_with_the_ranks(words: list[str], tmp_path: Path) -> None:
    """Exactly, in what the script is told, in the records, and in the answer."""
    command = bstune.Command(words, samples_per_epoch=256, epochs=2)
    space = {"batch_size": [24, 64], "learning_rate": [0.1]}

    result = bstune.search(command, space=space, budget=4, n_trials=4)

    assert result.probe is not None
    assert (result.probe.micro_batch_size, result.limits.memory) == (8, 16)
    assert 16 in {row.batch_size for row in result.probe.throughput}  # Of both, as the seconds of trials are.
    for record in result.records:
        log = (tmp_path / f"bstune.db.logs-{result.study}/trial-{record.number}.log").read_text()
        micro, accumulation, batch = map(int, re.findall(r"\d+", log.splitlines()[0]))
        assert (micro, accumulation) == (record.micro_batch_size, record.accumulation_steps)
        assert micro <= 8
        assert batch == record.global_batch_size == micro * accumulation * 2
        assert accumulation > 1
    best = result.recommendation
    assert best.world_size == 2
    assert best.global_batch_size == best.micro_batch_size * best.accumulation_steps * 2
    assert "accumulation step" in (said := search_text(result))
    assert " x 2 ranks" in said


def batches(command: bstune.Command, asked: object = None, baseline: tuple[int, float] | None = None) -> list[int]:
    """Return the batch sizes of a search of a command."""
    space = {} if asked is None else {"batch_size": asked}
    return list(make_space(Plan(space=space, baseline=baseline), command.describe(), None).batches)


def test_batches_are_those_that_ranks_can_share(words: list[str]) -> None:
    """What is named and cannot be is refused; of a range and of the defaults the others are left out."""
    command = bstune.Command(words, samples_per_epoch=300)
    with pytest.raises(bstune.ArgumentError, match=r"holds \[25\]: expected multiples of the 2 processes"):
        batches(command, [24, 25])
    with pytest.raises(bstune.ArgumentError, match=r"baseline=\(25, 0.1\): its batch does not divide by the 2"):
        batches(command, baseline=(25, 0.1))
    assert batches(command, (1, 64)) == [2, 4, 8, 16, 32, 64]
    assert batches(command) == [4, 8, 16]
    assert batches(bstune.Command(words, samples_per_epoch=300, world_size=3)) == [6, 12, 24]


def test_ranks_that_the_command_does_not_tell_are_asked_for(words: list[str]) -> None:
    """As many as there are cards, say; on the command line as well."""
    words[3] = "gpu"
    said = CliRunner().invoke(main, ["search", "--samples-per-epoch", "256", "--", *words])
    assert said.exit_code == 2
    assert "--nproc-per-node gpu" in said.stderr
    assert "--world-size N" in said.stderr
    with pytest.raises(bstune.ArgumentError, match="which are 2 where there are GPUs"):
        ranks_in(["accelerate", "launch", "--num_processes=2", "train.py"])
    assert bstune.Command(words, samples_per_epoch=256, world_size=4).describe().world_size == 4
    none = CliRunner().invoke(main, ["search", "--world-size", "0", "--samples-per-epoch", "256", "--", *words])
    assert "expected the number of processes that train together" in none.stderr


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("accelerate launch --multi_gpu --num_processes 3 train.py", 3),
        ("accelerate launch --cpu --num_processes 3 train.py", 1),
        ("mpirun -np 4 python train.py -n 9", 4),
        ("deepspeed --num_gpus=2 --num_nodes=2 train.py", 4),
        ("torchrun train.py --nproc-per-node 2", 1),
        ("python train.py --num-processes 8", 1),
    ],
)
def test_ranks_are_read_from_the_launcher(line: str, ranks: int) -> None:
    """From its own options, not from the script's."""
    assert ranks_in(line.split()) == ranks
