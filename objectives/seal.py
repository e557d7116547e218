"""Whether the file that a study stores may be run by somebody who has not named it on this command line.

A database is data. Whoever can write to it can write any attribute, also the one that says which file to run. So a
study that was started by naming its model has a seal: a code made with a secret key of this user, over what is run
and which study of which database says so. The key lies in the user's own folder and never in the database. Nothing is
executed or imported to decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import pwd
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tuner.core.errors import ObjectiveError, StudyError
from ..tuner.core.plain_text import one_line

if TYPE_CHECKING:
    from ..tuner.studies.study import Study
    from .load import ObjectiveRef

KEY_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_seal(study: Study, *, objective: str | None, source: str | None, asked: Mapping[str, Any]) -> str | None:
    """Return the seal of a study whose model this user named; None where nothing is stored or no key can be kept.

    Args:
        study: The study.
        objective: The file or module that it stores.
        source: Hash of the source.
        asked: Where and how it is run: on this machine or on which cluster, in a process of its own or not.
    """
    if objective is None or study.storage.location.kind == "memory":
        return None
    try:
        _make_key()
        return _code(_read_key(), study, objective, source, asked)
    except _NoKeyError:
        return None


def stored_reference(study: Study) -> ObjectiveRef:
    """Return a reference to the objective that a study stores.

    Raises:
        StudyError: There is nothing of that kind any more.
    """
    from .load import load

    stored = study.attributes.get("objective")
    try:
        return load(stored if isinstance(stored, str) else "")
    except ObjectiveError as error:
        raise StudyError(
            f"The study {one_line(study.name)} cannot go on with what it stores. {one_line(error)}"
        ) from error


def shown_target(reference: ObjectiveRef) -> str:
    """Return what is run, for people."""
    return one_line(_target(reference).removesuffix(":objective") if reference.path else reference.target)


def require_trusted(study: Study, reference: ObjectiveRef) -> None:
    """Pass if this user has named the objective, here and as it is now.

    Raises:
        StudyError: It is not certain; the message lists why, and what to do.
    """
    reasons = [*_doubts_of_database(study), *_doubts_of_seal(study), *_doubts_of_file(study, reference)]
    if not reasons:
        return
    if reference.path is None:
        reasons.append("it is a module: what its code is now was not compared")
    shown = shown_target(reference)
    raise StudyError(
        "\n".join(
            [
                f"Nothing was run. The study {one_line(study.name)} stores {shown}, and it is not certain that you "
                "chose to run that:",
                *(f"  {reason}" for reason in reasons),
                f"If you want it, name it: bstune search {_to_paste(shown)}; or add --yes to run what is stored.",
            ]
        )
    )


def _to_paste(shown: str) -> str:
    # A name from a database is pasted into a shell only where no quote in it could end ours.
    return "PATH" if "'" in shown else shlex.quote(shown)


def _target(reference: ObjectiveRef) -> str:
    return f"{reference.path}:{reference.name}"


# --- what speaks against it ---------------------------------------------------------------------------------------


def _doubts_of_database(study: Study) -> list[str]:
    path = study.storage.location.path
    if path is None:  # Who may write to a server's tables cannot be seen from here; the seal decides.
        return []
    try:
        found = os.stat(path)
    except OSError as error:
        return [f"the database cannot be looked at: {error.strerror}"]
    reasons = []
    if found.st_uid != os.geteuid():
        reasons.append(f"the database {one_line(path)} belongs to {_owner(found.st_uid)}")
    # Where the umask is 002, as it is for users with a group of their own, a file can be written by its group.
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()):
        reasons.append(f"others may write to the database {one_line(path)} (chmod go-w ends that)")
    return reasons


def _doubts_of_seal(study: Study) -> list[str]:
    attributes = study.attributes
    seal = attributes.get("objective_seal")
    if not isinstance(seal, str):
        return ["it has no seal of this user: an older bstune made it, another program did, or no key could be kept"]
    try:
        key = _read_key()
    except _NoKeyError as error:
        return [f"its seal cannot be checked: {error}"]
    fingerprint = attributes.get("fingerprint")
    source = fingerprint.get("source") if isinstance(fingerprint, dict) else None
    code = _code(key, study, attributes.get("objective"), source, attributes.get("asked"))
    if not hmac.compare_digest(code.encode(), seal.encode("utf-8", "replace")):
        return ["its seal does not fit: another user made it, or the study was changed, renamed, moved or copied since"]
    return []


def _doubts_of_file(study: Study, reference: ObjectiveRef) -> list[str]:
    if reference.path is None:
        return []
    if _target(reference) != study.attributes["objective"]:
        return ["the file was stored under another path than it has: it is a link, or was written by another program"]
    try:
        found = os.lstat(reference.path)
    except OSError as error:
        return [f"the file cannot be looked at: {error.strerror}"]
    reasons = []
    if not stat.S_ISREG(found.st_mode):
        reasons.append("it is not a regular file")
    if found.st_uid not in (os.geteuid(), 0):
        reasons.append(f"the file belongs to {_owner(found.st_uid)}")
    fingerprint = study.attributes.get("fingerprint")
    if not isinstance(fingerprint, dict) or fingerprint.get("source") != reference.source_hash:
        reasons.append(
            "the file was changed since the study was made (its trials are of the old file; --fresh makes a new study)"
        )
    return reasons


def _owner(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return f"another user, {one_line(pwd.getpwuid(uid).pw_name)}"
    return f"another user (uid {uid})"


# --- the key ------------------------------------------------------------------------------------------------------


class _NoKeyError(Exception):
    """There is no key that only this user can read; the message says why."""


def _code(key: bytes, study: Study, objective: Any, source: Any, asked: Any) -> str:
    location = study.storage.location
    place = location.url if location.path is None else os.path.realpath(location.path)
    said = json.dumps(["bstune study", study.name, place, objective, source, asked], sort_keys=True)
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()


def _key_folder() -> Path:
    """Return `$XDG_STATE_HOME/bstune`; a state home that is not absolute does not count, by the rules of XDG."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        home = Path(os.path.expanduser("~"))
        if not home.is_absolute() or home == Path("/") or not home.is_dir():
            raise _NoKeyError("this user has no home folder for a key")
        state = home / ".local" / "state"
    return state / "bstune"


