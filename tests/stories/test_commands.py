"""Whole searches and probes of scripts that know nothing of bstune: what users meet, from the command line on."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.cli import main
from bstune.tests.warm_start import others_below
from bstune.tuner.core.progress import Progress
from bstune.tuner.device.out_of_memory import classify_exit
from click.testing import CliRunner, Result

SCRIPT = r"""
import argparse, math, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="")
parser.add_argument("--fits", type=int, default=10**9)
parser.add_argument("--late", type=int, default=10**9)
parser.add_argument("--hangs", type=float, default=10**9)
parser.add_argument("--mib", type=int, default=0)
parser.add_argument("--mib-validation", type=int, default=0)
parser.add_argument("--drift", type=float, default=1.0)
parser.add_argument("--start-s", type=float, default=0.0)
parser.add_argument("--epoch-s", type=float, default=0.0)
args = parser.parse_args()
batch = args.batch_size * args.accumulate
print(f"micro {args.batch_size} accumulation {args.accumulate}", args.out, flush=True)
held = b"x" * int(args.drift * args.mib * args.batch_size * 2**20)
if args.batch_size > args.fits:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
time.sleep(args.start_s)
gap = math.log2(args.lr / (0.02 * batch / 32))
loss = 2.0
for epoch in range(1, args.epochs + 1):
    if epoch == 2 and args.batch_size >= args.late:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if args.lr > args.hangs:
        time.sleep(600)
    loss = 0.05 + (loss - 0.05) * math.exp(-0.5 * math.exp(-gap * gap / 8))
    time.sleep(args.epoch_s)
    held_too = b"x" * (args.mib_validation * args.batch_size * 2**20)
    print(f"epoch {epoch} val_loss={loss:.5f}", flush=True)
"""
PLACES = ["--batch-size", "{micro_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"]
HOLDS_MUCH = [*PLACES[:2], "--mib", "40", "--start-s", "0.5"]
"""For long enough to be looked at, also where the one who looks waits for a core."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def command(*words: str, **options: object) -> bstune.Command:
    """Return the script as an objective."""
    arguments: dict[str, object] = {"samples_per_epoch": 1600, "epochs": 4, **options}
    return bstune.Command([sys.executable, "train.py", *PLACES, *words], **arguments)  # type: ignore[arg-type]


def cli(*words: str) -> Result:
    """Run a command line of bstune's, and the script after `--`."""
    return CliRunner().invoke(main, list(words))


def test_from_a_script_to_an_applied_recommendation(folder: Path) -> None:
    """One line searches it, the last line of the answer trains with it, and the same line again trains nothing."""
    words = ["--samples-per-epoch", "1600", "--epochs", "4", "--budget", "3", "--n-trials", "6"]
    asked = ["search", *words, "--", sys.executable, "train.py", "--out", "out/{trial}", *PLACES, "--seed", "{seed}"]
    first = cli(*asked)

    assert first.exit_code == 0, first.stderr
    applied = first.stdout.strip().splitlines()[-1].removeprefix("# ")
    assert re.fullmatch(
        rf"{sys.executable} train.py --out out/best --batch-size \d+ --lr [\d.e-]+ --epochs 4 --seed 0", applied
    )
    assert subprocess.check_output(shlex.split(applied), text=True).count("val_loss") == 4
    again = cli(*asked[:1], "--json", *asked[1:])
    assert "trial 0 " not in again.stderr
    assert "by the defaults of the script: batch 32, learning rate 0.01. It is run too" in first.stderr
    assert "trial 0   baseline batch 32    lr 0.01 " in first.stderr
    result = bstune.SearchResult.from_dict(json.loads(again.stdout))
    assert (result.study, len(result.trials)) == ("train", first.stderr.count("\ntrial "))
    assert cli("show", "--log", "0").stdout.count("val_loss") >= 1
    assert "out/1\n" in cli("show", "--log", "1").stdout
    assert "has no trial 99" in cli("show", "--log", "99").stderr
    assert sorted(path.name for path in folder.iterdir()) == ["bstune.db", "bstune.db.logs-train", "train.py"]
    assert others_below() == []

    named = cli("list")
    assert "train" in named.stdout
    (folder / "train.py").write_text(SCRIPT.replace("2.0", "3.0"))
    changed = cli(*asked)
    assert changed.exit_code == 1
    assert "code of the objective: loss changed" in changed.stderr


