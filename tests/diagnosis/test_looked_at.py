"""Findings from looks at a model, on problems whose answers are known: where a claim holds, and where not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bstune.objectives.examination import LOOKS, examine
from bstune.objectives.supervised import Supervised
from bstune.tests.diagnosis.made import SEEDS, covers, finding
from bstune.tests.diagnosis.problems import (
    classes,
    entangled,
    fine_tuned,
    layered,
    left_over,
    looked_at,
    normalised,
    pretrained,
    quadratic,
    true_noise_scale,
    whole_batch,
)
from bstune.tuner.core.examination import ExamineSpec
from bstune.tuner.diagnosis.claims import CLAIMS, judged
from torch import nn
from torch.utils.data import TensorDataset


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_noise_of_a_quadratic(seed: int) -> None:
    """The law holds, unless the loss is one of pairs of samples; the noise scale is the true one, and decides."""
    noisy = looked_at(quadratic(curvature=1.0, noise=8.0), ["gradients"], seed=seed)
    quiet = looked_at(quadratic(curvature=1.0, noise=0.3), ["gradients"], seed=seed)

    assert finding("square-root-law", noisy).verdict == "holds"
    assert covers(finding("square-root-law", noisy), -0.5)
    assert finding("twice-is-half", noisy).verdict == "holds"
    still = finding("twice-is-half", quiet)
    assert still.verdict == "does not hold"
    pairs = finding("square-root-law", looked_at(entangled(), ["gradients"], seed=seed))
    assert pairs.verdict == "does not hold"
    assert covers(pairs, -1.0)
    scale = true_noise_scale(curvature=1.0, noise=0.3)
    assert still.figure == pytest.approx(100 * (1 + scale / 64) / (1 + scale / 32), rel=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_noise_of_a_loss(seed: int) -> None:
    """The scatter of a batch's loss is that of its samples, over the root of their number."""
    loud = finding("noisy-loss", looked_at(quadratic(curvature=0.1, noise=4.0), ["gradients"], seed=seed))
    calm = finding("noisy-loss", looked_at(quadratic(curvature=0.1, noise=0.01), ["gradients"], seed=seed))

    assert (loud.verdict, calm.verdict) == ("holds", "does not hold")
    level = 10 + 0.05 * (1 + 39 / 10)
    assert covers(loud, 100 * 4.0 * math.sqrt(40 / 32) / level)


@pytest.mark.parametrize("seed", SEEDS)
def test_whether_new_data_pull_the_same_way(seed: int) -> None:
    """Validation samples with a slope of their own do not."""
    apart = looked_at(quadratic(curvature=1.0, noise=0.1, shift=1.0), ["agreement"], seed=seed)
    along = looked_at(quadratic(curvature=1.0, noise=0.1), ["agreement"], seed=seed)

    # Through the validation step both see the same valley; the shift is in the samples.
    assert finding("only-a-sample", apart).verdict == "holds"
    assert finding("only-a-sample", along).verdict == "does not hold"


@pytest.mark.parametrize("seed", SEEDS)
def test_strata_of_a_data_set(seed: int) -> None:
    """Classes that make 60 % of the noise are found, and such that make 2 % are told from them."""
    apart = finding("stratified-batches", looked_at(classes(between=0.6), ["strata"], seed=seed))
    alike = finding("stratified-batches", looked_at(classes(between=0.02), ["strata"], seed=seed))

    assert (apart.verdict, alike.verdict) == ("holds", "does not hold")
    assert apart.figure == pytest.approx(60, abs=6)
    assert alike.figure == pytest.approx(2, abs=6)


class WholeBatches(TensorDataset):
    """Tensors in memory that are taken by batches, as the advice about such data is."""

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        """Return a batch."""
        return tuple(each[indices] for each in self.tensors)


def test_data_that_hand_out_whole_batches() -> None:
    """What is found is the same, and the loader hands them on as they are."""
    plain, whole = classes(between=0.6), classes(between=0.6)
    for name in ("train_data", "val_data"):
        setattr(whole, name, WholeBatches(*getattr(plain, name).tensors))
    whole.collate_fn = lambda batch: batch

    looks = [looked_at(each, ["gradients", "strata"]).looks for each in (plain, whole)]
    assert len(looks[0]) > 1
    for own, other in zip(*looks, strict=True):
        assert (own.measurement, own.failed, own.values) == (other.measurement, None, other.values)


