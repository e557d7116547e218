"""Text that comes from elsewhere, before it is shown."""

from __future__ import annotations

import pytest
from bstune.tuner.plain_text import hide_secrets, one_line, printable, secrets_in
from hypothesis import given
from hypothesis import strategies as st


@given(st.text())
def test_nothing_moves_the_cursor(text: str) -> None:
    """Whatever the text: one line of it is printable, and so is each line of several."""
    assert one_line(text).isprintable()
    assert all(part.isprintable() for line in printable(text).split("\n") for part in line.split("\t"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\x9b2J\x7f", "a\\x9b2J\\x7f"),
        ("line\u2028line", "line line"),
        ("Größe 4×4 µs", "Größe 4×4 µs"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    """And letters of other languages are not."""
    assert one_line(text) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host/runs",
        "postgresql+psycopg://host/runs?user=me&password=s3cret",
        "postgresql://host/runs?sslpassword=s3cret&sslmode=require",
        "mysql://me:p%40@s3cret@host/runs",
        "https://s3cret@host/x",
        "redis://:s3cret@host/0",
        "ftp://host/?access_token=s3cret",
        "connection failed: host=a password='s3cret' dbname=b",
        "PASSWORD = s3cret",
    ],
)
def test_a_secret_is_hidden(url: str) -> None:
    """Before the @ and in parameters, in whatever scheme and in what a driver says."""
    assert "s3cret" not in hide_secrets(f"seen: {url}, and more")
    assert "and more" in hide_secrets(f"seen: {url}, and more")


def test_what_is_no_secret_stays() -> None:
    """A path, an address and an option can still be read."""
    text = (
        "sqlite:///bstune.db postgresql://me@host:5432/runs?connect_timeout=5 val_loss=0.5 key=3 n_tokens=512 tokenizer=a passes=2 me@host"
    )
    assert hide_secrets(text) == text


def test_the_secrets_of_a_url_are_known_in_both_forms() -> None:
    """A driver may repeat either."""
    assert secrets_in("mysql://u:a%2Fb@h/d?password=c%20d") == ("a%2Fb", "a/b", "c%20d", "c d")
    assert secrets_in("sqlite:///bstune.db") == ()
