"""Arguments of a search as they travel: a range is no list, which JSON cannot tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.arguments import check_space
from ..studies.spec_json import encode_space


def search_json(search: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the arguments of `bstune.search` as JSON.

    Raises:
        ArgumentError: The space is wrong on its face.

    Example:
        >>> search_json({"budget": 8, "space": {"learning_rate": (1e-4, 0.1)}})
        {'budget': 8, 'space': {'learning_rate': {'range': [0.0001, 0.1]}}}
    """
    if search is None or not search.get("space"):
        return None if search is None else dict(search)
    return {**search, "space": encode_space(check_space(search["space"]))}
