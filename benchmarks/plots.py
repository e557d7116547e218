"""Draw the plots of docs/how-it-chooses.md and docs/figures.md from the project's own runs.

python benchmarks/plots.py  # After benchmarks/search.py; needs matplotlib.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tables
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from matplotlib.figure import Figure
from seconds import Clock, Truth

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
SHOWN = (
    "bstune",
    "bstune, prior 16x wrong",
    "TPE + Median",
    "TPE + SHA",
    "Ray ASHA + random",
    "screen + top 3",
    "random",
)
EXAMPLE = "california_sgd"
SATURATION = 128
"""a / c of the step times of the example."""


def save(figure: Figure, name: str) -> None:
    """Write a figure without the date, so that the same data give the same file."""
    mpl.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none"})
    figure.savefig(DOCS / name, metadata={"Date": None})


def regrets() -> None:
    """Draw the median regret over all tables against the training that it took."""
    kept: dict[str, Any] = json.loads((HERE / "results" / "search.json").read_text())
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in SHOWN:
        by_table = kept["searchers"].get(name)
        if by_table is None:
            continue
        medians = [
            np.median([[math.inf if x is None else x for x in run] for run in seen["regret"]], axis=0)
            for seen in by_table.values()
        ]
        ours = name.startswith("bstune")
        line = "-" if name == "bstune" else "--"
        axes.plot(
            kept["budgets"],
            100 * np.median(medians, axis=0) + 0.05,
            line,
            marker="o",
            label=name,
            linewidth=2.5 if ours else 1.2,
        )
    axes.set(
        yscale="log",
        xlabel="training, in full runs",
        ylabel="regret of the recommended cell, % + 0.05",
        xticks=kept["budgets"],
    )
    axes.legend(fontsize=7)
    save(figure, "search-regret.svg")


def example() -> None:
    """Draw one search by the clock: when each cell is there, how far it was trained, what was recommended."""
    table = next(table for table in tables.own(HERE / "tables") if table.name.endswith(EXAMPLE))
    truth, clock = Truth(table), Clock.of_line(SATURATION, table.batches)
    step_times = tuple(sorted(clock.step_s.items()))
    strategy = Strategy(Plan(goal="time", budget=8, space=table.space), table.facts(step_times=step_times), None)
    records = replay(strategy, table)
    best = strategy.recommend()
    batches, rates = table.batches, table.learning_rates
    grid = [[truth.octaves((batch, lr), clock) for batch in batches] for lr in rates]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.pcolormesh(
        np.log2(batches), np.log2(rates), np.array(grid), cmap="Greys", vmin=0, vmax=5, shading="nearest"
    )
    figure.colorbar(image, label="octaves of time behind the soonest cell")
    full = table.n_samples * table.epochs
    for stage, color in (("anchor", "tab:orange"), ("search", "tab:blue"), ("confirm", "tab:green")):
        runs = [record for record in records if record.stage == stage]
        x, y = [math.log2(r.global_batch_size) for r in runs], [math.log2(r.learning_rate) for r in runs]
        size = [20 + 250 * r.samples / full for r in runs]
        axes.scatter(x, y, size, facecolors="none", edgecolors=color, linewidths=1.6, label=stage)
    axes.plot(
        math.log2(best.global_batch_size),
        math.log2(best.learning_rate),
        "x",
        color="tab:red",
        markersize=10,
        label="recommended",
    )
    axes.set(
        xlabel="log2 batch size",
        ylabel="log2 learning rate",
        title=f"{table.name}, a/c = {SATURATION}, 8 reference runs; a circle's area: how far it was trained",
    )
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, "search-example.svg")


if __name__ == "__main__":
    example()
    regrets()
