"""Paths within the sandbox: which are clean, and which lie under which."""

from __future__ import annotations

import pytest

from specgen_core.paths import nearest_above, path_problems

LEADING = "must be relative to the sandbox's root, without a leading slash"
SLASH = "must not have a doubled or trailing slash"
DOTS = 'must not have "." or ".." as a segment'
NUL = "must not contain a NUL byte"


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b",
        "...",
        ".a",
        "a.",
        "..a",
        "a..",
        "a/.../b",
        "a/.b/b./..c/d..",
        " ",
        "\n",
        "a\n",
        "a/\n",
        "\\",
        "é/\U0001f600",
        "-",
    ],
)
def test_clean(path: str) -> None:
    assert path_problems(path) == []


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        ("/", [LEADING, SLASH]),
        ("//", [LEADING, SLASH]),
        ("/a", [LEADING]),
        ("a/", [SLASH]),
        ("a//b", [SLASH]),
        (".", [DOTS]),
        ("..", [DOTS]),
        ("./a", [DOTS]),
        ("../a", [DOTS]),
        ("a/.", [DOTS]),
        ("a/..", [DOTS]),
        ("a/./b", [DOTS]),
        ("a/../b", [DOTS]),
        ("./", [SLASH, DOTS]),
        ("\0", [NUL]),
        ("a/\0/b", [NUL]),
        ("/..//\0/", [LEADING, SLASH, DOTS, NUL]),
    ],
)
def test_unclean(path: str, rules: list[str]) -> None:
    found = path_problems(path)

    assert [problem.rpartition(", is ")[0] for problem in found] == rules


def test_empty() -> None:
    assert path_problems("") == ["must not be empty"]


@pytest.mark.parametrize(
    ("paths", "roots", "expected"),
    [
        pytest.param([], ["a"], [], id="no_paths"),
        pytest.param(["a"], [], [None], id="no_roots"),
        pytest.param(["a"], ["a"], ["a"], id="equal"),
        pytest.param(["a/b"], ["a"], ["a"], id="under"),
        pytest.param(["a"], ["a/b"], [None], id="above"),
        pytest.param(["ab"], ["a"], [None], id="prefix_of_a_name"),
        pytest.param(["a-b/c"], ["a", "a/b"], [None], id="between_them_in_bytes"),
        pytest.param(["a/b/c"], ["a", "a/b"], ["a/b"], id="longest"),
        pytest.param(["a/c", "a/b/c"], ["a/b", "a"], ["a", "a/b"], id="any_order_of_roots"),
        pytest.param(["b", "a/x", "b/c"], ["a", "b"], ["b", "a", "b"], id="any_order_of_paths"),
        pytest.param(["a/x", "a/x"], ["a", "a"], ["a", "a"], id="twice"),
        pytest.param(["a/\x01"], ["a/\x00", "a"], ["a"], id="control_characters"),
    ],
)
def test_nearest_above(paths: list[str], roots: list[str], expected: list[str | None]) -> None:
    assert nearest_above(paths, roots) == expected
