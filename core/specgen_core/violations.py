"""What is wrong with a request or with its options.

::

    ValueError
     ├─ InvalidRequest      it was read, and breaks rules: all of them are listed
     └─ UnreadableMessage   the bytes are no such message
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from .text import quoted

__all__ = ["NO_NUL", "InvalidRequest", "UnreadableMessage", "Violation", "Violations"]

NO_NUL = "must not contain a NUL byte"
"""What is said of a text that C's functions would end in."""


class Violation(msgspec.Struct, frozen=True):
    """One broken rule."""

    field: str
    """A path into the message, such as ``inputs[3].directory.name``."""
    description: str
    """The rule, and what was found instead."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class InvalidRequest(ValueError):
    """A request or its options break at least one rule.

    ``violations`` has them in the order of the message's fields; ``total`` is how many
    were found, which is more where they were too many to keep.
    """

    def __init__(self, violations: list[Violation], total: int) -> None:
        super().__init__(violations, total)
        self.violations = violations
        self.total = total

    def __str__(self) -> str:
        lines = list(map(str, self.violations))
        if self.total > len(lines):
            lines.append(f"and {self.total - len(lines)} more violations")
        return "\n".join(lines)


class UnreadableMessage(ValueError):
    """Bytes that do not parse as the message they should be."""

    def __init__(self, message_type: str) -> None:
        super().__init__(
            f"not a {message_type}: the bytes do not parse, or a string field in them is not UTF-8"
        )


_MOST_KEPT = 10_000  # a message of 64 MiB can break a rule thirty million times


class Violations:
    """The violations found so far; of more than ``_MOST_KEPT``, just their number."""

    def __init__(self) -> None:
        self._kept: list[Violation] = []
        self._total = 0

    def add(self, field: str, description: str) -> None:
        """Note that ``field`` breaks a rule."""
        self._total += 1
        if len(self._kept) < _MOST_KEPT:
            self._kept.append(Violation(field, description))

    def check_sorted(self, field: str, keys: list[str], *, by: str = "") -> None:
        """A list MUST be sorted by bytes; UTF-8 sorts as its code points do."""
        if keys != sorted(keys):
            before, after = next(pair for pair in pairwise(keys) if pair[0] > pair[1])
            self.add(
                field,
                f"must be sorted{by and ' ' + by}, bytewise: "
                f"{quoted(after)} must not come after {quoted(before)}",
            )

    def raise_if_any(self) -> None:
        """Raise InvalidRequest unless there are none."""
        if self._total:
            raise InvalidRequest(self._kept, self._total)