def test_a_batch_that_does_not_fit_is_accumulated_exactly(folder: Path) -> None:
    """Micro-batch times accumulation is the global batch, in what the script is told."""
    asked = command("--fits", "8", "--accumulate", "{accumulation_steps}")
    result = bstune.search(asked, budget=3, n_trials=3, space={"batch_size": [24], "learning_rate": [0.01, 0.02]})

    assert result.probe is not None
    assert (result.probe.micro_batch_size, result.probe.proof) == (8, "bracket")
    for _, trial in result.trials.iterrows():
        log = (folder / f"bstune.db.logs-train/trial-{trial['number']}.log").read_text()
        micro, accumulation = map(int, re.findall(r"\d+", log.splitlines()[0]))
        assert micro <= 8
        assert micro * accumulation == trial["global_batch_size"]
    assert set(result.trials["global_batch_size"]) == {24}


def test_without_accumulation_batches_end_at_what_fits(folder: Path) -> None:
    """And the result says so."""
    result = bstune.search(command("--fits", "8"), budget=3, n_trials=4)

    assert result.trials["global_batch_size"].max() <= 8
    assert any("no place for accumulation" in warning for warning in result.recommendation.warnings)


def test_a_trial_that_runs_out_of_memory_or_hangs_is_a_result(folder: Path) -> None:
    """The script is not started again with the same batch; the search goes on below it."""
    asked = command("--late", "32", "--hangs", "0.5")
    space = {"batch_size": [8, 32], "learning_rate": [0.005, 0.02, 1.0]}
    result = bstune.search(asked, budget=4, n_trials=8, space=space, trial_timeout=12.0)

    failed = result.trials[result.trials["state"] == "failed"]
    reasons = " ".join(failed["reason"])
    assert "out of memory" in reasons
    assert result.trials.query("global_batch_size == 32 and reason.str.contains('memory')").shape[0] == 1
    assert result.recommendation.global_batch_size == 8
    if (failed["learning_rate"] == 1.0).any():
        assert "hung" in reasons


def test_what_an_epoch_takes_is_told_from_what_the_script_takes_to_start(folder: Path) -> None:
    """So prices are known before the first trial, and a run of one epoch is not taken for a cheap one."""
    told: list[Progress] = []
    asked = command("--start-s", "0.5", "--epoch-s", "0.1", epochs=10)
    result = bstune.search(
        asked, budget=2, n_trials=2, space={"batch_size": 32, "learning_rate": [0.01, 0.02]}, callbacks=[told.append]
    )

    probe = result.probe
    assert probe is not None
    assert probe.start_s is not None
    assert 0.5 <= probe.start_s < 5
    assert probe.step_time_line is not None
    assert 0.05 / 50 <= probe.step_time_line.step_s(32) < 1.0 / 50
    (forecast,) = [each.forecast for each in told if each.forecast is not None]
    assert forecast.probe_seconds is not None
    assert forecast.probe_seconds >= probe.seconds
    assert any("the budget does not count that (a timeout does" in each.message for each in told if each.kind == "note")
    assert forecast.seconds is not None
    assert forecast.seconds >= 2 * (0.5 + 10 * 0.1)
    assert bstune.ProbeResult.from_dict(json.loads(probe.to_json())) == probe


