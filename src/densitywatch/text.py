"""Text from outside made safe to keep and to show: names of files, messages of libraries."""

from __future__ import annotations

import unicodedata

MAX_PATH = 4096


def as_text(name: str) -> str:
    """`name` as valid UTF-8 of at most MAX_PATH characters; bytes that are no UTF-8 show as \\xff."""
    # cut first, so that a name of a gigabyte is not copied three times
    long = len(name) > MAX_PATH
    name = name[: MAX_PATH + 1] if long else name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "backslashreplace")
    text = raw.decode("utf-8", "backslashreplace")
    return text if len(text) <= MAX_PATH and not long else text[: MAX_PATH - 1] + "…"


def one_line(error: BaseException) -> str:
    """A library's exception as a short clause."""
    return as_text(" ".join(str(error)[:2000].split())[:200]) or type(error).__name__


def visible(text: object) -> str:
    """`text` with control characters, and those that change the reading direction, shown by their codes, as \\x1b.

    So a terminal does not act on them (ESC and its C1 forms, CR, BEL). Visible characters stay.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else char.encode("unicode_escape").decode()
        for char in text
    )
