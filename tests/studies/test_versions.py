"""Attributes of a study that another version of bstune has written."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from bstune.tuner.studies import catalog as catalog_module
from bstune.tuner.studies import study as study_module
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage

from .test_storage import search


def test_an_older_study_is_upgraded_when_it_is_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version by version, in memory; the writer then stores the new version."""
    first = search(url)

    def rename(attributes: dict[str, Any]) -> dict[str, Any]:
        return {**attributes, "renamed": attributes["stopped_by"]}

    monkeypatch.setattr(study_module, "SCHEMA", study_module.SCHEMA + 1)
    monkeypatch.setattr(catalog_module, "SCHEMA", study_module.SCHEMA)
    monkeypatch.setattr(study_module, "UPGRADES", {study_module.SCHEMA - 1: rename})
    with read_storage(url) as storage:
        study = find_study(storage, "formula")
        assert study is not None
        assert study.attributes["renamed"] == first.stopped_by
        assert study.attributes["bstune_schema"] == study_module.SCHEMA
    search(url)
    attributes = optuna.load_study(study_name="formula", storage=url).user_attrs
    assert attributes["bstune_schema"] == study_module.SCHEMA
    assert attributes["renamed"] == first.stopped_by
