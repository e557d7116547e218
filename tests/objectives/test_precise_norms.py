"""BatchNorm's running statistics of a few updates mislead about large batches; made afresh they do not."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from bstune.objectives.precise_norms import make_precise
from bstune.tests.objectives.small import run, spec_of, supervised
from bstune.tuner.core.trials import MeasureSpec
from torch import nn
from torch.utils.data import TensorDataset

N, EPOCHS = 1024, 4
DRAW = torch.Generator().manual_seed(2)
CENTRES = 3 + torch.randn(8, 32, generator=DRAW)  # Far from the zero that running averages begin at.
LABELS = torch.randint(8, (N + 512,), generator=DRAW)
INPUTS = CENTRES[LABELS] + torch.randn(len(LABELS), 32, generator=DRAW)
RATES = {16: 0.03, 256: 0.2}


def net() -> nn.Module:
    """Return a network with two such layers, and dropout."""
    first, second = (
        [nn.Linear(n_in, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(share)] for n_in, share in ((32, 0.1), (64, 0))
    )
    return nn.Sequential(*first, *second, nn.Linear(64, 8))


def trained(batch: int, *, precise: bool | Literal["auto"], epochs: float = EPOCHS) -> tuple[float, float]:
    """Return the loss at the end of a run of four epochs or fewer, and a number that the weights decide."""
    objective = supervised(
        model=net,
        train_data=TensorDataset(INPUTS[:N], LABELS[:N]),
        val_data=TensorDataset(INPUTS[N:], LABELS[N:]),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
        metrics={"weights": lambda model, batch: float(model[0].weight.double().abs().sum())},
        precise_batch_norm=precise,
        epochs=EPOCHS,
    )
    end = round(epochs * N)
    spec = spec_of(
        global_batch_size=batch, micro_batch_size=batch, learning_rate=RATES[batch], end_samples=end, points=(end,)
    )
    last = run(objective, spec)[-1]
    return last.val_loss, last.metrics["weights"]


def test_a_large_batch_of_few_updates_is_not_misjudged() -> None:
    """The weights are the same to the bit. By running averages 16 updates lose by far; in truth they win."""
    (small, _), (large, weights) = (trained(batch, precise=False) for batch in (16, 256))
    (small_precise, _), (large_precise, weights_precise) = (trained(batch, precise=True) for batch in (16, 256))

    assert weights == weights_precise
    assert large > 3 * small
    assert large_precise < small_precise
    assert small_precise == pytest.approx(small, abs=0.02)  # After 256 updates both say the same.


def test_short_runs_are_not_misjudged_by_default() -> None:
    """A whole run is judged as the user's own training would be; so is a short one of enough updates."""
    plain, auto, precise = (trained(256, precise=each, epochs=2)[0] for each in (False, "auto", True))
    assert plain > 2 * precise
    assert auto == pytest.approx(precise, rel=0.2)  # Of fewer samples.

    assert trained(256, precise="auto") == trained(256, precise=False)  # 16 updates, and it ends there.
    assert trained(16, precise="auto", epochs=1) == trained(16, precise=False, epochs=1)  # 64 updates.


def test_other_buffers_stay_as_they_are() -> None:
    """Such as the vectors of spectral norm, which a pass in training mode moves on."""
    norm = nn.BatchNorm1d(32)
    model = nn.Sequential(norm, nn.utils.parametrizations.spectral_norm(nn.Linear(32, 8)))
    before = {name: value.clone() for name, value in model.named_buffers()}

    assert make_precise(model, model, [INPUTS[:64], INPUTS[64:128]])

    changed = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert norm.running_mean is not None
    assert norm.running_mean.allclose(INPUTS[:128].mean(0), atol=1e-5)


def test_its_seconds_are_those_of_a_validation() -> None:
    """A search plans with them; a model without such layers pays nothing and says the same."""
    data = TensorDataset(INPUTS[:N], LABELS[:N])
    meter = type("Meter", (), dict.fromkeys(("phase", "step_done", "holds"), lambda *_, **__: None))()
    measure = MeasureSpec(16, 8, 1, 3, seed=0, times_validation=True)
    few = TensorDataset(INPUTS[:8], LABELS[:8])
    plain, precise = (
        supervised(model=net, train_data=data, val_data=few, precise_batch_norm=each).measure(measure, "cpu", meter)
        for each in (False, True)
    )

    assert plain.validation_s_per_sample is not None
    assert precise.validation_s_per_sample is not None
    assert precise.validation_s_per_sample > 4 * plain.validation_s_per_sample  # 64 training batches against one.
    linear = [run(supervised(precise_batch_norm=each), spec_of())[-1].val_loss for each in (False, True)]
    assert linear[0] == linear[1]
