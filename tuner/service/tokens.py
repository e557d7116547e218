"""Who may do what: tokens from a file or the environment, compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ArgumentError

VARIABLE = "BSTUNE_TOKENS"
LEAST = 16
"""Characters of a token."""
MOST_BYTES = 1 << 20
EXPECTED = (
    f"Expected one client a line, NAME read|write TOKEN, the token of at least {LEAST} characters; # begins a comment"
)


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        name: Of the token; empty where the service needs none.
        may_write: Whether it may change anything.
    """

    name: str
    may_write: bool


class Tokens:
    """The tokens that the service takes; none at all lets everybody write."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Read the tokens; only their hashes are kept.

        Raises:
            ArgumentError: A line is no token; the message does not show it.
        """
        self._hashes: list[tuple[bytes, Caller]] = []
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 3 or words[1] not in ("read", "write") or len(words[2]) < LEAST or not words[2].isascii():
                raise ArgumentError(f"Line {number} of the tokens is wrong. {EXPECTED}.")
            if words[0] in {caller.name for _, caller in self._hashes} or not words[0].isidentifier():
                raise ArgumentError(f"Line {number} of the tokens: expected a new name of letters, digits and _.")
            self._hashes.append((_hash(words[2]), Caller(words[0], words[1] == "write")))

    def __bool__(self) -> bool:
        """Whether a token is needed."""
        return bool(self._hashes)

    def caller(self, token: str | None) -> Caller | None:
        """Return whose token this is, or None; it takes as long whichever it is."""
        if not self._hashes:
            return Caller("", True)
        given, found = _hash(token or ""), None
        for known, caller in self._hashes:
            if hmac.compare_digest(given, known):
                found = caller
        return found


def read_tokens(path: Path | None) -> Tokens:
    """Return the tokens of a file, else of the variable BSTUNE_TOKENS, where lines may also be parted by `;`.

    Raises:
        ArgumentError: The file cannot be read, others may read it, or it holds something else.
    """
    if path is None:
        return Tokens(os.environ.get(VARIABLE, "").replace(";", "\n").splitlines())
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or path.stat().st_size > MOST_BYTES:
            raise ArgumentError(f"--token-file {path}: expected a plain file of at most 1 MiB.")
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise ArgumentError(f"--token-file {path}: others can read or change it. Run `chmod 600 {path}`.")
        content = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--token-file {path} cannot be read: {error}. {EXPECTED}.") from error
    tokens = Tokens(content.splitlines())
    if not tokens:
        raise ArgumentError(f"--token-file {path} holds no token. {EXPECTED}.")
    return tokens


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
