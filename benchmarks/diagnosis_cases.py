"""Problems whose answers are known, one where each claim of a diagnosis holds and one where it does not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from bstune.tests.diagnosis.made import (
    FALLS,
    LATE,
    WAVES,
    confirmed,
    crossing,
    curves,
    ended,
    first_losses,
    ghosts,
    grid,
    grown,
    known_of,
    momenta,
    of_kind,
    probe,
    searched,
    seen,
    shaped,
    timed,
    with_best,
)
from bstune.tests.diagnosis.problems import (
    beside,
    both_optimizers,
    classes,
    crossed,
    crossed_truth,
    entangled,
    fine_tuned,
    layered,
    left_over,
    looked_at,
    normalised,
    quadratic,
    true_noise_scale,
    whole_batch,
)
from bstune.tuner.diagnosis.known import Known


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


def _sized(n_samples: int, batch: int = 30) -> Known:
    known = with_best(searched(), global_batch_size=batch)
    assert known.facts is not None
    return replace(known, facts=replace(known.facts, n_samples=n_samples, epochs=10))


def _limited(seed: int, by: str, **best: object) -> Known:
    return with_best(
        searched(grid(slope=1, seed=seed), of=probe(_steep, seed=seed, micro_batch_size=64, limited_by=by)), **best
    )


def _waiting(seed: int, share: float) -> Known:
    found = probe(_steep, seed=seed)
    assert found.loader is not None
    return searched(of=replace(found, loader=replace(found.loader, wait_share=share, bound=share > 0.5)))


def _times_32(seed: int, times: float) -> Known:
    known = searched()
    assert known.best is not None
    of_32 = next(each for each in known.best.compared if each.name == "batch 32")
    times *= math.exp(random.Random(seed).gauss(0, 0.05))
    return with_best(known, global_batch_size=16, compared=(replace(of_32, times_sooner=times),))


def _likes_eights(batch: int) -> float:
    return 1e-3 * batch * (1.0 if batch % 8 == 0 else 1.2)


def _starts(peak: float, seed: int) -> Known:
    return seen("early_losses", *(first_losses(peak, 3 * seed + i) for i in range(3)))


def _plain_norm(seed: int) -> Known:
    return looked_at(normalised(pixels=4, bias=False), ["structure"], seed=seed)


NOISE = math.sqrt(30)
HOLDS, NOT = "holds", "does not hold"
CASES = [
    Case("loader", "a step waits 2 % of its time", HOLDS, lambda s: _waiting(s, 0.02)),
    Case("loader", "a step waits 60 % of its time", NOT, lambda s: _waiting(s, 0.6)),
    Case("which-memory", "64 samples fill it", HOLDS, lambda s: _limited(s, "memory")),
    Case("which-memory", "64 samples are all data", NOT, lambda s: _limited(s, "dataset")),
    Case("updates-per-epoch", "1,000 samples, batch 30", HOLDS, lambda s: _sized(1000)),
    Case("updates-per-epoch", "20 samples, batch 30", NOT, lambda s: _sized(20)),
    Case("4-or-4096", "10,000 samples in a run", HOLDS, lambda s: _sized(1000)),
    Case("4-or-4096", "10 million samples in a run", NOT, lambda s: _sized(1_000_000)),
    Case("powers-of-two", "multiples of 8 are 20 % faster", HOLDS, lambda s: timed(_likes_eights, s), 20.0),
    Case("powers-of-two", "a sample takes the same time", NOT, lambda s: timed(lambda n: 1e-3 * n, s), 0.0),
    Case("multiples-of-8", "multiples of 8 are 20 % faster", HOLDS, lambda s: timed(_likes_eights, s), 20.0),
    Case("multiples-of-8", "a sample takes the same time", NOT, lambda s: timed(lambda n: 1e-3 * n, s), 0.0),
    Case(
        "fill-memory",
        "64 fit, 32 to 128 are as good as the best",
        HOLDS,
        lambda s: _limited(s, "memory", global_batch_size=64, batch_interval=(32, 128)),
    ),
    Case(
        "fill-memory",
        "64 fit, 8 to 32 are as good as the best",
        NOT,
        lambda s: _limited(s, "memory", global_batch_size=16, batch_interval=(8, 32)),
    ),
    Case("start-with-32", "32 is 15 % sooner", HOLDS, lambda s: _times_32(s, 0.85), 0.85),
    Case("start-with-32", "the best is twice as soon", NOT, lambda s: _times_32(s, 2.0), 2.0),
    Case(
        "crossed-pairs",
        "35 full runs and 6 of fresh seeds, best rate proportional to batch",
        HOLDS,
        lambda s: searched(grid(slope=1, seed=s, fresh=6)),
    ),
    Case(
        "crossed-pairs",
        "35 full runs and 6 of fresh seeds, best rate the same for all",
        NOT,
        lambda s: searched(grid(slope=0, seed=s, fresh=6)),
    ),
    Case(
        "crossed-pairs",
        "trained: noisy valley, best rate proportional to batch",
        HOLDS,
        lambda s: crossed(NOISE, 0.0, seed=s),
        crossed_truth(NOISE, 0.0),
    ),
    Case(
        "crossed-pairs",
        "trained: the same, with 1000 added to each loss",
        NOT,
        lambda s: crossed(NOISE, 1000.0, seed=s),
        crossed_truth(NOISE, 1000.0),
    ),
    Case("curve-shapes", "high rates jump, low ones creep", HOLDS, lambda s: shaped(True, s)),
    Case("curve-shapes", "all curves have one shape", NOT, lambda s: shaped(False, s)),
    Case("best-checkpoint", "ends 50 % above its lowest", HOLDS, lambda s: curves(LATE, s), 50.0),
    Case("best-checkpoint", "falls to its end", NOT, lambda s: curves(FALLS, s), 0.0),
    Case("best-looks-better", "fresh seeds end 10 % higher", HOLDS, lambda s: confirmed(1.1, s), 10.0),
    Case("best-looks-better", "fresh seeds end 3 % lower", NOT, lambda s: confirmed(0.97, s), -3.0),
    Case("first-rise", "rises by 40 %, then falls below", HOLDS, lambda s: curves(WAVES, s)),
    Case("first-rise", "falls to its end", NOT, lambda s: curves(FALLS, s)),
    Case("short-runs-tell", "ranks are turned round", NOT, crossing),
    Case(
        "small-equal-seconds",
        "time by samples, loss + 35 % a doubling",
        HOLDS,
        lambda s: searched(grid(slope=1, worse=0.3, seed=s), of=probe(lambda n: 1e-3 * n, seed=s)),
    ),
    Case(
        "small-equal-seconds",
        "steps of equal length",
        NOT,
        lambda s: searched(grid(slope=1, seed=s), of=probe(_flat, seed=s)),
    ),
    Case(
        "rate-too-far",
        "loss + 1 % at 4 times the rate",
        NOT,
        lambda s: searched(grid(slope=1, sharp=0.003, seed=s, noise=0.001)),
    ),
    Case("square-root-law", "a loss over pairs", NOT, lambda s: looked_at(entangled(), ["gradients"], seed=s), -1.0),
    Case("layers-differ", "1000 times", HOLDS, lambda s: looked_at(layered(1000.0), ["layers"], seed=s), 1000.0),
    Case("layers-differ", "3 times", NOT, lambda s: looked_at(layered(3.0), ["layers"], seed=s), 3.0),
    Case(
        "fine-tuning", "the same weights each time, 1/50 of a usual rate", HOLDS, lambda s: fine_tuned(0.0005, seed=s)
    ),
    Case("fine-tuning", "the same weights each time, a usual rate", NOT, lambda s: fine_tuned(0.02, seed=s)),
    Case("last-batch", "20 of 32 samples are left", HOLDS, lambda s: left_over(20)),
    Case("last-batch", "1 sample is left", NOT, lambda s: left_over(1)),
    Case("bias-before-norm", "no bias before BatchNorm", "not applicable", _plain_norm),
    Case("warm-up", "a peak of 3 times the first loss", HOLDS, lambda s: _starts(3.0, s)),
    Case("warm-up", "no peak", NOT, lambda s: _starts(1.0, s)),
    Case("grow-the-batch", "as good as decay, 0.5 % noise", HOLDS, lambda s: grown(1.0, s), 1.0),
    Case("grow-the-batch", "30 % worse", NOT, lambda s: grown(1.3, s), 1.3),
    Case("full-batch", "valley: noise leaves batches of 32 at 1", HOLDS, lambda s: whole_batch(8.0, seed=s)),
    Case("full-batch", "valley without noise", NOT, lambda s: whole_batch(0.0, seed=s)),
    Case("ghost-batches", "parts of the batch end 10 % lower", HOLDS, lambda s: ghosts(0.9, s), 0.9),
    Case("ghost-batches", "as good as the whole", NOT, lambda s: ghosts(1.0, s), 1.0),
    Case(
        "running-statistics",
        "2 updates, pixels around 50",
        NOT,
        lambda s: looked_at(
            normalised(pixels=16, middle=50.0), ["running_statistics"], seed=s, rate=1e-3, points=(64,)
        ),
    ),
    Case("norm-on-output", "a linear layer comes last", HOLDS, _plain_norm),
    Case(
        "generalization-gap",
        "trained: better with each update, by the power 0.2",
        HOLDS,
        lambda s: beside(0.2, seed=s),
        100 * math.expm1(0.2 * math.log(2)),
    ),
    Case("generalization-gap", "trained: the same valley", NOT, lambda s: beside(0.0, seed=s), 0.0),
    Case("sharp-minima", "trained: a valley of one curvature", NOT, lambda s: beside(0.0, seed=s), 1.0),
    Case("sharp-minima", "twice the curvature, + 10 % loss a doubling", HOLDS, lambda s: ended(2.0, 0.1, s), 2.0),
    Case("sharp-minima", "twice the curvature, the same loss", NOT, lambda s: ended(2.0, 0.0, s), 2.0),
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
    Case(
        "shared-rate",
        "best rate proportional to batch, 6 runs of fresh seeds",
        "does not hold",
        lambda s: searched(grid(slope=1, seed=s, fresh=6)),
    ),
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
    Case("adam-or-sgd", "trained: curvatures of 1 and 0.001", HOLDS, lambda s: both_optimizers(0.001, seed=s)),
    Case("adam-or-sgd", "trained: a round valley", NOT, lambda s: both_optimizers(1.0, seed=s)),
    _kinds(0.10, 0.15, "holds"),
    _kinds(0.15, 0.10, "does not hold"),
    _momenta(0.5, "holds"),
    _momenta(0.0, "does not hold"),
]
