"""What is expected to fit a device that is not here: from real traced steps, by a card's name or its memory."""

from __future__ import annotations

import json
from pathlib import Path

import bstune
import pytest
from bstune.tuner.core.probe_results import PlanResult
from bstune.tuner.device.cards import CARDS_MIB, card_bytes
from bstune.tuner.plan import largest_fitting

MIB = 1 << 20
MODEL = """
import bstune, torch
from torch import nn

N = 100_000
data = torch.utils.data.TensorDataset(torch.zeros(N, 256), torch.arange(N) % 3)

def net():
    return nn.Sequential(nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, 3))

def branch(model, batch):
    x = model[0](batch[0])
    for _ in range(len(x)):
        x = x + 1
    return nn.functional.cross_entropy(model[2](x), batch[1])

objective = bstune.Supervised(net, data, data)
branches = bstune.Supervised(net, data, data, training_step=branch)
small = bstune.Supervised(net, torch.utils.data.Subset(data, range(64)), data)

class Rows(torch.utils.data.Dataset):
    lengths = [1 + n % 20 for n in range(10_000)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return torch.zeros(self.lengths[index], 256)

tokens = bstune.Supervised(
    net,
    Rows(),
    Rows(),
    training_step=lambda model, batch: model(batch).square().mean(),
    collate_fn=lambda rows: nn.utils.rnn.pad_sequence(rows, batch_first=True),
    size_unit="tokens",
)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a model whose activations are known."""
    path = tmp_path_factory.mktemp("plan") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("H100 80GB", "h100 80gb", "NVIDIA H100 80GB HBM3", "H100-80g", "GeForce RTX 4090", "a100-sxm4-40gb", "T4"),
        *("RTX4090", "rtx4060ti", "GeForceRTX3090", "h100nvl"),
    ],
)
def test_cards_are_known_by_the_names_that_people_use(name: str) -> None:
    """Case, maker and form factor do not matter."""
    card, total_bytes = card_bytes(name)

    assert total_bytes == CARDS_MIB[card] * MIB


@pytest.mark.parametrize(
    ("name", "said"),
    [("H100", "H100 80GB or H100 NVL 94GB"), ("Voodoo 2", "not in the table"), ("", "not in the table")],
)
def test_an_unclear_card_is_an_error_that_lists_the_choices(name: str, said: str) -> None:
    """A wrong card would give a wrong answer, so nothing is guessed."""
    with pytest.raises(bstune.ArgumentError, match=said):
        card_bytes(name)


def test_a_second_range_of_sizes_that_fits_is_found() -> None:
    """Sizes 60 to 79 need a retry and 80 to 90 do not: the answer is 90."""
    assert largest_fitting(lambda n: n < 60 or 80 <= n <= 90, 1000) == 90


def test_plan_scales_with_the_memory_of_the_card(path: Path) -> None:
    """Twice the memory fits twice the batch; the categories add up; the evidence is named; JSON loses nothing."""
    result = bstune.plan(bstune.load(path), gpu=["T4"], memory=["1600MiB", "2600MiB", "520MiB"], device="cpu")

    t4, one, two, none = result.outlooks
    assert (t4.micro_batch_size, t4.limited_by) == (100_000, "dataset") or t4.limited_by == "memory"
    assert one.micro_batch_size is not None
    assert two.micro_batch_size is not None
    assert one.limited_by == two.limited_by == "memory"
    assert (
        1.5 < two.micro_batch_size / one.micro_batch_size < 2.7
    )  # 1.0 and 2.0 GiB after context and headroom, less fragments.
    assert one.reserved_bytes is not None
    assert one.reserved_bytes <= one.budget_bytes
    assert none.micro_batch_size is None
    assert result.residual == pytest.approx(0, abs=1e-3)
    assert any("Nothing was run" in text for text in result.rests_on)
    assert PlanResult.from_dict(json.loads(result.to_json())) == result


def test_steps_that_differ_from_size_to_size_are_refused(path: Path) -> None:
    """A loop over the samples of a batch gives another sequence at each size: no prediction, and the reason."""
    with pytest.raises(bstune.BstuneError, match="in another order than one at 9"):
        bstune.plan(bstune.load(f"{path}:branches"), memory=["8GiB"], device="cpu")


def test_how_a_batch_is_made_of_samples_is_no_part_of_a_step(path: Path) -> None:
    """Each of its samples is a tensor of its own; sizes in tokens are those that hold the longest one."""
    result = bstune.plan(bstune.load(f"{path}:tokens"), memory=["2GiB"], device="cpu")

    assert result.traced_sizes == (60, 100, 180)
    assert result.residual == pytest.approx(0, abs=1e-3)
    size = result.outlooks[0].micro_batch_size
    assert size is not None
    assert size % 20 == 0
    assert size > 180
    assert "at 60, 100, 180 tokens" in result.rests_on[0]


def test_the_data_set_bounds_the_plan(path: Path) -> None:
    """No size beyond the data is named."""
    (outlook,) = bstune.plan(bstune.load(f"{path}:small"), memory=["8GiB"], multiple_of=10, device="cpu").outlooks

    assert (outlook.micro_batch_size, outlook.limited_by) == (60, "dataset")