def test_data_without_strata() -> None:
    """Nothing is asked of them."""
    known = looked_at(quadratic(curvature=1.0, noise=1.0), ["strata"])

    assert finding("stratified-batches", known).verdict == "not applicable"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curvature_of_a_quadratic(seed: int) -> None:
    """2 / lambda is found, and a rate close to it is told from one far below."""
    near = looked_at(quadratic(curvature=4.0, noise=0.1), ["curvature"], seed=seed, rate=0.45)
    far = looked_at(quadratic(curvature=4.0, noise=0.1), ["curvature"], seed=seed, rate=0.01)

    for known, rate, verdict in ((near, 0.45, "holds"), (far, 0.01, "does not hold")):
        found = finding("curvature-limit", known)
        assert found.verdict == verdict
        assert found.figure == pytest.approx(rate / 0.5, rel=0.05)
        assert covers(found, rate / 0.5)


def test_what_the_curvature_says_of_adam() -> None:
    """Nothing: its bound is another."""
    known = looked_at(quadratic(curvature=4.0, noise=0.1, rate_family="adam"), ["curvature", "layers"])

    assert finding("curvature-limit", known).verdict == "not applicable"
    assert finding("layers-differ", known).verdict == "not applicable"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("ratio", "verdict"), [(1000.0, "holds"), (3.0, "does not hold")])
def test_layers_that_differ(ratio: float, verdict: str, seed: int) -> None:
    """By as much as their losses are scaled."""
    found = finding("layers-differ", looked_at(layered(ratio), ["layers"], seed=seed))

    assert found.verdict == verdict
    assert covers(found, ratio)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_samples_in_a_step(seed: int) -> None:
    """Where noise leaves small batches high two exact steps are better, and without it many small ones."""
    assert finding("full-batch", whole_batch(8.0, seed=seed)).verdict == "holds"
    assert finding("full-batch", whole_batch(0.0, seed=seed)).verdict == "does not hold"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rate", "verdict"), [(0.0005, "holds"), (0.02, "does not hold")])
def test_fine_tuning(rate: float, verdict: str, seed: int) -> None:
    """Of weights that are the same each time: the recommended rate is far below a usual one, or is one."""
    found = finding("fine-tuning", fine_tuned(rate, seed=seed))

    assert found.verdict == verdict
    assert found.figure == pytest.approx(rate / 0.025)


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_of_batch_norm(seed: int) -> None:
    """The mean of B images of P independent pixels is off by 1 / sqrt(B * P): 100 / P images are needed for 0.1."""
    large = finding("batch-norm-32", looked_at(normalised(pixels=64), ["batch_norm"], seed=seed))
    small = finding("batch-norm-32", looked_at(normalised(pixels=16, correlated=True), ["batch_norm"], seed=seed))

    assert (large.verdict, small.verdict) == ("does not hold", "holds")
    assert covers(large, 100 / 64)
    assert covers(small, 100)


@pytest.mark.parametrize("seed", SEEDS)
def test_running_statistics(seed: int) -> None:
    """After two updates they are those of an untrained model; after many they are right."""
    far = normalised(pixels=16, middle=50.0)
    early = looked_at(far, ["running_statistics"], seed=seed, rate=1e-3, points=(64,))
    later = looked_at(normalised(pixels=16), ["running_statistics"], seed=seed, rate=1e-3, points=(6400,))

    assert finding("running-statistics", later).verdict == "holds"
    assert finding("running-statistics", early).verdict == "does not hold"


@pytest.mark.parametrize("seed", SEEDS)
def test_where_norms_stand(seed: int) -> None:
    """A bias before one has no effect; one that comes last is seen."""
    clean = looked_at(normalised(pixels=4, bias=False), ["structure"], seed=seed)
    careless = looked_at(normalised(pixels=4, last=True), ["structure"], seed=seed)

    assert finding("bias-before-norm", clean).verdict == "not applicable"
    assert finding("norm-on-output", clean).verdict == "holds"
    found = finding("bias-before-norm", careless)
    assert (found.verdict, found.figure) == ("holds", 4 + 2)
    assert finding("norm-on-output", careless).verdict == "does not hold"


@pytest.mark.parametrize(("rest", "verdict"), [(0, "holds"), (1, "does not hold"), (4, "does not hold"), (20, "holds")])
def test_the_last_batch(rest: int, verdict: str) -> None:
    """A single sample cannot be normalised, and a few badly."""
    assert finding("last-batch", left_over(rest)).verdict == verdict


def net() -> nn.Module:
    """Dropout, a frozen layer, no BatchNorm."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    model[0].weight.requires_grad_(False)
    return model


def groups(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Two groups of parameters with rates of their own."""
    return torch.optim.SGD([{"params": [parameters[0]], "lr": lr / 10}, {"params": parameters[1:]}], lr)


