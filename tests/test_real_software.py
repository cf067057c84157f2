"""What bench/real_software.py makes of tests' logs, and of the page that explains differences."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import TESTS

from specgen_client.cli import main

sys.path.insert(0, str(TESTS.parent / "bench"))
import check_results
import debian_tree
import real_software

# --- results --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "results"),
    [
        pytest.param(
            "make  check-TESTS\nPASS: greeting-1\nFAIL: last-1\nSKIP: nls\nXFAIL: bad\n"
            "All 4 tests behaved as expected\n",
            {"greeting-1": "PASS", "last-1": "FAIL", "nls": "SKIP", "bad": "XFAIL"},
            id="automake_serial",
        ),
        pytest.param(
            "  1: tar version                                     ok\n"
            " 12: decompress  (gz)                                skipped (decompress.at:3)\n"
            " 13: incremental dumps                               FAILED (incr.at:33)\n"
            " 14: scarce  \t                                     expected failure (scarce.at:1)\n"
            "14 tests were successful.\n",
            {
                "1: tar version": "PASS",
                "12: decompress  (gz)": "SKIP",
                "13: incremental dumps": "FAIL",
                "14: scarce": "XFAIL",
            },
            id="autotest",
        ),
        pytest.param(
            "1..5\nok 1 - reads a file\nnot ok 2 - reads a link\nok 3 - fifo # SKIP no mkfifo\n"
            "not ok 4 - later # TODO\nok\n",
            {
                "1 reads a file": "PASS",
                "2 reads a link": "FAIL",
                "3 fifo": "SKIP",
                "4 later": "XFAIL",
                "": "PASS",
            },
            id="tap",
        ),
        pytest.param(
            "hello world\n\t\t*** zlib test OK ***\n\t\t*** zlib 64-bit test FAILED ***\n"
            "parser ... passed\n",
            {"zlib test": "PASS", "zlib 64-bit test": "FAIL", "parser": "PASS"},
            id="verdicts",
        ),
        pytest.param(
            "features/errors ............. ok     (7 passed)\nok     (16 passed)\n"
            "functions/shell ............. FAILED (7/8 passed)\nvms/library ........ N/A\n"
            "PASS: something of a subdirectory\n"
            "691 Tests in 126 Categories Complete ... No Failures :-)\n",
            {"features/errors": "PASS", "functions/shell": "FAIL", "vms/library": "SKIP"},
            id="verdicts_with_counts",
        ),
        pytest.param("cmp sample1.ref\n", {}, id="none_but_make"),
        pytest.param(
            "large: OK\nlarge: OK\nlarge: FAILED\n",
            {"large": "PASS", "large (2)": "PASS", "large (3)": "FAIL"},
            id="one_name_thrice",
        ),
    ],
)
def test_results_are_read_from_the_log(log: str, results: dict[str, str], tmp_path: Path) -> None:
    assert check_results.read_results(tmp_path, log, 0) == results | {"make": "PASS"}


def test_files_of_results_come_before_the_log(tmp_path: Path) -> None:
    tests = tmp_path / "testsuite"
    tests.mkdir()
    (tests / "8bit.trs").write_text(":test-result: PASS\n:global-test-result: PASS\n")
    (tests / "tap.trs").write_text(":test-result: PASS 1 - one\n:test-result: FAIL 2 - two\n")
    (tests / "gcc.sum").write_text("PASS: gcc.dg/a.c (test)\nUNSUPPORTED: gcc.dg/b.c\n# of 2\n")
    assert check_results.read_results(tmp_path, "PASS: something else\n", 2) == {
        "testsuite/8bit": "PASS",
        "testsuite/tap 1 - one": "PASS",
        "testsuite/tap 2 - two": "FAIL",
        "testsuite/gcc gcc.dg/a.c (test)": "PASS",
        "testsuite/gcc gcc.dg/b.c": "UNSUPPORTED",
        "make": "FAIL",
    }


def test_differences_name_both_results() -> None:
    outside = {"a": "PASS", "b": "PASS", "c": "SKIP", "make": "PASS"}
    inside = {"a": "PASS", "b": "FAIL", "d": "PASS", "make": "FAIL"}
    assert check_results.differences(outside, inside) == {
        "b": ("PASS", "FAIL"),
        "c": ("SKIP", "absent"),
        "d": ("absent", "PASS"),
    }


def test_a_failed_make_counts_where_no_test_tells() -> None:
    outside, inside = {"a": "PASS", "make": "PASS"}, {"a": "PASS", "make": "FAIL"}
    assert check_results.differences(outside, inside) == {"make": ("PASS", "FAIL")}
    assert check_results.differences(outside, outside) == {}


# --- the toolchain --------------------------------------------------------------------


def test_links_through_etc_lead_to_where_they_end(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for directory in ("etc/alternatives", "usr/bin", "sbin"):
        (tree / directory).mkdir(parents=True)
    (tree / "usr/bin/mawk").touch()
    (tree / "sbin/out").touch()
    links = {
        "awk": ("/etc/alternatives/awk", "/usr/bin/mawk"),
        "gone": ("/etc/alternatives/gone", "/usr/bin/gone"),
        "out": ("/etc/alternatives/out", "/sbin/out"),
        "twice": ("/etc/alternatives/twice", "awk"),
        "loop": ("/etc/alternatives/loop", "loop"),
    }
    for name, (target, end) in links.items():
        (tree / "usr/bin" / name).symlink_to(target)
        (tree / "etc/alternatives" / name).symlink_to(end)
    (tree / "usr/bin/sh").symlink_to("mawk")
    for path in list((tree / "usr/bin").iterdir()):
        debian_tree.resolve(path, tree)
    found = {p.name: str(p.readlink()) for p in (tree / "usr/bin").iterdir() if p.is_symlink()}
    assert found == {"awk": "/usr/bin/mawk", "twice": "/usr/bin/mawk", "sh": "mawk"}


def test_a_directory_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    again = debian_tree.reserved(tmp_path / "work")
    with (
        debian_tree.reserved(tmp_path / "work"),
        pytest.raises(debian_tree.Refused, match="is in use"),
    ):
        again.__enter__()
    with debian_tree.reserved(tmp_path / "work"):
        pass


def test_a_directory_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other")
    link = debian_tree.reserved(tmp_path / "link")
    with pytest.raises(debian_tree.Refused, match="belongs to somebody else"):
        link.__enter__()


# --- the request ----------------------------------------------------------------------


def test_the_request_is_valid_and_will_run() -> None:
    request = real_software.build_request(["usr", "hello-2.10", "bin", "lib"], "true")
    words = ["generate", "-", "--format", "binary", "--rootful", "--no-terminal"]
    result = CliRunner().invoke(main, words, input=request.SerializeToString())
    assert (result.exit_code, result.stderr) == (0, "")


# --- the page -------------------------------------------------------------------------

PAGE = """
| Package | Test | Cells | Outside | Inside | Why |
|---|---|---|---|---|---|
| `sed` | `gnulib-tests/*-acl-1.sh` | `*-rootful-seed` | PASS | FAIL | It writes to /tmp. |
| `sed` | `testsuite/panic-tests` | `*-rootless-seed`, `crun-*` | PASS | FAIL | It may write. |

