"""Which study of a storage a search takes: by its settings, by its code, by its age."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from bstune.tests.studies.written import AXES, finished, killed_between_the_writes, report, run_one, spec
from bstune.tuner.core.errors import StudyError
from bstune.tuner.core.probe_results import DeviceInfo
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import Facts
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.catalog import (
    choose_study,
    find_study,
    fingerprint,
    has_changed,
    make_study,
    newest_study,
    probe_key,
    same_probe,
    touch,
)
from bstune.tuner.studies.storage import Storage, open_storage
from bstune.tuner.studies.study import Study

FACTS = Facts(name=None, kind="loop", n_samples=1000, epochs=2.0, source_hash="abc")
CPU = DeviceInfo("cpu", "here")
TWO, THREE = ((("Focal(gamma=...)", number),) for number in "23")


def chosen(storage: Storage, *, seed: int = 0, named: bool = False, fresh: bool = False, **changes: Any) -> Study:
    """The study that a search with these settings would go on with."""
    wanted = fingerprint(dataclasses.replace(FACTS, **changes), Plan(seed=seed), CPU)
    study = choose_study(storage, "digits", wanted, named=named, fresh=fresh)
    study.set(fingerprint=wanted)
    return study


def test_changed_settings_are_named_old_and_new(url: str) -> None:
    """The message says what changed, and the three ways on."""
    with open_storage(url) as storage:
        run_one(chosen(storage))
        with pytest.raises(StudyError) as caught:
            chosen(storage, seed=7, source_hash="xyz", epochs=3.0)
        text = str(caught.value)
        assert "code of the objective: it was changed\n" in text
        assert "epochs: was 2.0, now 3.0" in text
        assert "seed: was 0, now 7" in text
        assert "precision" not in text
        assert "--fresh" in text
        assert "'digits-2'" in text
        assert "--study" in text
        assert chosen(storage).name == "digits"


def test_the_same_code_in_another_text_goes_on(url: str) -> None:
    """Both hashes are then stored as they are now. A study of an older bstune has that of the text alone."""
    with open_storage(url) as storage:
        run_one(chosen(storage, source_hash="text", code_hash=None))
        old = dict(chosen(storage, source_hash="text", code_hash="code").attributes["fingerprint"])
        del old["code"], old["parts"]
        find = find_study(storage, "digits")
        assert find is not None
        find.set(fingerprint=old)
        with pytest.raises(StudyError, match="it was changed, or is stored otherwise by an older bstune"):
            chosen(storage, source_hash="other", code_hash="code")
        assert chosen(storage, source_hash="text", code_hash="code").attributes["fingerprint"]["code"] == "code"

        assert chosen(storage, source_hash="comment", code_hash="code").attributes["fingerprint"]["source"] == "comment"
        assert chosen(storage, source_hash="comment", code_hash="another Python's").name == "digits"
        with pytest.raises(StudyError, match="code of the objective: it was changed"):
            chosen(storage, source_hash="mended", code_hash="mended")
        with pytest.raises(StudyError, match="code of the objective"):
            chosen(storage, source_hash="unreadable", code_hash=None)


def test_a_change_of_the_code_is_said_by_the_names_of_its_parts(url: str) -> None:
    """And by no hash; where each part is as before, such as in another order, it is only said that it was changed."""
    parts = [(f"f{n}()", "a") for n in range(7)]
    with open_storage(url) as storage:
        run_one(chosen(storage, code_parts=(*parts, ("train()", "a"), ("old()", "a"))))
        for new, said in [
            ([*parts, ("train()", "b"), ("old()", "a")], "train() changed\n"),
            ([*parts, ("train()", "b"), ("new()", "a")], "train() changed; new() new; old() gone\n"),
            ([("train()", "a"), ("old()", "a")], "f0(), f1(), f2(), f3(), f4() and 2 more gone\n"),
            ([*parts, ("old()", "a"), ("train()", "a")], "it was changed\n"),
        ]:
            with pytest.raises(StudyError) as caught:
                chosen(storage, source_hash="xyz", code_parts=tuple(new))
            assert f"  code of the objective: {said}" in str(caught.value)


def test_another_model_is_no_other_source_and_another_study_all_the_same(url: str) -> None:
    """As a function that makes networks of several widths; where one of the two is not known, they are not compared."""
    with open_storage(url) as storage:
        run_one(chosen(storage, structure_hash="narrow"))
        with pytest.raises(StudyError, match="model: another one"):
            chosen(storage, structure_hash="wide")
        assert chosen(storage, structure_hash=None).name == "digits"
        assert chosen(storage, structure_hash="wide").name == "digits"


def test_other_arguments_of_an_instance_are_another_study(url: str) -> None:
    """They are named; a study in which an older bstune has stored none goes on, and has them from then on."""
    with open_storage(url) as storage:
        study = chosen(storage)
        run_one(study)
        old = {name: value for name, value in study.attributes["fingerprint"].items() if name != "arguments"}
        study.set(fingerprint={**old, "beside": {"pack.parts.build": "1"}})  # What a version between two stored.
        for _ in range(2):
            assert chosen(storage, code_arguments=TWO).name == "digits"
        for other in ((), THREE):
            with pytest.raises(StudyError, match=r"what the objective is made with: Focal\(gamma=...\) changed"):
                chosen(storage, code_arguments=other)


def test_other_arguments_are_a_change_of_the_objective(url: str) -> None:
    """As `bstune train` and `bstune diagnose` warn of; where an older bstune has stored none, it is not known."""
    with open_storage(url) as storage:
        study = chosen(storage, code_arguments=TWO)
        run_one(study)
        two, three = (dataclasses.replace(FACTS, code_arguments=each) for each in (TWO, THREE))
        assert not has_changed(study, two, two, object())
        assert has_changed(study, two, three, object())
        study.set(
            fingerprint={name: its for name, its in study.attributes["fingerprint"].items() if name != "arguments"}
        )
        assert not has_changed(study, two, three, object())


def test_samples_of_another_size_are_no_other_model(url: str) -> None:
    """The first of data of varying length may be another in each run; an older bstune has stored one hash of all."""
    with open_storage(url) as storage:
        run_one(chosen(storage, structure_hash="of both"))
        assert chosen(storage, structure_hash="layers-17").name == "digits"
        assert chosen(storage, structure_hash="layers-23").name == "digits"
        with pytest.raises(StudyError, match="the name given as model="):
            chosen(storage, structure_hash="others-23")


def test_a_stored_probe_answers_the_same_code() -> None:
    """It was made of the model, not of what is said about it."""
    wanted = probe_key(dataclasses.replace(FACTS, source_hash="text", code_hash="code"), CPU)
    old = {name: value for name, value in wanted.items() if name not in ("code", "arguments")}
    assert same_probe(wanted, wanted)
    assert same_probe(old, wanted)
    assert same_probe(old, {**wanted, "arguments": dict(TWO)})
    assert not same_probe({**wanted, "arguments": dict(TWO)}, {**wanted, "arguments": dict(THREE)})
    assert same_probe({**wanted, "source": "comment"}, wanted)
    assert not same_probe({**wanted, "source": "comment", "code": None}, wanted)
    assert not same_probe({**wanted, "source": "mended", "code": "mended"}, wanted)
    assert not same_probe({**wanted, "seed": 1}, wanted)
    assert not same_probe(None, wanted)


def test_fresh_keeps_the_old_study(url: str) -> None:
    """`--fresh` makes NAME-2; afterwards the plain command finds the one that matches."""
    with open_storage(url) as storage:
        run_one(chosen(storage))
        run_one(chosen(storage, seed=7, fresh=True))
        assert storage.names() == ["digits", "digits-2"]
        assert chosen(storage, seed=7).name == "digits-2"
        assert chosen(storage, seed=0).name == "digits"
        with pytest.raises(StudyError, match="made with other settings"):
            chosen(storage, seed=7, named=True)
        assert chosen(storage, fresh=True).name == "digits-3"


def test_a_study_that_learned_nothing_makes_way(url: str) -> None:
    """After a first trial that failed, the repaired file needs no new name."""
    with open_storage(url) as storage:
        study = chosen(storage)
        record = study.begin(spec(), AXES)
        study.finish(dataclasses.replace(record, state="failed", reason="ValueError: no", cause="error"))
        again = chosen(storage, source_hash="mended")
        assert (again.name, again.records) == ("digits", ())


def test_a_finished_trial_is_seen_before_a_study_makes_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two writes of its only trial, the study has learned something and is not replaced."""
    with open_storage(url) as storage:
        study = chosen(storage)
        record = study.begin(spec(), AXES)
        record = finished(study.report(report(record.number, (640,), 0.25)))
        with monkeypatch.context() as patch:
            patch.setattr(trial_writes, "end_trial", killed_between_the_writes)
            with pytest.raises(SystemExit):
                study.finish(record)
    with open_storage(url) as storage:
        with pytest.raises(StudyError, match="made with other settings"):
            chosen(storage, seed=7)
        assert chosen(storage).records == (record,)


def test_the_newest_study_is_the_one_used_last(url: str) -> None:
    """Not the one made last."""
    with open_storage(url) as storage:
        first, second = make_study(storage, "first"), make_study(storage, "second")
        touch(second)
        first.set(objective="/there/model.py:objective")
        touch(first)
        assert newest_study(storage).name == "first"
        assert newest_study(storage, with_file=True).name == "first"
        assert newest_study(storage, name="second").name == "second"
        with pytest.raises(StudyError, match="no study 'second' that stores a file"):
            newest_study(storage, name="second", with_file=True)
        touch(second)
        assert newest_study(storage).name == "second"
        assert newest_study(storage, with_file=True).name == "first"
