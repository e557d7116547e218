"""Sizes that count tokens: batches are filled by them, a run counts them, and a probe sees the largest."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bstune
import pytest
import torch
from bstune.objectives.supervised import _validation_s
from bstune.tests.objectives.small import run, spec_of
from bstune.tests.objectives.told import Phases
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.probe_results import Attempt
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import Facts, MeasureSpec, NoisePoint, TrialReport
from bstune.tuner.probing.attempts import Attempts
from bstune.tuner.probing.run import run_probe
from bstune.tuner.report.text import search_text
from bstune.tuner.strategy.cost import Cost
from bstune.tuner.strategy.space import make_space
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host
from optuna.distributions import IntDistribution
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

DRAW = random.Random(0)
LENGTHS = [60 if index % 50 == 7 else 1 + min(30, int(DRAW.expovariate(0.2))) for index in range(400)]
TOKENS = sum(LENGTHS)


class Texts(Dataset[torch.Tensor]):
    """Rows of numbers of these lengths, each with the number of its row."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(LENGTHS)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one."""
        return torch.full((LENGTHS[index],), 1.0 + index)


class Stated(Texts):
    """The same, with their lengths."""

    lengths = LENGTHS


def pad(samples: list[torch.Tensor]) -> torch.Tensor:
    """Return a batch as wide as its longest sample."""
    return pad_sequence(samples, batch_first=True)


class Seen:
    """An objective that notes the batches it trains and validates on."""

    def __init__(self, data: Any = None, **options: Any) -> None:
        """Make it."""
        self.training: list[torch.Tensor] = []
        self.validation: list[torch.Tensor] = []
        data = Stated() if data is None else data
        self.objective = bstune.Supervised(
            **{
                "model": lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)),
                "train_data": data,
                "val_data": data,
                "training_step": self.step,
                "collate_fn": pad,
                "size_unit": "tokens",
                "epochs": 4,
                **options,
            }
        )
        self.objective.prepare()

    def step(self, model: Any, batch: Any) -> Any:
        """Note the batch and return the mean of its tokens' losses."""
        (self.training if torch.is_grad_enabled() else self.validation).append(batch)
        return (model(batch[batch > 0].reshape(-1, 1) / 400) - 1).square().mean()


def n_tokens(batches: list[torch.Tensor]) -> list[int]:
    """Return the tokens of each batch, padding included."""
    return [batch.numel() for batch in batches]


def spec(**options: Any) -> Any:
    """Return a run of two micro-batches of 240 tokens a step, with validation batches of 300."""
    sizes = {"global_batch_size": 480, "micro_batch_size": 240, "accumulation_steps": 2, "eval_batch_size": 300}
    return spec_of(**{**sizes, "end_samples": 9600, "points": (4800, 9600), **options})


def test_batches_are_filled_by_tokens_and_counted_by_them() -> None:
    """Never over what was set; every sample comes in an epoch, and a run has as many micro-batches as it counts."""
    seen = Seen()
    reports = run(seen.objective, spec())

    assert [report.samples for report in reports] == [4800, 9600]
    assert len(seen.training) == 9600 // 240
    assert max(n_tokens(seen.training)) <= 240
    first_epoch = sorted({int(row.max()) for batch in seen.training[:25] for row in batch})
    assert len(first_epoch) > 0.9 * len(LENGTHS)
    assert sum(n_tokens(seen.training[:15])) > 0.8 * 15 * 240
    assert max(n_tokens(seen.validation)) <= 300
    assert sum(map(len, seen.validation)) == 2 * len(LENGTHS)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """In the middle of an epoch, to the bit."""
    path = str(tmp_path / "half.pt")
    whole = [report.val_loss for report in run(Seen().objective, spec())]
    run(Seen().objective, spec(checkpoint_to=path), lambda _: "stop")

    (rest,) = run(Seen().objective, spec(resume_from=path, start_samples=4800))

    assert rest.val_loss == whole[-1]


