"""Text from a study, a model, a worker or a server, made harmless before it is shown, pasted or logged.

Such text is data. A control character in it could move the cursor, hide what stands before it, or end the comment of a snippet to
paste; a URL in it could hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

HIDDEN = "***"
_SECRET_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|api_?key|access_?key|private_?key)|pass"
    r"|(?:access|auth|api|bearer|refresh|security|session)?_?token"
)
_SECRET_PARAMETER = re.compile(rf"(?i)(?<![\w.-])({_SECRET_NAME})(\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;,'\")]+)")
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/?#\s@:]*)(?P<password>:(?:[^/?#\s]*|[^\s@]*))?@")
_SHOWS_ITS_USER = re.compile(r"(?i)(postgres|mysql|mariadb)")


def one_line(text: object) -> str:
    r"""Return text as one line that changes nothing on a terminal and holds no secret.

    Example:
        >>> one_line("digits\n\x1b[2J  2")
        'digits \\x1b[2J 2'
    """
    return hide_secrets(_escaped(" ".join(str(text).split())))


def printable(text: object) -> str:
    r"""Return text whose lines and tabs are kept, and which changes nothing else on a terminal and holds no secret.

    Example:
        >>> printable("a\n\x07b")
        'a\n\\x07b'
    """
    lines = str(text).replace("\r\n", "\n").split("\n")
    return hide_secrets("\n".join("\t".join(map(_escaped, line.split("\t"))) for line in lines))


def _escaped(text: str) -> str:
    """Return what is not printable, such as control characters and marks that turn the writing direction, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def hide_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """Return text without passwords: those given, those in URLs, and the values of parameters whose name says so.

    Example:
        >>> hide_secrets("postgresql://me:s3cret@host/runs?sslpassword=x&a=1")
        'postgresql://me:***@host/runs?sslpassword=***&a=1'
    """
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if "@" in text:
        text = _USER_INFO.sub(_without_password, text)
    return _SECRET_PARAMETER.sub(rf"\1\2{HIDDEN}", text) if "=" in text else text


def _without_password(found: re.Match[str]) -> str:
    # A server's user says who may not log in. Elsewhere what stands before the @ may be a token.
    user = found["user"] if _SHOWS_ITS_USER.match(found["scheme"]) or not found["user"] else HIDDEN
    return f"{found['scheme']}{user}{f':{HIDDEN}' if found['password'] else ''}@"


def secrets_in(url: str) -> tuple[str, ...]:
    """Return the passwords in a URL, as they stand there and decoded.

    Example:
        >>> secrets_in("postgresql://me:a%40b@host/runs")
        ('a%40b', 'a@b')
    """
    found = [match["password"][1:] for match in _USER_INFO.finditer(url) if match["password"]]
    found += [match[3] for match in _SECRET_PARAMETER.finditer(url)]
    return tuple(dict.fromkeys(form for secret in found if secret for form in (secret, unquote_plus(secret)) if form != HIDDEN))
