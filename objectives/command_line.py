"""A command with places for what a trial sets: `python train.py --batch-size {micro_batch_size}`.

What stands in braces and is no such name is left as it is, since shells, JSON and templates have braces too; one that
is nearly such a name is a slip.
"""

from __future__ import annotations

import difflib
import itertools
import os
import shlex
import shutil
from collections.abc import Collection, Sequence

from ..tuner.core.command_words import PLACE
from ..tuner.core.errors import ArgumentError, ObjectiveError

PLACES = (
    "micro_batch_size",
    "global_batch_size",
    "accumulation_steps",
    "learning_rate",
    "seed",
    "max_samples",
    "max_epochs",
    "device",
    "trial",
)
SHORT = {
    "lr": "learning_rate",
    "bs": "micro_batch_size",
    "batch": "micro_batch_size",
    "batch_size": "micro_batch_size",
}
"""What people write for them."""
_CLOSE = 0.8


def words_of(command: str | Sequence[str]) -> tuple[str, ...]:
    """Return the program and its arguments; a text is split as a shell would, and never given to one.

    Raises:
        ArgumentError: It is empty, its quotes do not match, or an argument is no text.

    Example:
        >>> words_of("python train.py --name 'my run'")
        ('python', 'train.py', '--name', 'my run')
    """
    try:
        words = tuple(shlex.split(command)) if isinstance(command, str) else tuple(command)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"command={command!r} cannot be read: {error}. Expected a command line.") from error
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise ArgumentError(
            f"command={command!r}: expected a program and its arguments, such as "
            "'python train.py --lr {learning_rate}'."
        )
    return words


def places_in(words: Sequence[str], extra: Collection[str] = ()) -> set[str]:
    """Return the names of the places in a command; `extra`: names of other dimensions that are searched.

    Raises:
        ArgumentError: Names in braces are nearly some of them.

    Example:
        >>> sorted(places_in(["--cfg=bs={micro_batch_size}", "{learning_rate}", "{}", "{foo}"]))
        ['learning_rate', 'micro_batch_size']
    """
    named = {name for word in words for name in PLACE.findall(word)}
    known = {*PLACES, *extra}
    slips = {}
    for name in sorted(named - known):
        close = difflib.get_close_matches(name.lower(), sorted(known), 1, _CLOSE)
        if (meant := SHORT.get(name.lower()) or next(iter(close), None)) is not None:
            slips[name] = meant
    if slips:
        raise ArgumentError(
            f"The command has {' and '.join(f'{{{name}}}' for name in slips)}: did you mean "
            f"{' and '.join(f'{{{meant}}}' for meant in slips.values())}? Known are "
            f"{', '.join(f'{{{place}}}' for place in (*PLACES, *extra))}."
        )
    return named & known


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """Return the flag that each place is the value of, where it stands alone behind one.

    Example:
        >>> flags_of(["--lr", "{learning_rate}", "--bs={micro_batch_size}", "--cfg=seed={seed}"])
        {'learning_rate': '--lr', 'micro_batch_size': '--bs'}
    """
    found = {}
    for before, word in itertools.pairwise(words):
        flag, equals, value = word.partition("=")
        if not equals:
            flag, value = before, word
        if flag.startswith("-") and (place := PLACE.fullmatch(value)) is not None:
            found[place.group(1)] = flag
    return found


def check_program(word: str) -> None:
    """Pass if a program of this name can be run.

    Raises:
        ObjectiveError: There is none.
    """
    if PLACE.search(word) or shutil.which(word):
        return
    if os.path.exists(word):
        said = "is a folder" if os.path.isdir(word) else "cannot be run: it is no program, or may not be executed"
        hint = f" For a Python script: python {word} ..." if word.endswith(".py") else ""
    else:
        said, hint = "was not found", ""
        if "/" not in word:
            hint = " It is looked for in the folders that PATH names."
            if " " in word:
                hint = " It holds a space: give the program and its arguments one by one, without quotes around them."
    raise ObjectiveError(f"The command cannot start: {word!r} {said}.{hint} Expected a program to run.")


def script_of(words: Sequence[str]) -> str | None:
    """Return the Python file in a command, or None: what a study is named after, and watched for changes.

    Example:
        >>> script_of(["torchrun", "--nproc-per-node=1", "no/such/train.py"]) is None
        True
    """
    return next((word for word in words if word.endswith(".py") and os.path.isfile(word)), None)


def default_name(words: Sequence[str]) -> str:
    """Return what a study of the command is called: the stem of its script, the module of `-m`, or the program.

    Example:
        >>> default_name(["python", "-m", "project.train"]), default_name(["/usr/bin/python3", "train.py"])
        ('train', 'train')
    """
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    module = next((after for word, after in itertools.pairwise(words) if word == "-m"), None)
    if script is None and module is not None:
        return module.rpartition(".")[2]
    return os.path.splitext(os.path.basename(script or words[0]))[0] or "command"