def _make_key() -> None:
    """Make the key where there is none.

    Nothing is made in the folder of another user, such as in the old home folder under `sudo`.
    """
    folder = _key_folder()
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if nearest.stat().st_uid not in (os.geteuid(), 0):
            raise _NoKeyError(f"{nearest} belongs to another user")
        for place in (*reversed(folder.parents), folder):
            place.mkdir(0o700, exist_ok=True)
        with _opened_folder(folder) as within, contextlib.suppress(FileExistsError):
            _write_key(within)
    except OSError as error:
        raise _NoKeyError(f"a key cannot be made in {folder}: {error.strerror}") from error


def _write_key(within: int) -> None:
    """Write a key beside the name and link it there, so that it is there whole or not at all.

    Raises:
        FileExistsError: The name is taken already.
    """
    if "key" in os.listdir(within):
        raise FileExistsError
    new = f"key.{secrets.token_hex(8)}"
    key = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=within)
    try:
        os.write(key, secrets.token_bytes(KEY_BYTES))
        os.fsync(key)
        os.link(new, "key", src_dir_fd=within, dst_dir_fd=within)
    finally:
        os.close(key)
        os.unlink(new, dir_fd=within)


def _read_key() -> bytes:
    """Return the key, if only this user can have written and read it."""
    folder = _key_folder()
    path = folder / "key"
    try:
        with _opened_folder(folder) as within:
            # Without O_NONBLOCK a pipe of that name would wait for ever.
            key = os.open("key", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
            try:
                found = os.fstat(key)
                content = os.read(key, KEY_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
            finally:
                os.close(key)
    except FileNotFoundError:
        raise _NoKeyError(f"this user has no key yet ({path})") from None
    except OSError as error:
        raise _NoKeyError(f"the key {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or len(content) != KEY_BYTES:
        raise _NoKeyError(f"{path} is not a key: remove it, and the next search makes a new one")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise _NoKeyError(f"others may read or write the key {path}: remove it, and the next search makes a new one")
    return content


@contextlib.contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """Yield a descriptor of the folder, which must be this user's alone to write."""
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(within)
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            raise _NoKeyError(f"the folder of the key, {folder}, belongs to others or can be written by them")
        yield within
    finally:
        os.close(within)
