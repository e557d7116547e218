"""What a batch ramp saves: the loss of a cosine schedule, updates and seconds, on real training.

    python benchmarks/batch_ramp.py [--seeds 6] [--out benchmarks/results]

The model and data of `examples/digits.py`, with SGD (momentum 0.9) and with AdamW, 20 epochs each, on one thread. The
learning rate is the best of a few for the cosine schedule at batch 32, on seeds that are not used afterwards, and all
others have it too. Beside the ramps stands one more way to make as few updates: cosine at a fixed, larger batch, its
rate moved by the rule for the optimizer. Seconds are those of the processor, so that what else runs does not count.
"""

from __future__ import annotations

import argparse
import math
import runpy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import bstune
import torch
from bstune.objectives.data import MicroBatches

ROOT = Path(bstune.__file__).parent
EPOCHS, BATCH, TOP = 20, 32, 256
N_TRAIN = 1024
CHOOSING = (100, 101)
Make = Callable[[Any, float], torch.optim.Optimizer]
KINDS: dict[str, tuple[Make, str, float, tuple[float, ...]]] = {
    "SGD": (
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
        "constant_rate",
        1.0,
        (2.0**-4, 2.0**-3, 2.0**-2),
    ),
    "AdamW": (torch.optim.AdamW, "seesaw", 0.5, (2.0**-7, 2.0**-6, 2.0**-5)),
}


@dataclass(frozen=True)
class Run:
    """How a run went."""

    updates: int
    val_loss: float
    seconds: float
    """Of the processor, validation left out."""


def run(digits: dict[str, Any], make: Make, rule: str, rate: float, batch: int, top: int, seed: int) -> Run:
    """Train once, from this batch size up to `top`."""
    x, y = digits["train_data"].tensors
    val_x, val_y = digits["val_data"].tensors
    torch.manual_seed(seed)
    model = digits["Net"]()
    optimizer = make(model.parameters(), rate)
    ramp = bstune.BatchRamp(
        optimizer,
        batch_size=batch,
        max_batch_size=top,
        total_samples=EPOCHS * N_TRAIN,
        rule=rule,  # type: ignore[arg-type]
        micro_max=TOP,
    )
    indices = _indices(seed)
    start_s = time.process_time()
    while ramp.samples < ramp.total_samples:
        take = torch.tensor([next(indices) for _ in range(ramp.batch_size)])
        torch.nn.functional.cross_entropy(model(x[take]), y[take]).backward()
        optimizer.step()
        optimizer.zero_grad()
        ramp.step()
    seconds = time.process_time() - start_s
    model.eval()
    with torch.no_grad():
        val_loss = torch.nn.functional.cross_entropy(model(val_x), val_y).item()
    return Run(ramp.updates, val_loss, seconds)


def _indices(seed: int) -> Iterator[int]:
    for batch in MicroBatches(N_TRAIN, 1, seed=seed):
        yield from batch


def measure(n_seeds: int) -> list[str]:
    """Return the table, a line a schedule."""
    digits = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    rows = []
    for kind, (make, rule, power, rates) in KINDS.items():
        tried = {
            rate: statistics.mean(run(digits, make, rule, rate, BATCH, BATCH, seed).val_loss for seed in CHOOSING)
            for rate in rates
        }
        rate = min(tried, key=lambda rate: tried[rate])
        print(kind, {f"{rate:.4g}": round(loss, 4) for rate, loss in tried.items()}, flush=True)
        n_ramp = run(digits, make, rule, rate, BATCH, TOP, 0).updates
        even = round(EPOCHS * N_TRAIN / n_ramp)
        ways = {
            f"cosine, batch {BATCH}": (rate, BATCH, BATCH),
            f"ramp ({rule}), batch {BATCH} to {TOP}": (rate, BATCH, TOP),
            f"ramp ({rule}), batch {BATCH} to {2 * BATCH}": (rate, BATCH, 2 * BATCH),
            f"cosine, batch {even}, rate by the rule": (rate * (even / BATCH) ** power, even, even),
            f"cosine, batch {even}, same rate": (rate, even, even),
        }
        plain: list[Run] = []
        for name, (its_rate, batch, top) in ways.items():
            runs = [run(digits, make, rule, its_rate, batch, top, seed) for seed in range(n_seeds)]
            plain = plain or runs
            rows.append(_row(kind, name, its_rate, runs, plain))
            print(rows[-1], flush=True)
    return rows


def _row(kind: str, name: str, rate: float, runs: list[Run], plain: list[Run]) -> str:
    losses = [each.val_loss for each in runs]
    gaps = [each.val_loss - base.val_loss for each, base in zip(runs, plain, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    gap = "" if runs is plain else f"{statistics.mean(gaps):+.4f} ± {error:.4f}"
    seconds, plain_s = (statistics.median(each.seconds for each in some) for some in (runs, plain))
    saved = 1 - runs[0].updates / plain[0].updates
    return (
        f"| {kind} | {name} | {rate:.4g} | {statistics.mean(losses):.4f} | {gap} | {runs[0].updates} | {saved:.0%} | "
        f"{seconds:.2f} | {1 - seconds / plain_s:.0%} |"
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.seeds)
    head = (
        "| optimizer | schedule | rate | loss | beside cosine | updates | saved | CPU s | saved |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    text = (
        f"# Batch ramps on real training\n\n{date.today()}, bstune {bstune.__version__}, torch {torch.__version__}, "
        f"one thread. Command: `python benchmarks/batch_ramp.py --seeds {arguments.seeds}`.\n\n{head}\n"
        + "\n".join(rows)
        + "\n\n`loss` is the mean validation loss at the end; `beside cosine` the mean difference on the same seeds, "
        "with its standard\nerror.\n"
    )
    (arguments.out / "batch_ramp.md").write_text(text)


if __name__ == "__main__":
    main()
