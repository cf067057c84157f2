"""What a package's own tests said: read from the tree that they ran in, and from their log.

Four kinds of harness write down each test: Automake's (a .trs file a test), DejaGnu (.sum
files), and by lines of their log Autotest and TAP. Of any other the log's lines that end in
a verdict are taken. Of the forms of a log, the one with the most results counts. All have the
exit status of make besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["MAKE", "differences", "read_results"]

MAKE = "make"
"""The name under which the exit status of make is a result, PASS or FAIL."""

Results = dict[str, str]
"""By test: PASS, FAIL, SKIP, XFAIL, XPASS, ERROR, or a word of DejaGnu's."""

_ABSENT = "absent"


def read_results(tree: Path, log: str, status: int) -> Results:
    """Return the results of all tests.

    Args:
        tree: the directory that was built and tested in.
        log: what the test target of make printed.
        status: its exit status.
    """
    found = list(_from_files(tree))
    if not found:
        lines = log.splitlines()
        forms = (_automake, _autotest, _tap, _verdicts)
        found = max((list(form(lines)) for form in forms), key=len)
    return _numbered(found) | {MAKE: "PASS" if status == 0 else "FAIL"}


def differences(outside: Results, inside: Results) -> dict[str, tuple[str, str]]:
    """Return the tests that ended otherwise inside, each with both results.

    The status of make is one where nothing else is: it follows from the tests.
    """
    differ = {
        name: (outside.get(name, _ABSENT), inside.get(name, _ABSENT))
        for name in sorted(outside.keys() | inside.keys())
        if outside.get(name) != inside.get(name)
    }
    return {name: both for name, both in differ.items() if name != MAKE or len(differ) == 1}


def _numbered(found: Iterable[tuple[str, str]]) -> Results:
    """Tell tests of one name apart by number, from the second on."""
    results: Results = {}
    for name, result in found:
        number, unique = 1, name
        while unique in results:
            number += 1
            unique = f"{name} ({number})"
        results[unique] = result
    return results


# --- files ----------------------------------------------------------------------------

_WORDS = "PASS|FAIL|SKIP|XFAIL|XPASS|ERROR"
_DEJAGNU_WORDS = "PASS|FAIL|XFAIL|XPASS|KFAIL|KPASS|ERROR|UNRESOLVED|UNTESTED|UNSUPPORTED"


def _from_files(tree: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(tree.rglob("*.trs")):
        # Automake manual, "Log files generation and test results recording"
        test = str(path.relative_to(tree).with_suffix(""))
        lines = path.read_text(errors="replace")
        for word, rest in re.findall(rf"^:test-result:\s*({_WORDS})\b(.*)$", lines, re.MULTILINE):
            yield f"{test} {rest.strip()}".strip(), word
    for path in sorted(tree.rglob("*.sum")):
        test = str(path.relative_to(tree).with_suffix(""))
        lines = path.read_text(errors="replace")
        for word, rest in re.findall(rf"^({_DEJAGNU_WORDS}): (.+)$", lines, re.MULTILINE):
            yield f"{test} {rest.strip()}", word


# --- lines of the log -----------------------------------------------------------------


def _automake(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read the serial harness of Automake, which writes no .trs files."""
    for line in lines:
        if match := re.fullmatch(rf"({_WORDS}): (\S.*)", line):
            yield match[2].strip(), match[1]


_AUTOTEST_WORDS = {"ok": "PASS", "skipped": "SKIP", "FAILED": "FAIL"}


def _autotest(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read lines such as `` 12: incremental dumps            FAILED (incr.at:33)``."""
    for line in lines:
        pattern = r"\s*(\d+: .+?)\s+(?:(ok|skipped|FAILED)|expected failure)( \(.*\))?"
        if match := re.fullmatch(pattern, line):
            yield match[1], _AUTOTEST_WORDS[match[2]] if match[2] else "XFAIL"


def _tap(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read lines such as ``not ok 3 - reads a symlink # TODO later``, where there is a plan."""
    lines = list(lines)
    if not any(re.fullmatch(r"1\.\.\d+( .*)?", line) for line in lines):
        return
    for line in lines:
        if match := re.fullmatch(r"(not )?ok\b\s*(\d*)\s*-?\s*([^#]*)(?:#\s*(\w+).*)?", line):
            failed, number, name, directive = match.groups()
            word = "FAIL" if failed else "PASS"
            if (directive or "").upper() == "SKIP":
                word = "SKIP"
            elif (directive or "").upper() == "TODO":
                word = "X" + word
            yield f"{number} {name}".strip(), word


_VERDICTS = {"ok": "PASS", "pass": "PASS", "passed": "PASS", "n/a": "SKIP", "skipped": "SKIP"}


def _verdicts(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read lines such as ``*** zlib test OK ***`` or ``features/errors .... ok    (7 passed)``."""
    words = "ok|pass|passed|n/a|skipped|fail|failed"
    name = rf"(?!({words})\b)\w.*?"
    verdict = re.compile(rf"\W*({name})[\W_]+({words})(\s+\(.*\))?\W*", re.IGNORECASE)
    for line in lines:
        if match := verdict.fullmatch(line):
            yield match[1], _VERDICTS.get(match[3].lower(), "FAIL")