def test_a_probe_finds_the_size_that_really_trains(folder: Path) -> None:
    """By the memory of the process: within the budget, with the validation, and with room for a little more later."""
    asked = command("--mib", "1")
    found = bstune.probe(asked, memory="200MiB", max_batch=512, device="cpu")
    validates = command("--mib", "1", "--mib-validation", "2", "--epoch-s", "0.2")
    small = bstune.probe(validates, memory="200MiB", max_batch=512, device="cpu")

    assert found.limited_by == "memory"
    assert found.peak_bytes <= found.budget_bytes
    assert 150 <= found.micro_batch_size <= 195
    later = [sys.executable, "train.py", "--batch-size", str(found.micro_batch_size), "--mib=1", "--drift=1.03"]
    with psutil.Popen(later, stdout=-3) as run:
        peak = 0
        while run.poll() is None:
            peak = max(peak, run.memory_info().rss - run.memory_info().shared)
    assert 0 < peak <= found.usable_bytes
    assert 45 <= small.micro_batch_size <= 65
    assert found.eval_batch_size is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--memory", "30MiB", "--max-batch", "64", "--", "PY", *HOLDS_MUCH], 3, "Nothing fits"),
        (["--max-batch", "64", "--", "PY", *PLACES[:2], "--nope"], 1, "unrecognized arguments: --nope"),
        (["--max-batch", "64", "--", "no-such-program", "{micro_batch_size}"], 1, "was not found"),
        (["--max-batch", "64", "--", "./train.py", "{micro_batch_size}"], 1, "python ./train.py"),
        (["--max-batch", "64", "--", "PY", "--batch-size", "{bs}"], 2, "did you mean {micro_batch_size}"),
        (["--", "PY", *PLACES[:2]], 2, "--samples-per-epoch is missing"),
        (["train.py", "--", "PY", *PLACES[:2]], 2, "expected one of them"),
        (["train.py", "--metric", "loss"], 2, "only for a command after --"),
        ([], 2, "Missing argument"),
    ],
    ids=["nothing fits", "fails", "no program", "not executable", "slip", "samples", "both", "options", "none"],
)
def test_what_goes_wrong_is_one_clear_error(folder: Path, words: list[str], code: int, said: str) -> None:
    """Of a probe, with the exit code of its kind; the last lines do not say the error too."""
    result = cli(
        "probe", *(part for word in words for part in ([sys.executable, "train.py"] if word == "PY" else [word]))
    )

    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert result.stderr.partition("The last lines that it printed")[2].count(said) <= 1
    assert "Traceback" not in result.stderr.replace('Traceback (most recent call last):\n  File "train.py"', "")


def test_a_command_without_a_place_for_what_is_searched_is_refused(folder: Path) -> None:
    """Before anything is run."""
    with pytest.raises(bstune.ArgumentError, match=r"has no \{learning_rate\}"):
        bstune.search(
            bstune.Command([sys.executable, "{micro_batch_size}"], samples_per_epoch=10), storage="sqlite:///:memory:"
        )
    with pytest.raises(bstune.ArgumentError, match="no place for weight_decay"):
        bstune.search(command(), space={"weight_decay": (1e-5, 1e-2)}, storage="sqlite:///:memory:")


def test_a_script_in_place_of_a_model_is_told_its_line(folder: Path) -> None:
    """Its flags are read, and nothing of it runs."""
    (folder / "model.py").write_text(f"open('was-run', 'w')\n{SCRIPT}")
    result = cli("search", "model.py")

    assert result.exit_code == 1
    assert (
        "--epochs 4 -- python model.py --batch-size {micro_batch_size} --lr {learning_rate} --epochs" in result.stderr
    )
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (-9, "", "oom"),
        (137, "Killed", "oom"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "oom"),
        (1, "RuntimeError: CUDA error: out of memory", "oom"),
        (1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        (1, "RuntimeError: MPS backend out of memory (MPS allocated: 5 GB)", "oom"),
        (134, "terminate called after throwing an instance of 'std::bad_alloc'", "oom"),
        (1, "MemoryError", "oom"),
        (1, "RuntimeError: CUDA error: an illegal memory access was encountered", "error"),
        (1, "ValueError: Expected more than 1 value per channel when training, got input size [1, 4]", "limit"),
        (1, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x8 and 4x1)", "error"),
        (2, "error: unrecognized arguments: --memory", "error"),
        (-11, "", "error"),
    ],
)
def test_what_an_exit_means(code: int, text: str, outcome: str) -> None:
    """The one table of spellings says what is memory, what a limit and what a bug."""
    assert classify_exit(code, text) == outcome


@pytest.mark.parametrize("places", [PLACES[:4], PLACES], ids=["no end", "told its epochs"])
def test_a_search_ends_at_the_first_run_that_tells_no_loss(folder: Path, places: list[str]) -> None:
    """In the probe, with the last words of the script as a terminal shows them; the reason stands there once."""
    drawn = "\x1b[31m" + "".join(f"\r {n}%|##" for n in range(100)) + "\x1b[0m"
    (folder / "silent.py").write_text(f"import sys\nprint({drawn!r})\nprint('nothing to say of', sys.argv)\n")

    asked = ["search", "--samples-per-epoch", "100", "--", sys.executable, "silent.py", *places, "--out={trial}"]
    ended = cli(*asked)

    assert ended.exit_code == 1
    assert ended.stderr.count("without a validation loss") == 1
    assert "--eval_strategy epoch" in ended.stderr
    last = ended.stderr.partition("that it printed:\n")[2].splitlines()
    assert last[0] == "99%|##"
    assert "nothing to say of" in last[1]
    assert "--out=probe" in last[1]
    assert "trial 0" not in ended.stderr
