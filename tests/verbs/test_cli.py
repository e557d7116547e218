"""The command line as its users and their scripts see it: what is printed where, exit codes, and what is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import click
import pytest
from bstune.cli import main
from bstune.tuner.testing.fake_device import known_probe
from click.testing import CliRunner, Result

LOUD = """
import os, sys, time
import bstune, torch
from torch import nn

print("shout: import"); os.write(1, b"shout: raw import\\n"); print("shout: error", file=sys.stderr)


class Data(torch.utils.data.Dataset):
    def __init__(self, n):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        print("shout: item") if i == 0 else None
        return self.x[i], self.x[i].sum()


def step(model, batch):
    print("shout: step"); os.write(1, b"shout: raw step\\n"); time.sleep(STEP_S)
    return ((model(batch[0])[:, 0] - batch[1]) ** 2).mean()


def make():
    return nn.Linear(4, 1)


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


objective = bstune.Supervised(
    model=make, train_data=Data(96), val_data=Data(32), training_step=step, optimizer=sgd, epochs=4, num_workers=WORKERS
)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model that prints at import, in its data and in every step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    write_model(tmp_path)
    return tmp_path


def write_model(folder: Path, *, workers: int = 0, step_s: float = 0.0) -> None:
    """Write the model; it loads data in so many processes and sleeps in each step."""
    (folder / "loud.py").write_text(LOUD.replace("WORKERS", str(workers)).replace("STEP_S", str(step_s)))


def command(*arguments: str) -> list[str]:
    """The command line of a program of its own."""
    return [sys.executable, "-c", "from bstune.cli import main; main()", *arguments]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What runs a command to its end in this process; what it and its workers write to the descriptors is caught."""

    def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments, prog_name="bstune")
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), *capfd.readouterr())

    return run_here


Run = Callable[..., subprocess.CompletedProcess[str]]


def invoke(*arguments: str) -> Result:
    """Run a command in this process, for what ends before anything is started."""
    return CliRunner().invoke(main, arguments)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Read what a command says until it says this word."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if word in line:
            return said
    raise AssertionError(f"never said {word!r}: {said}")


# --- help ---------------------------------------------------------------------------------------------------------

HEAVY = {"torch", "optuna", "numpy", "pandas", "ray", "sqlalchemy", "rich", "cloudpickle", "psutil"}


@pytest.mark.parametrize(
    "code",
    [
        "import bstune",
        "from bstune.cli import main; main(['--help'])",
        "from bstune.cli import main; main(['search', '-h'])",
    ],
)
def test_help_and_import_load_nothing_heavy(code: str) -> None:
    """`bstune --help` and `import bstune` load none of the big libraries."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True)
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "bstune" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", [None, *main.commands])
def test_every_help_ends_with_an_example(name: str | None) -> None:
    """So that the last thing on the screen can be typed."""
    result = invoke(*([name] if name else []), "--help")
    assert result.exit_code == 0
    last = result.output.rstrip().splitlines()[-1].strip()
    assert last.startswith(f"bstune {name or 'search'}")


def test_every_option_says_what_it_is() -> None:
    """Each has a help text; one without a default says so."""
    for name, sub in main.commands.items():
        assert name == sub.name
        for option in sub.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"


def test_the_list_of_commands_names_each_in_one_line(root: Path) -> None:
    """In the order of their use; and a command that is written wrong is not far."""
    shown = invoke("--help").output.splitlines()
    listed = [line.split()[0] for line in shown[shown.index("Commands:") + 1 :] if line.startswith("  ")][:-2]
    files = {path.stem for path in (root / "tuner/commands").glob("*.py")} - {"__init__", "group", "options"}
    assert listed[:3] == ["probe", "plan", "search"]
    assert set(listed) == files
    assert max(map(len, shown)) <= 80
    assert "Did you mean 'show'?" in invoke("shwo").output


def test_the_options_of_search_are_the_arguments_of_search() -> None:
    """An option has the name of the Python argument, so that who knows one knows the other."""
    import inspect

    options = {option.name for option in main.commands["search"].params}
    arguments = set(inspect.signature(bstune.search).parameters) - {"objective", "callbacks", "probe"}
    assert arguments <= options
    arguments = set(inspect.signature(bstune.probe).parameters) - {"objective", "on_attempt"}
    assert arguments <= {option.name for option in main.commands["probe"].params}


