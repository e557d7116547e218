"""The studies of a storage: what belongs to one, finding the right one, and naming the next."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from types import MappingProxyType
from typing import Any

from ..core.arguments import ProbeArguments
from ..core.errors import StudyError
from ..core.plain_text import one_line
from ..core.probe_results import DeviceInfo
from ..core.specs import Plan
from ..core.trials import Facts
from . import trial_writes
from .naming import is_anothers, objective_identity, study_name
from .spec_json import encode_space
from .storage import Storage
from .storage_errors import reading
from .study import SCHEMA, Study, has_search

_FINGERPRINT_WORDS = {
    "source": "code of the objective",
    "arguments": "what the objective is made with",
    "structure": "model",
    "n_samples": "training samples",
    "epochs": "epochs",
    "optimizer": "optimizer",
    "schedule": "learning-rate schedule",
    "precision": "precision",
    "space": "space",
    "seed": "seed",
    "device": "kind of device",
}
_WAYS = "Undo the change, or use --fresh (keeps the old study and makes {new!r}), or name another with --study."
_WAYS_IN_PYTHON = (
    "If it is the same objective, undo the change, or search with fresh=True (keeps the old study and makes {new!r}). "
    "If it is another one, give it a name: name='...' where it is made, or study='...' in the search."
)
_MOST_NAMED = 5
"""Parts of the code that are named, of those that were changed."""


def source_of(facts: Facts) -> dict[str, Any]:
    """Return what `same_source` compares of an objective."""
    return {"source": facts.source_hash, "code": facts.code_hash, "arguments": dict(facts.code_arguments)}


def fingerprint(facts: Facts, plan: Plan, device: DeviceInfo) -> dict[str, Any]:
    """Return what must stay the same for the trials of a study to be comparable."""
    return {
        **source_of(facts),
        "parts": dict(facts.code_parts),
        "structure": None if facts.kind == "command" else facts.structure_hash,
        "n_samples": facts.n_samples,
        "epochs": facts.epochs,
        "optimizer": facts.optimizer,
        "schedule": facts.schedule,
        "precision": facts.precision,
        "space": encode_space(plan.space),
        "seed": plan.seed,
        "device": device.kind,
    }


def find_study(storage: Storage, name: str) -> Study | None:
    """Return the study of this name, or None.

    Raises:
        StudyError: The study was not made by bstune, or by a newer one.
    """
    if name not in storage.names():
        return None
    with storage.guard():
        study = Study(storage, storage.backend.get_study_id_from_name(name), name)
    schema = study.attributes.get("bstune_schema")
    if not isinstance(schema, int):
        raise StudyError(
            f"The study {name!r} in {storage.location.url} was not made by bstune. Choose another name with --study."
        )
    if schema > SCHEMA:
        made_by = one_line(study.attributes.get("bstune_version", "a newer version"))
        raise StudyError(
            f"The study {name!r} was written by bstune {made_by}, which stores more than this version can read. "
            "Update bstune."
        )
    return study


def make_study(storage: Storage, name: str) -> Study:
    """Make a study that does not exist yet."""
    from optuna.study import StudyDirection

    from ..core.version import __version__

    with storage.guard(), storage.quiet():
        study = Study(storage, storage.backend.create_new_study([StudyDirection.MINIMIZE], name), name)
    study.set(bstune_schema=SCHEMA, bstune_version=__version__)
    return study


def study_of(storage: Storage, objective: Any, facts: Facts, *, given: str | None) -> tuple[str, Study | None]:
    """Return the name of an objective's study, and the study if there is one; `given`: the name that the user gave."""
    name = study_name(given, objective, facts)
    return own_study(storage, name, objective_identity(objective), named=given is not None)


