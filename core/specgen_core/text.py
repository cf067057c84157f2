"""Text from requests, servers and certificates, made safe to print."""

from __future__ import annotations

__all__ = ["MOST_BYTES_A_CHARACTER", "printable", "quoted"]

MOST_BYTES_A_CHARACTER = 4
"""In UTF-8."""

_MOST_CHARS = 60


def printable(text: str, *, most: int | None = None) -> str:
    """Return a text on one line, without what would drive a terminal.

    What is not printable is escaped, as in Python. Of a text of more than ``most``
    characters, there is just the beginning, and dots.
    """
    cut = text if most is None else text[:most]
    if not cut.isprintable():
        cut = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut
        )
    return cut if most is None or len(text) <= most else f"{cut}..."


def quoted(text: str) -> str:
    """Return the beginning of a text, in double quotes, for a sentence."""
    cut = text[:_MOST_CHARS]
    escaped = printable(cut).replace('"', '\\"')
    return f'"{escaped}"' + ("..." if cut != text else "")