def test_the_validation_loss_does_not_depend_on_the_size_of_its_batches() -> None:
    """It is weighted by tokens."""
    one, other = (run(Seen().objective, spec(eval_batch_size=size))[-1].val_loss for size in (70, 2000))

    assert one == pytest.approx(other, rel=1e-4)


def test_a_probe_has_the_longest_and_the_fullest_in_turn() -> None:
    """In validation too; steps are timed with ordinary batches."""
    seen = Seen()
    seen.objective.measure(MeasureSpec(150, 150, 2, 3, seed=0), "cpu", Phases())

    shapes = [tuple(batch.shape) for batch in seen.training]
    assert len(shapes) == 4
    assert shapes[0] == shapes[2] == (2, 60)  # 120 tokens, where batches of shorter samples have up to 150.
    assert shapes[1] == shapes[3]
    assert 140 <= shapes[1][0] * shapes[1][1] <= 150
    assert tuple(seen.validation[0].shape) == (2, 60)
    timed = Seen()
    timed.objective.measure(MeasureSpec(150, 150, 1, 2, seed=0, timed_s=0.01, max_timed_steps=4), "cpu", Phases())
    assert {batch.shape[1] for batch in timed.training} != {60}


def noise_scale(point: NoisePoint) -> float:
    """Return the noise scale of one measurement."""
    assert point.covariance_trace is not None
    assert point.gradient_squared is not None
    return point.covariance_trace / point.gradient_squared


