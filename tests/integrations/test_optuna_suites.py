"""Optuna's own tests of samplers, run on `bstune.Sampler`: for studies with its parameters, and for those without."""

from __future__ import annotations

from collections.abc import Callable

import bstune
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

# Studies whose parameters it does not know are left to Optuna's sampler, and that is said.
pytestmark = pytest.mark.filterwarnings("ignore:bstune.Sampler finds no batch size", "ignore:.*is experimental")

NAMES = {"its": ("y", "x"), "others": ("batch_size", "lr")}


class OurSampler:
    """What the tests of Optuna ask for."""

    @pytest.fixture(params=NAMES)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        """Return what makes a sampler that knows the parameters of Optuna's tests by these names."""
        batch, lr = NAMES[request.param]
        return lambda: bstune.Sampler(batch=batch, lr=lr, seed=0)


class TestBasic(OurSampler, BasicSamplerTestCase):
    """Every distribution, NaN, conditional parameters, ranges that change."""


class TestRelative(OurSampler, RelativeSamplerTestCase):
    """Parameters that are chosen together."""


class TestSingleOnly(OurSampler, SingleOnlySamplerTestCase):
    """Several objectives are refused."""
