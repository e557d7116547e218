"""Text from a study, a model, a worker or a server, made harmless before it is shown, pasted or logged.

Such text may come from anyone. A control character in it could move the cursor, hide what stands before it, or end the
comment of a snippet to paste; a URL in it could contain a password.
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
# In the query of a URL a value goes to the next &; elsewhere, as in what a driver says, to the next mark. What is
# hidden already stays.
_HIDDEN_ALREADY = r"(?!\*\*\*(?:[:;,.'\")&\s#]|$))"
_SECRET_PARAMETER = re.compile(
    rf"(?i)(?<=[?&])(?P<query>(?:{_SECRET_NAME})=){_HIDDEN_ALREADY}[^&\s#]+"
    rf"|(?<![\w.-])(?P<name>(?:{_SECRET_NAME})\s*=\s*){_HIDDEN_ALREADY}(?:'[^']*'|\"[^\"]*\"|[^\s&;,'\")]+)"
)
# A database's password may contain a slash, as SQLAlchemy reads it; elsewhere the first slash begins the path. All
# lengths are bounded, so that no text takes long.
_USER_INFO = re.compile(
    r"(?i)(?P<server>(?:postgres|mysql|mariadb)[\w+]{0,40}://[^/?#\s@:]{0,4000})"
    r"(?P<password>:[^\s@]{0,500}(?:@[^/?#\s@]{0,500})*)?@"
    r"|(?P<other>[a-z][\w+.-]{0,40}://)(?P<user>[^/?#\s@:]{0,4000})(?P<other_password>:[^/?#\s]{0,4000})?@"
)
_WHOLE_URL = re.compile(r"[\w+]+://[^/@:]*:(?P<password>[^@]+)@")
_LONG = 8
"""A secret of fewer characters is hidden only where it is a whole word: hiding it inside words would give it away."""


def one_line(text: object, most: int = 2000) -> str:
    r"""Return text as one line of at most so many characters, safe on a terminal and with every secret hidden.

    Example:
        >>> one_line("digits\n\x1b[2J  2")
        'digits \\x1b[2J 2'
    """
    line = hide_secrets(_escaped(" ".join(str(text)[: 4 * most].split())))
    return line if len(line) <= most else f"{line[: most - 4]} ..."


def of_type(value: object) -> str:
    """Return the name of a value's type with its article, as messages say what they got.

    Example:
        >>> of_type(1), of_type("x")
        ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def printable(text: object) -> str:
    r"""Return text whose lines and tabs are kept, and which changes nothing else on a terminal and contains no secret.

    Example:
        >>> printable("a\n\x07b")
        'a\n\\x07b'
    """
    lines = str(text).replace("\r\n", "\n").split("\n")
    return hide_secrets("\n".join("\t".join(map(_escaped, line.split("\t"))) for line in lines))


def _escaped(text: str) -> str:
    """Return text with all that is not printable as escapes, such as control characters and writing-direction marks."""
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
        found = re.escape(secret) if len(secret) >= _LONG else rf"(?<!\w){re.escape(secret)}(?!\w)"
        text = re.sub(found, HIDDEN, text)
    if "@" in text:
        text = _USER_INFO.sub(_without_password, text)
    return (
        _SECRET_PARAMETER.sub(lambda found: f"{found['query'] or found['name']}{HIDDEN}", text) if "=" in text else text
    )


def _without_password(found: re.Match[str]) -> str:
    if found["server"]:  # Its user says who may not log in.
        return f"{found['server']}{f':{HIDDEN}' if found['password'] else ''}@"
    # Elsewhere what comes before the @ may be a token.
    return f"{found['other']}{found['user'] and HIDDEN}{f':{HIDDEN}' if found['other_password'] else ''}@"


def secrets_in(url: str) -> tuple[str, ...]:
    """Return the passwords in a URL, as written and decoded.

    Example:
        >>> secrets_in("postgresql://me:a%40b@host/runs")
        ('a%40b', 'a@b')
    """
    found = [match["password"][1:] for match in _USER_INFO.finditer(url) if match["password"]]
    found += [match["other_password"][1:] for match in _USER_INFO.finditer(url) if match["other_password"]]
    found += [match["password"] for match in _WHOLE_URL.finditer(url)]
    # By its decoded name: the name itself may be written with escapes.
    items = [item.partition("=") for item in url.partition("?")[2].split("&")]
    found += [value for name, _, value in items if re.fullmatch(_SECRET_NAME, unquote_plus(name), re.IGNORECASE)]
    return tuple(
        dict.fromkeys(form for secret in found if secret for form in (secret, unquote_plus(secret)) if form != HIDDEN)
    )
