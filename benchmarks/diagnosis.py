"""Are the findings of a diagnosis right? On problems whose answers are known, over 20 seeds.

    python benchmarks/diagnosis.py            # two minutes on an idle machine; writes benchmarks/results/diagnosis.md
    python benchmarks/diagnosis.py --seeds 3  # a quick look; writes nothing

Each row is a claim on one problem: how often the verdict was the right one, how often `cannot tell` (which is never
wrong, and of no use), how often it was wrong, and how often the 90 % interval held the true value.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bstune.tests.diagnosis.made import covers, finding, grid, known_of, momenta, of_kind, probe, searched
from bstune.tests.diagnosis.problems import classes, looked_at, normalised, quadratic, true_noise_scale
from bstune.tuner.core.version import versions
from bstune.tuner.diagnosis.known import Known

RESULTS = Path(__file__).with_name("results") / "diagnosis.md"


@dataclass(frozen=True)
class Case:
    """A claim on a problem whose answer is known."""

    name: str
    problem: str
    right: str
    make: Callable[[int], Known]
    truth: float | None = None


def _flat(batch: int) -> float:
    return 0.01 + 1e-6 * batch


def _steep(batch: int) -> float:
    return 0.001 + 1e-4 * batch


def _after_doubling(curvature: float, noise: float) -> float:
    scale = true_noise_scale(curvature=curvature, noise=noise)
    return 100 * (1 + scale / 64) / (1 + scale / 32)


def _rates(slope: float) -> list[Case]:
    problem = f"35 full runs, best rate proportional to batch^{slope:g}, 2 % noise"
    verdicts = {"coupling": slope > 0.1, "linear-rule": slope == 1, "root-rule": slope == 0.5}
    return [
        Case(name, problem, "holds" if holds else "does not hold", lambda s: searched(grid(slope=slope, seed=s)), slope)
        for name, holds in verdicts.items()
    ]


def _kinds(adam: float, sgd: float, right: str) -> Case:
    problem = f"5 settings each, the best at {adam:g} with Adam and {sgd:g} with SGD, 1 % noise"
    return Case(
        "adam-or-sgd",
        problem,
        right,
        lambda s: known_of(of_kind("adam", adam, 5, seed=s), of_kind("sgd", sgd, 5, seed=s)),
        sgd / adam,
    )


def _momenta(slope: float, right: str) -> Case:
    problem = f"75 full runs, best 1 / (1 - momentum) proportional to batch^{slope:g}, 1 % noise"
    return Case("momentum-for-batch", problem, right, lambda s: momenta(slope, seed=s), slope)


CASES = [
    Case(
        "flat-step-time",
        "t = 10 ms + 1 us B, 3 % noise",
        "holds",
        lambda s: searched(of=probe(_flat, seed=s)),
        _flat(1024) / _flat(4),
    ),
    Case(
        "flat-step-time",
        "t = 1 ms + 100 us B, 3 % noise",
        "does not hold",
        lambda s: searched(of=probe(_steep, seed=s)),
        _steep(1024) / _steep(4),
    ),
    Case("step-time-line", "t = 1 ms + 100 us B, 3 % noise", "holds", lambda s: searched(of=probe(_steep, seed=s))),
    Case(
        "step-time-line",
        "four times as long from 60 on",
        "does not hold",
        lambda s: searched(of=probe(lambda n: 0.01 * 4 ** (n > 60), seed=s)),
    ),
    Case(
        "better-use",
        "t = 100 ms + 0.1 ms B",
        "holds",
        lambda s: searched(of=probe(lambda n: 0.1 + 1e-4 * n, seed=s)),
    ),
    Case(
        "better-use",
        "t = 10 us + 1 ms B",
        "does not hold",
        lambda s: searched(of=probe(lambda n: 1e-5 + 1e-3 * n, seed=s)),
    ),
    Case(
        "below-32",
        "t = 1 ms + 10 us B",
        "holds",
        lambda s: searched(of=probe(lambda n: 1e-3 + 1e-5 * n, seed=s)),
        100 * 16 / 116,
    ),
    Case(
        "below-32",
        "t = 0.1 ms + 100 us B",
        "does not hold",
        lambda s: searched(of=probe(lambda n: 1e-4 + 1e-4 * n, seed=s)),
        100 * 16 / 17,
    ),
    *_rates(1.0),
    *_rates(0.5),
    *_rates(0.0),
    Case("rate-too-far", "loss + 38 % at 4 times the rate", "holds", lambda s: searched(grid(slope=1, seed=s))),
    Case(
        "large-is-worse",
        "loss + 16 % a doubling",
        "holds",
        lambda s: searched(grid(slope=1, worse=0.15, seed=s)),
        100 * math.expm1(0.15),
    ),
    Case("large-is-worse", "the same loss", "does not hold", lambda s: searched(grid(slope=1, seed=s)), 0.0),
    Case("shared-rate", "best rate proportional to batch", "does not hold", lambda s: searched(grid(slope=1, seed=s))),
    Case(
        "shared-rate",
        "best rate the same for all",
        "holds",
        lambda s: searched(grid(slope=0, sharp=0.3, seed=s, noise=0.01)),
    ),
    Case(
        "largest-fastest",
        "steps of equal length",
        "holds",
        lambda s: searched(grid(slope=1, seed=s), target=0.12, of=probe(_flat, seed=s)),
    ),
    Case(
        "largest-fastest",
        "time by samples, loss + 35 % a doubling",
        "does not hold",
        lambda s: searched(grid(slope=1, worse=0.3, seed=s), target=0.15, of=probe(lambda n: 1e-3 * n, seed=s)),
    ),
    Case("short-runs-tell", "curves that do not cross", "holds", lambda s: searched(grid(slope=1, sharp=0.3, seed=s))),
    Case(
        "square-root-law",
        "quadratic in 40 dimensions",
        "holds",
        lambda s: looked_at(quadratic(curvature=1.0, noise=1.0), ["gradients"], seed=s),
        -0.5,
    ),
    Case(
        "twice-is-half",
        "quadratic, noise scale 1842",
        "holds",
        lambda s: looked_at(quadratic(curvature=1.0, noise=8.0), ["gradients"], seed=s),
        _after_doubling(1.0, 8.0),
    ),
    Case(
        "twice-is-half",
        "quadratic, noise scale 2.6",
        "does not hold",
        lambda s: looked_at(quadratic(curvature=1.0, noise=0.3), ["gradients"], seed=s),
        _after_doubling(1.0, 0.3),
    ),
    Case(
        "noisy-loss",
        "samples scatter by 25 around 10",
        "holds",
        lambda s: looked_at(quadratic(curvature=0.1, noise=4.0), ["gradients"], seed=s),
        100 * 4.0 * math.sqrt(40 / 32) / (10 + 0.05 * 4.9),
    ),
    Case(
        "noisy-loss",
        "samples scatter by 0.06 around 10",
        "does not hold",
        lambda s: looked_at(quadratic(curvature=0.1, noise=0.01), ["gradients"], seed=s),
        100 * 0.01 * math.sqrt(40 / 32) / (10 + 0.05 * 4.9),
    ),
    Case(
        "only-a-sample",
        "validation data with a slope of their own",
        "holds",
        lambda s: looked_at(quadratic(curvature=1.0, noise=0.1, shift=1.0), ["agreement"], seed=s),
    ),
    Case(
        "only-a-sample",
        "the same valley",
        "does not hold",
        lambda s: looked_at(quadratic(curvature=1.0, noise=0.1), ["agreement"], seed=s),
        1.0,
    ),
    Case(
        "stratified-batches",
        "classes make 60 % of the noise",
        "holds",
        lambda s: looked_at(classes(between=0.6), ["strata"], seed=s),
        60.0,
    ),
    Case(
        "stratified-batches",
        "classes make 2 % of the noise",
        "does not hold",
        lambda s: looked_at(classes(between=0.02), ["strata"], seed=s),
        2.0,
    ),
    Case(
        "curvature-limit",
        "largest eigenvalue 4, rate 0.45",
        "holds",
        lambda s: looked_at(quadratic(curvature=4.0, noise=0.1), ["curvature"], seed=s, rate=0.45),
        0.9,
    ),
    Case(
        "curvature-limit",
        "largest eigenvalue 4, rate 0.01",
        "does not hold",
        lambda s: looked_at(quadratic(curvature=4.0, noise=0.1), ["curvature"], seed=s, rate=0.01),
        0.02,
    ),
    Case(
        "batch-norm-32",
        "64 independent pixels an image",
        "does not hold",
        lambda s: looked_at(normalised(pixels=64), ["batch_norm"], seed=s),
        100 / 64,
    ),
    Case(
        "batch-norm-32",
        "all pixels of an image the same",
        "holds",
        lambda s: looked_at(normalised(pixels=16, correlated=True), ["batch_norm"], seed=s),
        100.0,
    ),
    Case(
        "running-statistics",
        "200 updates",
        "holds",
        lambda s: looked_at(normalised(pixels=16), ["running_statistics"], seed=s, rate=1e-3, points=(6400,)),
    ),
    Case(
        "bias-before-norm",
        "two biases before BatchNorm",
        "holds",
        lambda s: looked_at(normalised(pixels=4, last=True), ["structure"], seed=s),
    ),
    Case(
        "norm-on-output",
        "BatchNorm comes last",
        "does not hold",
        lambda s: looked_at(normalised(pixels=4, last=True), ["structure"], seed=s),
    ),
    _kinds(0.10, 0.15, "holds"),
    _kinds(0.15, 0.10, "does not hold"),
    _momenta(0.5, "holds"),
    _momenta(0.0, "does not hold"),
]


def main() -> int:
    """Run all cases and write the table; return 1 where a verdict is right in fewer than 90 % of the seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=20)
    n = options.parse_args().seeds
    torch.set_num_threads(1)
    began_s, rows, bad = time.monotonic(), [], 0
    for case in CASES:
        found = [finding(case.name, case.make(seed)) for seed in range(n)]
        right = sum(each.verdict == case.right for each in found)
        unclear = sum(each.verdict == "cannot tell" for each in found)
        known = [each for each in found if each.interval is not None]
        held = None if case.truth is None else sum(covers(each, case.truth) for each in known)
        covered = "" if held is None else f"{held} of {len(known)}"
        bad += right < 0.9 * n or (held is not None and held < 0.85 * len(known))
        rows.append(
            f"| {case.name} | {case.problem} | {case.right} | {right} | {unclear} | {n - right - unclear} | {covered} |"
        )
        print(rows[-1], file=sys.stderr)
    seconds = time.monotonic() - began_s
    made_with = ", ".join(f"{name} {value}" for name, value in versions().items() if name in ("python", "torch"))
    text = "\n".join(
        [
            "# Are the findings of a diagnosis right?",
            "",
            f"`python benchmarks/diagnosis.py`, {time.strftime('%Y-%m-%d')}, {n} seeds each, {seconds:.0f} s on a CPU, "
            f"{made_with}.",
            "",
            "Problems whose answers are known, where the claim holds and where not. `cannot tell` is never wrong, and "
            "of no use. The last column: how often the 90 % interval held the true value.",
            "",
            "| finding | problem | truth | right | cannot tell | wrong | interval holds it |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
    if n >= 20:
        RESULTS.write_text(text)
    print(text)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
