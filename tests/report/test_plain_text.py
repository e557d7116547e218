"""Text that comes from elsewhere, before it is shown."""

from __future__ import annotations

import time

import pytest
from bstune.tuner.core.plain_text import hide_secrets, one_line, printable, secrets_in
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
        "postgresql://me:a/b?c#s3cret@host/runs",
        "postgresql://host/runs?password=a,b's3cret&user=me",
    ],
)
def test_a_secret_is_hidden(url: str) -> None:
    """Before the @ and in parameters, in whatever scheme and in what a driver says."""
    assert "s3cret" not in hide_secrets(f"seen: {url}, and more")
    assert "and more" in hide_secrets(f"seen: {url}, and more")


def test_what_is_hidden_stays_as_it_is() -> None:
    """To hide it once more takes nothing away."""
    once = hide_secrets("postgresql://me:a@host/runs?password=b: 3 studies, https://c@host/x, password='d'.")
    assert hide_secrets(once) == once
    assert (
        hide_secrets("postgresql://host/runs?password=***: 3 studies")
        == "postgresql://host/runs?password=***: 3 studies"
    )


def test_a_given_secret_is_hidden_where_it_stands() -> None:
    """A short one as a word: within other words it would be told by what is missing."""
    assert hide_secrets("me: no login as me@host, some time", ["me"]) == "***: no login as ***@host, some time"
    assert hide_secrets("tok-12345678x", ["12345678"]) == "tok-***x"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6 + "@=",
        "postgres://:" * 10**5 + "@",
        "password " * 10**5 + "=",
        "?password=" * 10**5,
        "=@" + "a.-" * 10**5,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """A model may print a megabyte of what looks like an address."""
    begun_s = time.process_time()  # Of this process alone, whatever else the machine does.

    shown = printable(text)

    assert len(shown) <= len(text)
    assert time.process_time() - begun_s < 15


def test_a_long_text_is_cut_to_a_line() -> None:
    """What it was can still be seen."""
    assert one_line("ab\n" * 10**6, 20) == "ab ab ab ab ab a ..."


def test_what_is_no_secret_stays() -> None:
    """A path, an address and an option can still be read."""
    address = "sqlite:///bstune.db postgresql://me@host:5432/runs?connect_timeout=5 me@host"
    text = f"{address} val_loss=0.5 key=3 n_tokens=512 tokenizer=a passes=2"
    assert hide_secrets(text) == text


def test_the_secrets_of_a_url_are_known_in_both_forms() -> None:
    """A driver may repeat either."""
    assert secrets_in("mysql://u:a%2Fb@h/d?password=c%20d") == ("a%2Fb", "a/b", "c%20d", "c d")
    assert secrets_in("postgresql://u:a b@h/d?pass%77ord=c") == ("a b", "c")
    assert secrets_in("sqlite:///bstune.db") == ()
