"""Scripts whose command lines are read without running them."""

from __future__ import annotations

from pathlib import Path

import bstune
import pytest
from bstune.objectives.no_objective import refusal

ARGPARSE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("-b", "--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int, default=14)
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ARGPARSE, "--epochs 14 -- python model.py --batch-size {micro_batch_size} --lr {learning_rate} --epochs"),
        (
            "import click\n@click.command()\n@click.option('--bs', '-b', default=8)\n@click.option('--learning-rate')\n"
            "def main(bs, learning_rate): ...\nmain()",
            "-- python model.py --bs {micro_batch_size} --learning-rate {learning_rate}",
        ),
        (
            "from transformers import HfArgumentParser, TrainingArguments\n"
            "args = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()",
            "--per_device_train_batch_size {micro_batch_size} "
            "--gradient_accumulation_steps {accumulation_steps} --learning_rate {learning_rate} "
            "--num_train_epochs {max_epochs} --seed {seed} --eval_strategy epoch --output_dir runs/{trial}",
        ),
        (
            "from lightning.pytorch.cli import LightningCLI\nimport lightning as L\n"
            "class Net(L.LightningModule):\n    def __init__(self, learning_rate=0.1): ...\n"
            "class Data(L.LightningDataModule):\n    def __init__(self, batch_size=32): ...\nLightningCLI(Net, Data)",
            "-- python model.py fit --data.batch_size {micro_batch_size} "
            "--trainer.accumulate_grad_batches {accumulation_steps} --model.learning_rate {learning_rate}",
        ),
        (
            "p.add_argument('--total-batch-size'); p.add_argument('--lr'); dist.init_process_group('gloo')",
            "-- torchrun --standalone --nproc-per-node 2 model.py --total-batch-size {global_batch_size} "
            "--lr {learning_rate}",
        ),
        (
            "p.add_argument('--batch-size'); p.add_argument('--lr')\n"
            "def work(i): dist.init_process_group('gloo', rank=i, world_size=2)\nmp.spawn(work)",
            "-- python model.py --batch-size {micro_batch_size} --lr {learning_rate}",
        ),
        (
            "p.add_argument('--device-batch-size'); p.add_argument('--total-batch-size'); p.add_argument('--lr'); "
            "p.add_argument('--out')",
            "--device-batch-size {micro_batch_size} --total-batch-size {global_batch_size} --lr {learning_rate} "
            "--out runs/{trial}\n",
        ),
    ],
    ids=["argparse", "click", "transformers", "lightning", "ranks", "own ranks", "both sizes"],
)
def test_a_script_in_place_of_a_model_is_told_its_line(text: str, line: str) -> None:
    """By the flags that it has, whatever reads them."""
    assert line in (refusal(text.encode(), "objective", "model.py") or "")


@pytest.mark.parametrize(
    "text",
    [
        f"{ARGPARSE}objective = 1",
        f"{ARGPARSE}if True:\n    from other import make as objective",
        f"{ARGPARSE}from other import *",
        f"{ARGPARSE}def objective(trial): ...",
        f"{ARGPARSE}globals()['objective'] = 1",
        "x = 1",
        "import os; os._exit(3)",
        "import torch, no_such_module_of_mine",
        "this is no Python",
        "import bstune\nmine = bstune.Supervised()",
        "from . import other",
        "import torch\nclass Mine:\n    def measure(self): ...\n    def train(self): ...\nmine = Mine()",
        "import torch\ndef make():\n    global objective\n    objective = 1\nmake()",
        "import helper",
    ],
)
def test_what_may_be_an_objective_is_left_to_run(text: str, tmp_path: Path) -> None:
    """Only a file in which none can be is refused; a module beside it may make one."""
    (tmp_path / "helper.py").write_text("import bstune")

    assert refusal(text.encode(), "objective", "model.py", str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import os, torch\nbatch = int(os.environ['BATCH_SIZE'])\nlr = float(os.environ.get('LR', 0.1))\n"
            "epochs = int(os.getenv('EPOCHS', '3'))",
            "-- env BATCH_SIZE={micro_batch_size} LR={learning_rate} EPOCHS={max_epochs} python model.py\n",
        ),
        ("import torch, helper\nfrom other import *", None),
        ("import torch, helper", "Settings by environment variables or a file"),
        ("import torch, helper", "-- env BATCH_SIZE={micro_batch_size} LR={learning_rate} python model.py\n"),
        (
            "import torch\nclass Net(L.LightningModule): ...\nclass Data(L.LightningDataModule): ...",
            "  objective = from_module(Net, Data, max_epochs=20)\n",
        ),
    ],
)
def test_a_file_without_an_objective_is_told_its_way_in(text: str, said: str | None, tmp_path: Path) -> None:
    """By what it reads or defines; nothing of it is run."""
    (tmp_path / "helper.py").write_text("import torch")
    found = refusal(text.encode(), "objective", "model.py", str(tmp_path))

    assert (found is None) if said is None else said in (found or "")


def test_a_lightning_module_beside_a_use_of_bstune_is_told_its_way_in(tmp_path: Path) -> None:
    """Such a file is run, as it may define an objective."""
    path = tmp_path / "lit.py"
    path.write_text("import bstune\nclass LightningModule: ...\nclass Net(LightningModule): ...")

    with pytest.raises(bstune.ObjectiveError, match=r"(?s)has no 'objective'.*from_module\(Net, YourDataModule"):
        bstune.load(path).resolve()


def test_a_flag_that_is_not_recognised_is_asked_for() -> None:
    """With the flags that there are."""
    said = refusal(b"p.add_argument('--samples-at-once'); p.add_argument('--lr')", "objective", "model.py") or ""

    assert "--YOUR-FLAG {micro_batch_size} --lr {learning_rate}" in said
    assert "--samples-at-once" in said


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["--batch-size", "{micro_batch_size}", "--lr={learning_rate}"], (64, 0.5)),
        (["-b", "{global_batch_size}", "-a", "{accumulation_steps}", "--lr", "{learning_rate}"], (64, 0.5)),
        (["-b", "{micro_batch_size}", "-a", "{accumulation_steps}", "--lr", "{learning_rate}"], (128, 0.5)),
        (["-b", "{micro_batch_size}", "--decay", "{learning_rate}"], None),
        (["-b", "{micro_batch_size}", "--cfg=lr={learning_rate}"], None),
    ],
)
def test_the_defaults_of_a_script_are_the_present_setting(
    tmp_path: Path, words: list[str], setting: tuple[int, float] | None
) -> None:
    """As far as they are numbers that can be read, for the flags that the command fills."""
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('-b', '--batch-size', type=int, default=64)\np.add_argument('--lr', default=0.5)\n"
        "p.add_argument('-a', '--accumulate', default=2)\np.add_argument('--decay', default='none')\n"
    )
    assert bstune.Command(["python", str(script), *words], samples_per_epoch=10).present_setting() == setting
