"""What a search has probed: no further than it will use, and no stored probe that did not go as far."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import bstune
import pytest
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.probe_results import Attempt, DeviceInfo, ProbeResult
from bstune.tuner.core.progress import Progress
from bstune.tuner.core.trials import Facts
from bstune.tuner.engines.base import Engine
from bstune.tuner.search import run_forecast
from bstune.tuner.searching import probes
from bstune.tuner.studies.catalog import find_study, make_study, probe_key, same_probe
from bstune.tuner.studies.storage import Storage, open_storage
from bstune.tuner.testing.fake_device import known_probe

FACTS = Facts(name=None, kind="supervised", n_samples=2000, epochs=2.0, source_hash="abc")
"""A full run has 4000 samples, so a batch above 40 makes under 100 steps."""
CPU = DeviceInfo("cpu", "a CPU", threads=1)


@pytest.fixture
def storage() -> Iterator[Storage]:
    """An empty storage."""
    with open_storage("sqlite:///:memory:") as storage:
        yield storage


class Fits:
    """A device on which `fits` samples fit, of one kind or of several; it remembers how far it was asked to go."""

    device_info = CPU
    chooses_threads = False

    def __init__(self, fits: int = 1 << 20, kinds: tuple[str, ...] = ()) -> None:
        """Let so many samples fit."""
        self.fits = fits
        self.kinds = {kind: dataclasses.replace(CPU, name=kind) for kind in kinds}
        self.asked: list[int | None] = []

    def run_probe(self, kind: str | None, *, max_batch: int | None = None, **_: Any) -> ProbeResult:
        """Return the largest size within what fits, what was asked for and the data set."""
        self.asked.append(max_batch)
        sizes = {"memory": self.fits, "max_batch": max_batch or FACTS.n_samples, "dataset": FACTS.n_samples}
        limit = min(sizes, key=lambda name: (sizes[name], name == "max_batch"))
        return dataclasses.replace(known_probe(sizes[limit], step_s=(0.01, 0.0001)), limited_by=limit)  # type: ignore[arg-type]


def probed(storage: Storage, device: Fits, facts: Facts = FACTS, **asked: Any) -> tuple[ProbeResult, list[str]]:
    """Probe as a search of a new study does; return what it goes by, and what it has said."""
    said: list[Progress] = []
    arguments = dataclasses.replace(check_search(**asked), callbacks=(said.append,))
    study = make_study(storage, f"s{len(storage.names())}")
    probe = probes.obtain_probe(study, arguments, facts, cast(Engine, device), float("inf"))
    study.set(probe=probe.to_dict())
    return probe, [progress.message or "" for progress in said]


@pytest.mark.parametrize(
    ("facts", "asked", "most", "largest"),
    [
        ({}, {}, 32, 32),
        ({"epochs": 1.0}, {}, 32, 16),
        ({}, {"space": {"batch_size": [8, 200]}}, 200, 200),
        ({}, {"space": {"batch_size": 4}}, 32, 4),
        ({}, {"baseline": (96, 0.1)}, 96, 96),
        ({"world_size": 2, "epochs": 20.0}, {}, 128, 256),
        ({"kind": "loop"}, {}, 32, 32),
        ({"kind": "command", "epochs": 1.0}, {}, 16, 16),
        ({"size_unit": "tokens", "longest": 10, "n_samples": 20_000, "mean_size": 10.0}, {}, 256, 256),
        ({"size_unit": "tokens", "longest": 10, "n_samples": 2000, "mean_size": 8.0}, {}, 80, 32),
    ],
)
def test_no_size_is_tried_that_no_trial_would_use(
    storage: Storage, facts: dict[str, Any], asked: dict[str, Any], most: int, largest: int
) -> None:
    """It goes to the largest part of a batch, or to what the line of step times needs, and says where it ended."""
    device = Fits()

    _, said = probed(storage, device, dataclasses.replace(FACTS, **facts), **asked)

    assert device.asked == [most]
    assert said[-1:] == [f"probe  larger sizes were not tried: the search uses at most {largest}"]


def test_nothing_is_said_where_memory_or_the_data_ended_it(storage: Storage) -> None:
    """Larger sizes were not left out."""
    assert probed(storage, Fits(20))[1] == []
    assert probed(storage, Fits(), space={"batch_size": 2000})[1] == []


def test_a_stored_probe_is_taken_where_it_went_as_far(storage: Storage) -> None:
    """One that was cut short serves a search that goes no further, and no other."""
    assert probed(storage, Fits())[0].micro_batch_size == 32
    wider: list[tuple[dict[str, Any], list[int]]] = [
        ({}, []),
        ({"baseline": (128, 0.1)}, [128]),
        ({}, []),
        ({"baseline": (96, 0.1)}, []),
    ]
    for asked, sizes in wider:
        device = Fits()
        probed(storage, device, **asked)
        assert device.asked == sizes, asked


def test_one_that_ended_by_itself_serves_all(storage: Storage) -> None:
    """Where memory was the end, a search that goes further has nothing to add."""
    assert probed(storage, Fits(20))[0].micro_batch_size == 20
    probe, said = probed(storage, device := Fits(20), baseline=(512, 0.1))
    assert (probe.micro_batch_size, device.asked, said) == (20, [], [])


def test_what_was_cut_short_is_no_answer_to_a_probe_on_its_own(storage: Storage) -> None:
    """Not even after a second search has taken it over; one that ended by itself is."""
    whole = probe_key(FACTS, CPU)
    for device, answers in ((Fits(), False), (Fits(20), True)):
        facts = dataclasses.replace(FACTS, source_hash=f"{device.fits}")
        for _ in range(2):
            probed(storage, device, facts)
            key = storage_key(storage)
            assert same_probe(key, whole | {"source": facts.source_hash}) is answers
        assert len(device.asked) == 1


def storage_key(storage: Storage) -> Any:
    """Return what the newest study says that its probe depends on."""
    study = find_study(storage, f"s{len(storage.names()) - 1}")
    assert study is not None
    return study.attributes["probe_key"]


def test_another_objective_of_the_same_file_has_a_probe_of_its_own(storage: Storage) -> None:
    """A file may have several, and of a loop nothing else tells one from another; a copy of the file is the same."""
    asked = []
    for kinds in ((), ("small", "large")):
        for place in ("/a/model.py:net", "/a/model.py:wide", "/b/model.py:wide"):
            study = make_study(storage, f"{place}{kinds}")
            study.set(identity=place)
            device = Fits(kinds=kinds)
            found = probes.obtain_probe(study, check_search(), FACTS, cast(Engine, device), float("inf"))
            study.set(probe=found.to_dict())
            asked.append(len(device.asked))
    assert asked == [1, 1, 0, 2, 2, 0]


def test_an_objective_with_other_arguments_has_a_probe_of_its_own(storage: Storage) -> None:
    """As with another loss, of whose study a new search does not go on."""
    asked = []
    for kinds in ((), ("small", "large")):
        for gamma in ("2", "3", "2"):
            facts = dataclasses.replace(FACTS, code_arguments=(("Focal(gamma=...)", gamma),))
            probed(storage, device := Fits(kinds=kinds), facts)
            asked.append(len(device.asked))
    assert asked == [1, 1, 0, 2, 2, 0]


def test_each_kind_of_device_is_probed_as_far(storage: Storage) -> None:
    """And anew for a search that goes further."""
    device = Fits(kinds=("small", "large"))
    assert len(probed(storage, device)[1]) == 4  # Each kind by its name, and where its probe ended.
    probed(storage, device)
    probed(storage, device, baseline=(128, 0.1))
    assert device.asked == [32, 32, 128, 128]


MODEL = """
import bstune, torch
from torch.utils.data import TensorDataset

