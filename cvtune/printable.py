"""Texts of others (names of files and classes, messages) made fit for a terminal, a line of a log, a cell of CSV."""

from __future__ import annotations

import re

# Control characters, what ends a line elsewhere, what turns the direction of writing, and bytes that are no text.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"\s*[=+\-@]")
_UNDECODED = 0xDC00  # Python reads the byte 0xE9 of a name that is no UTF-8 as '\udce9'


def printable(text: str) -> str:
    r"""The text in one line that shows every character: a line break as '\n', a byte that is no text as '\xe9'."""
    return _HIDDEN.sub(lambda found: _escaped(found[0]), text) if _HIDDEN.search(text) else text


def csv_cell(text: str) -> str:
    """The text as a spreadsheet shows it: one that it would take for a formula begins with an apostrophe.

    Source: OWASP, CSV Injection. Numbers stay, with a sign too.
    """
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def first_line(error: BaseException) -> str:
    """What an error of a library says, as a part of a sentence: its first line, its class if it says nothing."""
    said = str(error).strip()
    return shortened(said.splitlines()[0] if said else type(error).__name__, 300)


def shortened(text: str, most: int = 80) -> str:
    """The text in one line, cut off behind `most` letters."""
    return printable(text if len(text) <= most else f"{text[:most]}...")


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0 <= code - _UNDECODED <= 0xFF:
        return f"\\x{code - _UNDECODED:02x}"
    return letter.encode("unicode_escape").decode()
