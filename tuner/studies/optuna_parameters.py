"""How a setting looks to Optuna: parameters and their distributions, so that dashboards and importances work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.dimension import Dimension
from ..core.trials import TrialSpec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Axes:
    """The ranges that a search draws from, as Optuna is told them."""

    batch_range: tuple[int, int]
    learning_rate_range: tuple[float, float]
    space: Mapping[str, Dimension]

    def parameters(self, spec: TrialSpec) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return Optuna's parameters of a run and their distributions.

        The batch is the integer exponent of a power of two, or an index into the user's list. A batch that is neither,
        as a baseline may be, is in the user attributes only.
        """
        from optuna.distributions import FloatDistribution, IntDistribution

        batch, lr = spec.global_batch_size, spec.learning_rate
        low, high = self.learning_rate_range
        parameters: dict[str, Any] = {"learning_rate": lr}
        distributions: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(min(low, lr), max(high, lr), log=True)
        }
        listed = self.space.get("batch_size")
        sizes = sorted(set(listed.values)) if listed is not None and listed.kind == "list" else []
        if any(not _is_power_of_two(size) for size in sizes):
            if batch in sizes:
                parameters["batch_size_index"] = sizes.index(batch)
                distributions["batch_size_index"] = IntDistribution(0, len(sizes) - 1)
        elif _is_power_of_two(batch):
            lowest, highest = min(*self.batch_range, batch), max(*self.batch_range, batch)
            parameters["batch_size_log2"] = batch.bit_length() - 1
            distributions["batch_size_log2"] = IntDistribution((lowest - 1).bit_length(), highest.bit_length() - 1)
        for name, value in spec.params.items():
            parameters[name] = value
            distributions[name] = self._distribution(name, value)
        return parameters, distributions

    def _distribution(self, name: str, value: Any) -> BaseDistribution:
        from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

        dimension = self.space.get(name) or Dimension.of(value)  # One with a condition is in those trials that have it.
        if isinstance(dimension.given, BaseDistribution):
            return dimension.given
        if dimension.kind == "range":  # As a float also where it is of whole numbers: older studies hold it so.
            return FloatDistribution(min(dimension.low, value), max(dimension.high, value), log=True)
        return CategoricalDistribution(dimension.values)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