data = TensorDataset(torch.zeros(500, 4), torch.arange(500) % 3)
objective = bstune.Supervised(lambda: torch.nn.Linear(4, 3), data, data, epochs=4, name="m")
"""


def test_a_search_tries_few_sizes_and_a_probe_on_its_own_tries_all(tmp_path: Path) -> None:
    """On real processes: 16 is the largest batch of the search, 32 is for the step times; the data set has 500."""
    (tmp_path / "model.py").write_text(MODEL)
    objective, storage = bstune.load(str(tmp_path / "model.py")), f"sqlite:///{tmp_path / 's.db'}"
    seen: list[Progress] = []

    run_forecast(objective, check_search(device="cpu", storage=storage, callbacks=[seen.append]))
    with open_storage(storage) as opened:
        study = find_study(opened, "m")
        assert study is not None
        searched = study.probe
    tried: list[Attempt] = []
    probe = bstune.probe(objective, device="cpu", storage=storage, on_attempt=tried.append)

    assert searched is not None
    assert (searched.micro_batch_size, searched.limited_by) == (32, "max_batch")
    assert searched.eval_batch_size == 256  # Validation is not slower for it.
    assert searched.step_time_line is not None
    timed = next(attempt for attempt in searched.attempts if attempt.steps > 3)
    assert timed.eval_batch_size == 256  # By this one the seconds of validation are known, since the answer was traced.
    assert max(progress.attempt.size for progress in seen if progress.attempt is not None) == 32
    assert "probe  larger sizes were not tried: the search uses at most 16" in [each.message for each in seen]
    assert (probe.micro_batch_size, probe.limited_by, probe.cached) == (500, "dataset", False)
    assert 500 in {attempt.size for attempt in tried}