def dict_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch that is a dictionary."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


class Dicts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Samples that are dictionaries."""

    def __len__(self) -> int:
        """Return 256."""
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one sample, always the same."""
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": (x[0] > 0).long()}


def compiled() -> Any:
    """A model under torch.compile, whose inside is not seen."""
    return torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), backend="eager")


def with_dicts(make: Any) -> Supervised:
    """Batches that are dictionaries, a training step of its own, and groups of parameters."""
    return Supervised(
        model=make, train_data=Dicts(), val_data=Dicts(), training_step=dict_step, optimizer=groups, epochs=10
    )


@pytest.mark.parametrize("make", [net, pretrained, lambda: nn.Linear(8, 2), compiled])
def test_any_model_is_looked_at_or_the_reason_is_said(make: Any) -> None:
    """Dropout, frozen layers, groups of parameters, dictionaries, nothing to normalise: a verdict each."""
    known = looked_at(with_dicts(make), [*LOOKS], rate=0.05, points=(64, 128))

    found = {each.name: each for each in judged(CLAIMS, known)}
    assert all(each.found for each in found.values())
    for name in ("batch-norm-32", "running-statistics", "last-batch", "bias-before-norm", "norm-on-output"):
        assert found[name].verdict == "not applicable"
    assert found["square-root-law"].verdict in ("holds", "cannot tell")
    assert (found["fine-tuning"].verdict == "not applicable") == (
        make not in (net, pretrained)
    )  # Most of it is frozen.


def test_the_curvature_of_a_loss_without_a_second_derivative() -> None:
    """Where torch would return a part of it without a word, it is found by differences of gradients."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    x = torch.randn(256, 8)
    objective = Supervised(
        model=lambda: nn.Linear(8, 1),
        train_data=TensorDataset(x, x[:, :1]),
        val_data=TensorDataset(x, x[:, :1]),
        loss=lambda output, target: Once.apply(output - target).square().mean(),  # type: ignore[no-untyped-call]
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr),
    )
    known = looked_at(objective, ["curvature"], rate=0.01)

    truth = 2 * torch.linalg.eigvalsh(x.T @ x / 256)[-1]  # Of all samples; the looks are at 32 of them.
    values = [value for look in known.looks for value in look.values["eigenvalue"]]
    assert 0.8 * float(truth) < min(values)
    assert max(values) < 2.5 * float(truth)


@pytest.mark.parametrize("make", [net, compiled])
def test_any_model_is_trained_side_by_side(make: Any) -> None:
    """The same models, at two batch sizes and two rates, and with both optimizers, by trainings of their own."""
    asked: dict[str, Any] = {"points": (0,), "sizes": (256, 2, 2, 16, 16), "rates": (0.01, 0.08)}
    known = looked_at(with_dicts(make), ["crossed_pairs", "side_by_side"], **asked)

    both = looked_at(with_dicts(make), ["two_optimizers"], points=(0,), sizes=(64, 128), rates=(0.05, 0.001))

    assert [look.failed for look in (*known.looks, *both.looks)] == [None, None, None]
    assert finding("adam-or-sgd", both).figure is not None or "last one tried" in finding("adam-or-sgd", both).found
    assert known.looks[1].values["large_curvature"] != ()
    assert finding("crossed-pairs", known).figure is not None or "beyond both" in finding("crossed-pairs", known).found


@pytest.mark.parametrize(
    "make",
    [
        lambda: normalised(pixels=4),
        lambda: quadratic(curvature=1.0, noise=1.0),
        lambda: with_dicts(net),
        lambda: with_dicts(compiled),
    ],
)
def test_looks_change_nothing(make: Any) -> None:
    """A run that was looked at goes on bit for bit as one that was not: weights, statistics and random numbers."""
    ended = []
    for measurements in ((), tuple(LOOKS)):
        objective = make()
        objective.prepare()
        states: list[Any] = []
        build = objective.build_model
        built: list[nn.Module] = []

        def keep(params: Any = None, build: Any = build, built: Any = built) -> nn.Module:
            model: nn.Module = build(params or {})
            built.append(model)
            return model

        objective.build_model = keep
        spec = ExamineSpec(measurements, 32, 32, 1, 0.01, 3, 64, (0, 128), 10_240, (4, 8, 16))
        examine(objective, spec, "cpu")
        states = [tensor.clone() for tensor in built[0].state_dict().values()]
        ended.append((states, torch.get_rng_state()))

    (plain, plain_rng), (seen, seen_rng) = ended
    assert len(plain) == len(seen)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert torch.equal(plain_rng, seen_rng)