# --- wrong usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["probe", "loud.py", "--memory", "12parsecs"], 2, "'12parsecs' is not a size"),
        (["probe", "loud.py", "--max-batch", "0"], 2, "max_batch=0: expected at least 1"),
        (["probe", "loud.py", "--min-batch", "9", "--max-batch", "8"], 2, "min_batch=9 is more than max_batch=8"),
        (
            ["probe", "loud.py", "--min-batch", "9", "--max-batch", "15", "--multiple-of", "8"],
            2,
            "no multiple of it lies between",
        ),
        (["search", "loud.py", "--budget", "0", "--jobs", "0"], 2, "2 arguments are wrong"),
        (["search", "loud.py", "--space", "batch_size"], 2, "expected NAME=VALUES"),
        (["search", "loud.py", "--baseline", "64"], 2, "expected (batch_size, learning_rate)"),
        (["search", "loud.py", "--nonsense"], 2, "No such option"),
        (["search", "missing.py"], 1, "missing.py: no such file"),
        (["search", "loud.py", "--probe", "missing.json"], 1, "--probe missing.json cannot be read"),
        (["search"], 1, "There is no search to continue"),
        (["show"], 1, "There is no storage"),
    ],
)
def test_what_is_wrong_is_said_once(folder: Path, arguments: list[str], exit_code: int, said: str) -> None:
    """One message on stderr, the exit code of its kind, nothing on stdout, and nothing left behind."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in folder.iterdir()] == ["loud.py"]


READS_FLAGS = "p.add_argument('--batch-size'); p.add_argument('--lr'); p.add_argument('--epochs', default=5)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("search python fit.py", "bstune search --samples-per-epoch N --epochs 5 -- python fit.py --batch-size {micro"),
        ("search fit.py --batch-size 32", "-- python fit.py --batch-size {micro_batch_size} --lr {learning_rate}"),
        ("search --budget 8 python fit.py --lr {learning_rate}", "search --budget 8 --samples-per-epoch N --epochs 5"),
        ("train fit.py --lr 3", "bstune train -- python fit.py --batch-size {micro_batch_size}"),
        ("probe torchrun other.py --b {micro_batch_size}", "-- torchrun other.py --b '{micro_batch_size}'"),
        (
            "search --samples-per-epoch N -- python fit.py",
            "put the number of samples in the training data in its place",
        ),
    ],
)
def test_who_names_a_script_without_dashes_is_told_the_line(folder: Path, arguments: str, line: str) -> None:
    """With the script's own flags where it can be read, and what was given before it."""
    (folder / "fit.py").write_text(READS_FLAGS)

    result = invoke(*arguments.split())

    assert result.exit_code == 2
    assert line in result.stderr


def test_a_mistyped_option_of_a_model_is_no_script(folder: Path) -> None:
    """A file that may define an objective is given no advice for scripts."""
    assert "goes after --" not in invoke("search", "loud.py", "--nonsense").stderr


def test_debug_adds_our_own_traceback(folder: Path) -> None:
    """Only when asked for."""
    assert "Traceback" in invoke("search", "missing.py", "--debug").stderr


def test_the_users_exception_comes_with_the_users_traceback(folder: Path, run: Run) -> None:
    """And with the exit code of a bstune error."""
    (folder / "broken.py").write_text("def load():\n    raise KeyError('my file')\n\nload()\n")
    done = run("search", "broken.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'broken.py", line 2, in load' in done.stderr
    assert "KeyError: 'my file'" in done.stderr
    assert "bstune/tuner" not in done.stderr


# --- the main job -------------------------------------------------------------------------------------------------


def test_a_whole_search_with_a_model_that_prints(folder: Path, run: Run) -> None:
    """Probe, search and show of a loud model print one JSON document each; also resumed, and without a model."""
    probed = run("probe", "loud.py", "--max-batch", "64", "--json")
    assert probed.returncode == 0, probed.stderr
    probe = bstune.ProbeResult.from_dict(json.loads(probed.stdout))
    assert probe.micro_batch_size <= 64
    assert all(attempt.steps >= 2 for attempt in probe.attempts if attempt.outcome == "ok")
    (folder / "probe.json").write_text(probed.stdout)
    write_model(folder, workers=1)

    options = [
        "--probe",
        "probe.json",
        "--budget",
        "2",
        "--space",
        "batch_size=8,16",
        "--space",
        "learning_rate=0.01,0.1",
    ]
    found = run("search", "loud.py", *options, "--json")
    assert found.returncode == 0, found.stderr
    result = bstune.SearchResult.from_dict(json.loads(found.stdout))
    assert result.to_json() + "\n" == found.stdout
    assert result.recommendation.verified
    assert result.spent.full_runs <= 2
    assert result.probe == probe
    assert "shout:" not in found.stderr
    assert "Forecast: about" in found.stderr

    shown = run("show", "--json")
    assert json.loads(shown.stdout)["recommendation"] == json.loads(found.stdout)["recommendation"]

    again = run("search", *options[:2])
    assert again.returncode == 0, again.stderr
    assert "trial " not in again.stderr
    assert "Forecast: nothing is left to run" in again.stderr
    assert "checked by" in again.stdout.splitlines()[0]
    assert_can_be_pasted(again.stdout, result)

    other = run("search", "loud.py", *options, "--seed", "5")
    assert (other.returncode, other.stdout) == (1, "")
    assert "seed: was 0, now 5" in other.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "bstune.db",
        "loud.py",
        "probe.json",
    ]