| Package | Something else |
"""


@pytest.mark.parametrize(
    ("package", "test", "cell", "results", "covered"),
    [
        ("sed", "gnulib-tests/test-copy-acl-1.sh", "crun-rootful-seed", ("PASS", "FAIL"), True),
        ("sed", "testsuite/panic-tests", "runc-rootless-seed", ("PASS", "FAIL"), True),
        ("sed", "testsuite/panic-tests", "crun-rootful-nix", ("PASS", "FAIL"), True),
        ("sed", "testsuite/panic-tests", "runc-rootful-seed", ("PASS", "FAIL"), False),
        ("sed", "testsuite/panic-tests", "runc-rootless-seed", ("PASS", "SKIP"), False),
        ("grep", "testsuite/panic-tests", "runc-rootless-seed", ("PASS", "FAIL"), False),
        ("sed", "testsuite/8bit", "runc-rootless-seed", ("PASS", "FAIL"), False),
    ],
    ids=["pattern", "one_of_cells", "other_cells", "cell", "results", "package", "test"],
)
def test_a_row_explains_its_differences_only(
    package: str, test: str, cell: str, results: tuple[str, str], covered: bool
) -> None:
    rows = real_software.explained(PAGE)
    assert len(rows) == 2
    assert any(row.covers(package, test, cell, results) for row in rows) is covered


def test_the_page_explains_cells_that_there_are() -> None:
    cells = [str(cell) for cell in real_software.every_cell()]
    rows = real_software.explained(real_software.PAGE.read_text())
    assert rows
    for row in rows:
        assert row.package in real_software.PACKAGES
        for pattern in row.cells:
            assert any(real_software.matches(cell, pattern) for cell in cells), pattern


def test_an_unknown_cell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        real_software.main(["--cells", "podman-*"])
    assert "no cell is like podman-*: there are runc-rootful-seed, " in capsys.readouterr().err