def searched_study(storage: Storage, objective: Any, facts: Facts, *, given: str | None) -> tuple[str, Study | None]:
    """Return what `study_of` does; of several that an objective has, the one with a search that was used last."""
    name, study = study_of(storage, objective, facts, given=given)
    if given is not None or study is None:
        return name, study
    identity, source = objective_identity(objective), source_of(facts)
    base = study_name(None, objective, facts)
    names = {name, base, *_siblings(storage, base)}
    for other in studies(storage, readable=True):
        its, made_of = other.attributes.get("identity"), other.attributes.get("fingerprint")
        is_own = its == identity if identity is not None else isinstance(made_of, dict) and same_source(made_of, source)
        if other.name in names and is_own and has_search(other):
            return other.name, other
    return name, study


def own_study(storage: Storage, name: str, identity: str | None, *, named: bool) -> tuple[str, Study | None]:
    """Return the name of an objective's study, and the study if there is one.

    Where the user did not give the name, and the study of that name is another objective's, it is NAME-2, NAME-3 ...
    """
    study = find_study(storage, name)
    if named or study is None or not is_anothers(study.attributes.get("identity"), identity):
        return name, study
    for sibling in _siblings(storage, name):
        other = find_study(storage, sibling)
        if other is not None and not is_anothers(other.attributes.get("identity"), identity):
            return sibling, other
    return next_name(storage, name), None


def choose_study(
    storage: Storage,
    name: str,
    wanted: Mapping[str, Any],
    *,
    named: bool,
    fresh: bool = False,
    identity: str | None = None,
    in_python: bool = False,
) -> Study:
    """Return the study to go on with, swept of orphans, or a new one.

    Args:
        storage: Where to look.
        name: The name of the study.
        wanted: The fingerprint of what is about to be searched.
        named: The user gave this name; otherwise `name-2`, `name-3` ... are looked at too.
        fresh: Make a new study beside the old one.
        identity: Which objective it is; see `naming.objective_identity`.
        in_python: It was made in Python, and searched from there.

    Raises:
        StudyError: The study holds trials of other settings; the message names old and new.
    """
    if fresh and name in storage.names():
        return make_study(storage, next_name(storage, name))
    base = name
    name, study = own_study(storage, name, identity, named=named)
    if study is None:
        return make_study(storage, name)
    study.sweep()
    differences = differences_of(study, wanted)
    if not differences:
        return study
    # Nothing in it is worth keeping, so a mistake corrected in the model's file needs no new name.
    if not study.learned:
        forget_study(study)
        return make_study(storage, name)
    for sibling in [] if named else reversed(_siblings(storage, base)):
        other = find_study(storage, sibling)
        if other is not None and not differences_of(other, wanted):
            other.sweep()
            return other
    raise StudyError(
        "\n".join(
            [
                f"The study {name!r} in {storage.location.url} was made with other settings:",
                *differences,
                "Its trials cannot be compared with new ones. "
                + (_WAYS_IN_PYTHON if in_python else _WAYS).format(new=next_name(storage, base)),
            ]
        )
    )


def forget_study(study: Study) -> None:
    """Delete a study and all that is in it."""
    with study.storage.guard():
        trial_writes.delete_study(study.storage.backend, study._id)


def differences_of(study: Study, wanted: Mapping[str, Any]) -> list[str]:
    """Return in words what keeps trials of this fingerprint from being compared with those of the study."""
    stored = study.attributes.get("fingerprint")
    if not isinstance(stored, dict):
        return []
    plain = json.loads(json.dumps(dict(wanted)))
    alike = {
        "source": _same_code(stored, plain),
        "arguments": _same_arguments(stored, plain),
        "structure": same_structure(stored.get("structure"), plain["structure"]),
    }
    different = [key for key in _FINGERPRINT_WORDS if not alike.get(key, stored.get(key) == plain[key])]
    return [f"  {_FINGERPRINT_WORDS[key]}: {_said_difference(key, stored, plain)}" for key in different]