def assert_can_be_pasted(text: str, result: bstune.SearchResult) -> None:
    """The lines after the empty one are Python and set what was recommended."""
    values: dict[str, Any] = {}
    exec(text.split("\n\n")[-1], values)
    best = result.recommendation
    assert values["micro_batch_size"] * values["accumulation_steps"] == best.global_batch_size
    assert values["learning_rate"] == best.learning_rate


def test_ctrl_c_and_two_at_once_and_show(folder: Path, run: Run) -> None:
    """While one search runs a second is refused and show works; Ctrl-C shows the best, exits 130, leaves no process."""
    write_model(folder, step_s=0.02)
    (folder / "probe.json").write_text(known_probe(8, step_s=(0.02, 1e-4), n_train_samples=96).to_json())
    options = ["--space", "batch_size=4,8", "--budget", "60", "--probe", "probe.json"]
    first = start("search", "loud.py", *options)
    try:
        wait_for(first, "trial 1 ")
        second = run("search", "loud.py", *options)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"in use: process {first.pid} on" in second.stderr
        shown = run("show")
        assert shown.returncode == 0, shown.stderr
        assert f"process {first.pid}" in shown.stdout
        first.send_signal(signal.SIGINT)
        stdout, stderr = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130, stderr
    assert "not verified" in stdout.splitlines()[0]
    assert "Interrupted. What was finished is stored" in stderr
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "bstune.db",
        "loud.py",
        "probe.json",
    ]


def test_a_killed_search_leaves_no_process_and_goes_on(folder: Path, run: Run) -> None:
    """SIGKILL in the middle of a trial: its workers end with it, and the next search brings the result."""
    options = ["--space", "batch_size=8", "--space", "learning_rate=0.01,0.1", "--budget", "2"]
    first = start("search", "loud.py", *options)
    wait_for(first, "Forecast")
    children = children_of(first.pid)
    assert children
    time.sleep(0.3)
    first.kill()
    first.communicate()
    assert gone(children)
    done = run("search", "loud.py", *options)
    assert done.returncode == 0, done.stderr
    assert "probe " not in done.stderr
    assert not any(path.name.startswith("bstune.db.") for path in folder.iterdir())


def children_of(pid: int) -> list[int]:
    """Ids of the processes that this one started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Whether these processes end in time."""
    end_s = time.monotonic() + within_s
    while any(
        os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split() for pid in pids
    ):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


def test_a_dry_run_trains_nothing(folder: Path, run: Run) -> None:
    """It prints the forecast on stdout and no more."""
    done = run("search", "loud.py", "--dry-run", "--budget", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Forecast: about")
    assert done.stdout.count("\n") == 1
    assert "trial " not in done.stderr


SLOW = """
import time
import bstune

@bstune.objective(n_samples=96, epochs=4, evals=4)
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        time.sleep(0.02)
        if samples >= trial.next_report:
            trial.report(val_loss=1.0, samples=samples)
"""


def test_a_timeout_is_a_partial_answer(folder: Path, run: Run) -> None:
    """Exit 0, and "not verified" in the first line."""
    (folder / "slow.py").write_text(SLOW)
    # In this process, so that the time does not go by while workers start.
    options = ["--isolation", "none", "--budget", "60", "--space", "batch_size=4,8,16"]
    done = run("search", "slow.py", "--timeout", "4", *options)
    assert done.returncode == 0, done.stderr
    assert "not verified" in done.stdout.splitlines()[0]
    assert "ended by timeout" in done.stdout


def test_a_file_that_searches_when_it_is_loaded_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the storage that its own caller has locked."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(
        "import bstune\n\n\n@bstune.objective(n_samples=100)\ndef objective(trial): ...\n\n\nbstune.search(objective)\n"
    )

    result = invoke("search", "script.py")

    assert result.exit_code != 0
    assert "was called by a file that bstune was loading" in result.output