def test_noise_is_that_of_samples_in_tokens() -> None:
    """The noise scale in tokens is that in samples times their mean length, to the spread of such a measurement."""
    by_samples, by_tokens = Seen(size_unit="samples"), Seen()
    batch = {"global_batch_size": 16, "micro_batch_size": 16, "accumulation_steps": 1, "eval_batch_size": 400}
    (plain,) = run(by_samples.objective, spec_of(**batch, end_samples=1600, points=(1600,), noise_samples=8000))
    (report,) = run(by_tokens.objective, spec(points=(9600,), noise_samples=8000 * TOKENS // 400))

    mean = TOKENS / len(LENGTHS)
    assert report.noise[-1].microbatch_size == pytest.approx(4 * mean, abs=1)  # Four of the longest fit into 240.
    samples, tokens = (noise_scale(each.noise[-1]) for each in (plain, report))
    assert 0.3 < tokens / (mean * samples) < 3


def test_the_space_is_that_of_tokens() -> None:
    """No batch is smaller than the longest sample, and usual rates belong to as many tokens as 64 samples have."""
    facts = Seen(epochs=100).objective.describe()

    assert (facts.n_samples, facts.size_unit, facts.longest) == (TOKENS, "tokens", 60)
    space = make_space(Plan(), facts, None)
    assert space.batches[0] == 64
    assert space.centre_batch == 512
    assert make_space(Plan(space={"batch_size": (16, 256)}), facts, None).batches == (64, 128, 256)
    with pytest.raises(bstune.ArgumentError, match=r"\[32\]: expected at least 60 tokens"):
        make_space(Plan(space={"batch_size": [32, 64]}), facts, None)


def by_tokens(longest: int, world_size: int = 1) -> Facts:
    """Return what is known of an objective whose sizes are tokens."""
    return Facts(
        "t",
        "supervised",
        n_samples=10**6,
        epochs=5,
        size_unit="tokens",
        longest=longest,
        mean_size=300.0,
        world_size=world_size,
    )


def batches(facts: Facts, fits: int, batch_size: Any = None, **options: Any) -> tuple[int, ...]:
    """Return the batch sizes of a search by the largest micro-batch that fits."""
    space = None if batch_size is None else {"batch_size": batch_size}
    plan = check_search(space=space, **options).plan
    return make_space(plan, facts, known_probe(fits)).batches


def test_no_batch_is_split_below_the_longest_sample() -> None:
    """A longer sample would be a micro-batch of its own, of more tokens than it counts as."""
    facts = by_tokens(1000)

    said = r"\[4006\]: expected sizes that split into .* of 1000 to 1400 tokens, .* multiples of 1400"
    with pytest.raises(bstune.ArgumentError, match=said):
        batches(facts, 1400, [2800, 4006])
    with pytest.raises(bstune.ArgumentError, match=r"of 1400 tokens, .* multiples of 2800"):
        batches(by_tokens(1400, world_size=2), 1400, [4006])
    with pytest.raises(bstune.ArgumentError, match=r"\[1, 2, 3, 4, \.\.\., 999\]: expected at least 1000 tokens"):
        batches(facts, 1400, IntDistribution(1, 999))
    assert batches(facts, 1400, IntDistribution(1000, 2010)) == (*range(1000, 1401), *range(2000, 2011, 2))
    assert batches(facts, 1400)[:3] == (1024, 2048, 4096)
    assert batches(by_tokens(1050), 1400)[:3] == (1400, 2800, 5600)
    for batch in batches(by_tokens(1050), 1400):
        assert 1050 <= Cost.of(by_tokens(1050), known_probe(1400)).split(batch)[0] <= 1400


def test_the_present_batch_holds_the_longest_sample_too() -> None:
    """And so do its micro-batches."""
    with pytest.raises(bstune.ArgumentError, match="batch is less than the 2000 tokens with which each process"):
        batches(by_tokens(1000, world_size=2), 1400, baseline=(32, 0.1))
    with pytest.raises(bstune.ArgumentError, match="batch cannot be split: expected sizes that split"):
        batches(by_tokens(1000), 1400, baseline=(4006, 0.1))
    assert 1234 in batches(by_tokens(1000), 1400, baseline=(1234, 0.1))


def test_a_batch_of_which_less_fits_later_is_not_split_too_small() -> None:
    """Its trial shows that it does not fit; the search goes on without it."""
    facts, probe = by_tokens(1000), known_probe(1024)
    plan = check_search(space={"batch_size": [2048, 3000]}).plan

    assert Cost.of(facts, probe).split(3000) == (1000, 3)
    assert Cost.of(facts, probe).split(4006) == (2003, 2)
    assert make_space(plan, facts, known_probe(1000), begun=True).batches == (3000,)
    assert make_space(plan, facts, known_probe(512), begun=True).batches == (2048,)


def test_the_price_of_validation_is_that_of_a_token() -> None:
    """Of its batches, and of making BatchNorm's statistics before it: 1 s for 100 tokens and 10 s for all 1,000."""
    times = iter([0.0, 1.0, 1.0, 11.0])
    run: Any = SimpleNamespace(
        clock=lambda: next(times),
        validate_once=lambda size: size,
        prepare_validation=lambda: None,
        world_size=1,
        objective=SimpleNamespace(val_data=range(20), val_tokens=[50] * 20, precise_batch_norm=True, num_workers=0),
    )

    assert _validation_s(run, 100) == pytest.approx(1 / 100 + 10 / 1000)


def test_validation_is_tried_down_to_the_longest_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller batches would hold it all the same."""
    tried: list[int] = []

    def too_much(self: Attempts, spec: MeasureSpec, *, traced: bool) -> Any:
        tried.append(spec.eval_batch_size)
        return Attempt(spec.micro_batch_size, "oom", None, 1.0, 3, spec.eval_batch_size, "validation", None), None, None

    monkeypatch.setattr(Attempts, "_once", too_much)
    host: Any = SimpleNamespace(
        memory=lambda: SimpleNamespace(total_bytes=1, available_bytes=1),
        usable_bytes=lambda: 1,
        warnings=(),
        device_info=SimpleNamespace(kind="cpu"),
        facts=by_tokens(60),
        params={},
    )
    Attempts(host, headroom=0.1, seed=0).run(200, final=True)

    assert tried == [200, 100, 60]


def test_what_is_missing_is_said() -> None:
    """The tokens of each sample must be known, and be numbers of tokens."""
    with pytest.raises(bstune.ObjectiveError, match=r"needs the tokens of each sample of train_data: expected length="):
        Seen(Texts())
    with pytest.raises(bstune.ObjectiveError, match="expected whole numbers of tokens"):
        Seen(Texts(), length=lambda sample: len(sample) / 2)
    with pytest.raises(bstune.ArgumentError, match="size_unit='words': expected samples or tokens"):
        Seen(size_unit="words")


MODEL = """
import bstune, torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

texts = [torch.ones(60 if index % 50 == 7 else 1 + index % 20) for index in range(400)]

def pad(batch):
    return pad_sequence(batch, batch_first=True)

def step(model, batch):
    return (model(batch[batch > 0].reshape(-1, 1)) - 2).square().mean()

by_tokens = {"training_step": step, "collate_fn": pad, "length": len, "size_unit": "tokens", "epochs": 4}
objective, two = (bstune.Supervised(lambda: nn.Linear(1, 1), texts, texts, world_size=n, **by_tokens) for n in (1, 2))
"""


def test_two_ranks_learn_what_one_does_with_twice_the_accumulation(tmp_path: Path) -> None:
    """Micro-batches are dealt out in turn, and each validates a part; what is probed are the largest, in each."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    alone = run(prepared(path), spec())
    with Host(bstune.load(f"{path}:two"), device="cpu") as host:
        worker = host.start(messages.Train(spec(accumulation_steps=1, world_size=2)))
        losses = []
        while isinstance(said := host.answer(worker, 60), TrialReport):
            losses.append(said.val_loss)
            worker.reply("go")
        worker.end()
        notes = host.run(messages.Measure(MeasureSpec(150, 150, 2, 3, seed=0))).notes

    assert losses == pytest.approx([report.val_loss for report in alone], rel=1e-4)
    assert notes.samples == 4 * 150 * 2  # Three steps, one of them of two micro-batches.


def test_a_probe_begins_no_lower_than_it_may(tmp_path: Path) -> None:
    """Three of the longest samples are fewer tokens than asked for: sizes begin with what is allowed."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    with Host(bstune.load(f"{path}:objective"), device="cpu") as host:
        result = run_probe(host, min_batch=250, max_batch=330)

    assert result.micro_batch_size == 300
    assert {attempt.size for attempt in result.attempts} == {300}


def prepared(path: Path) -> Any:
    """Return the objective of a file, in this process."""
    objective = runpy.run_path(str(path))["objective"]
    objective.prepare()
    return objective


def test_a_search_by_tokens_ends_in_what_to_use(tmp_path: Path) -> None:
    """From nothing to a batch of tokens with its sampler; what is probed is said to be tokens."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    result = bstune.search(
        bstune.load(f"{path}:objective"),
        space={"batch_size": [64, 256], "learning_rate": [0.01, 0.1]},
        n_trials=3,
        device="cpu",
        storage=f"sqlite:///{tmp_path}/bstune.db",
    )

    best = result.recommendation
    assert best.global_batch_size in (64, 256)
    assert best.micro_batch_size * best.accumulation_steps == best.global_batch_size
    assert result.probe is not None
    assert result.probe.micro_batch_size >= 60
    assert any("Sizes count tokens" in warning for warning in result.probe.warnings)
    assert result.probe.longest == 60
    assert bstune.scale(result, batch_size=256, optimizer="AdamW", micro_max=200).micro_batch_size == 128
    for batch, micro_max in ((64, 50), (130, 64), (48, None)):  # By samples: 32, 26 and 48 tokens.
        with pytest.raises(bstune.ArgumentError, match="hold the longest sample of 60"):
            bstune.scale(result, batch_size=batch, optimizer="AdamW", micro_max=micro_max)
    said = search_text(result, Seen().objective.describe())
    assert "batch_sampler=bstune.TokenBatches(lengths" in said