def _said_difference(key: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if key == "source":
        return _what_changed(stored.get("parts"), wanted["parts"])
    if key == "arguments":
        old, new = stored[key], wanted[key]
        return f"{_listed([name for name in {**old, **new} if old.get(name) != new.get(name)])} changed"
    if key == "structure":
        return "another one: its layers, their sizes, or the name given as model="
    return f"was {_shown(stored.get(key))}, now {_shown(wanted[key])}"


def _what_changed(old: Any, new: Mapping[str, str]) -> str:
    """Return in words which parts of a code were changed; an older bstune has stored none."""
    if not isinstance(old, dict) or not old or not new or old == new:
        return (
            "it was changed" if isinstance(old, dict) else "it was changed, or is stored otherwise by an older bstune"
        )
    names = {
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
    }
    return "; ".join(f"{_listed(found)} {what}" for what, found in names.items() if found)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return one_line(", ".join(names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def same_source(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether two objectives do the same: their code does, and they are made with the same arguments."""
    return _same_code(stored, wanted) and _same_arguments(stored, wanted)


def _same_code(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether two texts are equal, or what is left of them without comments and layout.

    An older bstune has stored the text alone; another Python may write the same code otherwise.
    """
    code = wanted["code"]
    return stored.get("source") == wanted["source"] or (code is not None and stored.get("code") == code)


def _same_arguments(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell the same of the arguments of instances, as far as is known: an older bstune did not look at them."""
    its, own = stored.get("arguments"), wanted.get("arguments")
    return not isinstance(its, dict) or not isinstance(own, dict) or its == own


def same_structure(stored: str | None, wanted: str | None) -> bool:
    """Tell whether two models are built alike, as far as is known.

    What follows a dash is of the first sample, which may be of another size in each run. An older bstune has stored one
    hash of both: that cannot be compared.

    Example:
        >>> same_structure("a-1", "a-2"), same_structure("a-1", "b-1"), same_structure("c", "a-1")
        (True, False, True)
    """
    if stored is None or wanted is None or ("-" in stored) != ("-" in wanted):
        return True
    return stored.partition("-")[0] == wanted.partition("-")[0]


def has_changed(study: Study, stored: Facts, facts: Facts, objective: Any) -> bool:
    """Tell whether an objective is no longer what a study has searched.

    What was searched from Python and is now loaded from a file, or the other way, has another source in any case: there
    the structure of the model decides, where it is known.
    """
    its, own = study.attributes.get("identity"), objective_identity(objective)
    elsewhere = isinstance(its, str) and own is not None and its.startswith("/") != own.startswith("/")
    if elsewhere or facts.kind == "command":  # How a command's losses are read is part of its source, and no matter.
        return not same_structure(stored.structure_hash, facts.structure_hash)
    return not same_source(study.attributes.get("fingerprint", {}), source_of(facts))


def same_probe(stored: Any, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a stored probe, by its `probe_key`, answers the wanted one."""
    if not isinstance(stored, dict) or not same_source(stored, wanted):
        return False
    compared = {"source": None, "code": None, "arguments": None}
    return {**stored, **compared} == {**wanted, **compared}


def reaches(stored: Any, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a stored probe serves a search: it went as far as is wanted, or further.

    Example:
        >>> key = {"source": "s", "code": None}
        >>> reaches(key, key | {"max_batch": 8}), reaches(key | {"max_batch": 8}, key | {"max_batch": 16})
        (True, False)
    """
    if not isinstance(stored, dict):
        return False
    far, enough = stored.get("max_batch"), wanted.get("max_batch")
    if far is not None and (enough is None or not isinstance(far, int) or far < enough):
        return False
    return same_probe({**stored, "max_batch": None}, {**wanted, "max_batch": None})


def _shown(value: Any) -> str:
    return one_line(json.dumps(value) if isinstance(value, dict) else value)


def next_name(storage: Storage, name: str) -> str:
    """Return the first of `name-2`, `name-3` ... that is not taken."""
    names = set(storage.names())
    number = 2
    while f"{name}-{number}" in names:
        number += 1
    return f"{name}-{number}"


def _siblings(storage: Storage, name: str) -> list[str]:
    numbered = [
        (int(other.removeprefix(f"{name}-")), other)
        for other in storage.names()
        if other.removeprefix(f"{name}-").isdigit()
    ]
    return [other for _, other in sorted(numbered)]


def studies(storage: Storage, *, readable: bool = False) -> Iterator[Study]:
    """Yield the studies that bstune made, most recently used first; a newer bstune's are an error, or passed over."""
    used = _attributes(storage)
    schemas = {name: attributes.get("bstune_schema") for name, attributes in used.items()}
    ours = [
        name
        for name, schema in schemas.items()
        if (isinstance(schema, int) and schema <= SCHEMA if readable else schema is not None)
    ]

    def used_s(name: str) -> float:
        value = used[name].get("used_s")
        return value if isinstance(value, float) and math.isfinite(value) else 0.0

    storage.names()  # Each is a text.
    for name in sorted(ours, key=used_s, reverse=True):
        study = find_study(storage, name)
        if study is not None:
            yield study


def _attributes(storage: Storage) -> dict[str, dict[str, Any]]:
    """Return the attributes of all studies, by name."""
    storage.check()
    with reading(storage.location):
        ids = {study.study_name: study._study_id for study in storage.backend.get_all_studies()}
        return {name: storage.backend.get_study_user_attrs(study_id) for name, study_id in ids.items()}


def only_foreign(storage: Storage) -> str | None:
    """Return in words which studies there are where bstune made none of them; None where it made one, or none is."""
    found = _attributes(storage)
    if not found or any("bstune_schema" in attributes for attributes in found.values()):
        return None
    where = storage.location.path or storage.location.url
    many, them = ("study", "it") if len(found) == 1 else ("studies", "them")
    names = one_line(", ".join(map(one_line, found)))
    return (
        f"{where} holds {len(found)} Optuna {many} that bstune did not make ({names}): show, list and report do not "
        f"read {them}."
    )


def newest_study(
    storage: Storage, *, name: str | None = None, with_file: bool = False, searched: bool = False
) -> Study:
    """Return the most recently used study.

    Args:
        storage: Where to look.
        name: Accept only the study of this name.
        with_file: Accept only a study that stores the file of its objective.
        searched: Take one that has a search, if there is any.

    Raises:
        StudyError: There is none.
    """
    found = None
    for study in studies(storage):
        if name in (None, study.name) and (not with_file or study.attributes.get("objective")):
            found = found or study
            if not searched or has_search(study):
                return study
    if found is not None:
        return found
    what = f"no study{'' if name is None else f' {name!r}'}{' that stores a file' if with_file else ''}"
    said = only_foreign(storage) or f"{storage.location.path or storage.location.url} holds {what}."
    raise StudyError(f"{said} Give a model: bstune search model.py, or the command line of a script after --.")


def touch(study: Study) -> None:
    """Note that a study is used now, by this version, so that it becomes the newest."""
    study.set(**study.attributes)  # What an upgrade has changed; the rest is not written again.
    study.set(used_s=time.time(), used=datetime.now().isoformat(timespec="seconds"))


def probe_key(
    facts: Facts,
    device: DeviceInfo,
    *,
    jobs: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    chooses_threads: bool = False,
    params: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what a probe's answer depends on, as JSON: objective, device and all settings that are not the default.

    The threads are those of the device before a probe; `chooses_threads`: a probe may choose others. `params`: values
    of the extra dimensions that it was made with.
    """
    defaults = ProbeArguments().settings()
    asked = {name: value for name, value in (settings or {}).items() if name in defaults and value != defaults[name]}
    asked = {name: value for name, value in asked.items() if name not in ("device", "timeout", "seed", "threads")}
    return {
        **source_of(facts),
        "structure": facts.structure_hash,
        "n_samples": facts.n_samples,
        "precision": facts.precision,
        "torch": metadata.version("torch"),
        "device": device.to_dict(),
        "jobs": jobs,
        "seed": seed,
        **({"threads": "chosen"} if chooses_threads else {}),
        **({"params": dict(params)} if params else {}),
        **asked,
    }
