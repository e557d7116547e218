"""Are the findings of a diagnosis right? On problems whose answers are known, over 20 seeds.

    python benchmarks/diagnosis.py            # two minutes on an idle machine; writes benchmarks/results/diagnosis.md
    python benchmarks/diagnosis.py --seeds 3 --only coupling,full-batch  # a quick look; writes nothing

Each row is a claim on one problem: how often the verdict was the right one, how often `cannot tell` (which is never
wrong, and of no use), how often it was wrong, and how often the 90 % interval held the true value.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from bstune.tests.diagnosis.made import covers, finding
from bstune.tuner.core.version import versions
from bstune.tuner.diagnosis.claims import NAMES
from diagnosis_cases import CASES

RESULTS = Path(__file__).with_name("results") / "diagnosis.md"


def main() -> int:
    """Run all cases and write the table; return 1 where a verdict is right in fewer than 90 % of the seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--only", default="", help="findings, by name; writes nothing")
    asked = options.parse_args()
    n, only = asked.seeds, tuple(filter(None, asked.only.split(",")))
    torch.set_num_threads(1)
    began_s, rows, bad = time.monotonic(), [], 0
    for case in sorted(CASES, key=lambda case: NAMES.index(case.name)):
        if only and case.name not in only:
            continue
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
            "of no use. The last column: how often the 90 % interval held the true value. Where "
            "nothing is drawn all seeds are alike.",
            "",
            "| finding | problem | truth | right | cannot tell | wrong | interval holds it |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
    if n >= 20 and not only:
        RESULTS.write_text(text)
    print(text)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
