"""Builds of real software: Debian packages' own tests, outside and in sandboxes: ``make real``.

Each package is built once, as the build's user in a root file system of Debian's. Then its
tests run in copies of that tree: outside, which is in the same root file system without a
sandbox, and in each cell, which is a runtime, a mode and a profile. Every test that ends
otherwise in a cell is printed. docs/real-builds.md says why some do; one that is not listed
there makes this fail.

It takes root, the network, debootstrap, and what the tests on runtimes take.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from check_results import differences, read_results
from debian_tree import BUILD_GID, BUILD_UID, DebianTree, Refused, reserved
from tvix.build.protos.build_pb2 import BuildRequest
from tvix.castore.protos.castore_pb2 import Node

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from runtimes import CRUN, RUNC, USER, Mode, Runtime, require_runtime, run, specgen  # noqa: E402

PACKAGES = ("gzip", "hello", "patch", "sed", "zlib")
PROFILES = ("seed", "nix")
MODES = {"rootful": Mode.ROOTFUL, "rootless": Mode.USERNS, "unprivileged": Mode.UNPRIVILEGED}
PAGE = ROOT / "docs" / "real-builds.md"

# As Nix has it; the same outside.
ENVIRONMENT = {
    "HOME": "/homeless-shelter",
    "LC_ALL": "C",
    "NIX_BUILD_TOP": "/build",
    "PATH": "/usr/bin:/bin",
    "TEMP": "/build",
    "TEMPDIR": "/build",
    "TMP": "/build",
    "TMPDIR": "/build",
}

_COPY = """
cp -R --preserve=mode,timestamps,links /{source} /build/tree
chmod -R u+w /build/tree
cd /build/tree
"""
# As released, if that builds; else made anew by Autoconf and Automake, with Debian's patches; else
# what can be built: Debian takes files out of some packages, mostly documentation.
_BUILD = """
anew() { [ -e configure.ac ] && autoreconf --force --install; }
built() { { [ ! -e configure ] || sh ./configure; } && make; }
{
    [ -e configure ] || [ ! -e configure.ac ] || anew
    built || { anew && built; } || make --keep-going || [ -e Makefile ]
} >/build/build.log 2>&1 || { tail -n 30 /build/build.log; exit 1; }
"""
_CHECK = """
target=test
if make -qp 2>/dev/null | grep -q '^check:'; then target=check; fi
status=0
make -k "$target" >/build/check.log 2>&1 || status=$?
echo "$status" >/build/status
"""


@dataclass(frozen=True)
class Cell:
    """One way to run a sandbox."""

    runtime: Runtime
    mode: str
    profile: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.mode}-{self.profile}"


def every_cell() -> list[Cell]:
    """Return all cells, in the order in which they are run."""
    return [Cell(r, mode, p) for p in PROFILES for r in (RUNC, CRUN) for mode in MODES]


matches = fnmatch.fnmatchcase  # patterns of a shell, for tests and cells


@dataclass(frozen=True)
class Run:
    """What became of a package's tests somewhere."""

    results: dict[str, str]
    tree: Path
    """Where the tests ran; Automake leaves a log for each there."""
    seconds: float


class CannotTest(Exception):
    """The tests did not come to an end; its text is what was printed last."""


def script(source: str, *, build: bool, check: bool) -> str:
    """Return what the build runs, in /build, with its source at ``/{source}``."""
    parts = (_COPY.format(source=source), _BUILD if build else "", _CHECK if check else "")
    return "".join(parts)


def build_request(names: list[str], text: str) -> BuildRequest:
    """Return the request whose build runs a script, with inputs of these names at /."""
    directory = {"digest": b"d" * 32}
    return BuildRequest(
        inputs=[Node(directory={"name": os.fsencode(name), **directory}) for name in sorted(names)],
        command_args=["/bin/sh", "-e", "-c", text],
        environment_vars=[{"key": k, "value": v.encode()} for k, v in ENVIRONMENT.items()],
        working_dir="build",
        scratch_paths=["build"],
        outputs=["build/check.log", "build/status", "build/tree"],
        constraints={"system": f"{platform.machine()}-linux"},
    )


def run_outside(tree: DebianTree, source: str, text: str, build: Path, *, timeout: float) -> None:
    """Run a script as the build's user, in Debian's own root file system.

    Args:
        tree: the root file system.
        source: the name of an input, to be had as ``/{source}``.
        text: the script.
        build: an empty directory, to be had as /build.
        timeout: seconds.

    Raises:
        CannotTest: it failed, or did not end in time.
    """
    os.chown(build, BUILD_UID, BUILD_GID)
    user = (f"--reuid={BUILD_UID}", f"--regid={BUILD_GID}", "--clear-groups")
    variables = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    # Runtimes have the default action for each signal; ours may ignore some, as nohup has it.
    env = ("env", "--default-signal", "-C", "/build", "-i", *variables)
    words = ("setpriv", *user, *env, "/bin/sh", "-e", "-c", text)
    binds = {tree.inputs / source: f"/{source}", build: "/build"}
    try:
        done = subprocess.run(
            tree.command(binds, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotTest(f"no end after {timeout:.0f} seconds") from None
    if done.returncode:
        raise CannotTest(done.stdout.decode(errors="replace"))


def run_in_cell(
    cell: Cell, request: BuildRequest, inputs: Path, place: Path, *, timeout: float
) -> Path:
    """Write a bundle in a directory, as the user of the cell, run it, and return its /build.

    Raises:
        CannotTest: it could not be written, failed, or did not end in time (seconds).
    """
    mode = MODES[cell.mode]
    if mode is Mode.UNPRIVILEGED:
        shutil.chown(place, USER)
    bundle = place / "bundle"
    words: list[str | Path] = ["bundle", "-", bundle, "--format", "binary", "--inputs", inputs]
    words += ["--no-terminal", "--rootful" if mode is Mode.ROOTFUL else "--rootless"]
    if cell.profile != "seed":
        words += ["--profile", cell.profile]
    if mode is Mode.UNPRIVILEGED:
        written = specgen(mode, *words, stdin=request)
        status, output = written.exit_code, written.output
    else:
        command = (Path(sys.executable).with_name("specgen"), *words)
        done = subprocess.run(
            command, input=request.SerializeToString(), capture_output=True, check=False
        )
        status, output = done.returncode, (done.stdout + done.stderr).decode()
    for line in output.splitlines():
        if status or line.startswith("specgen:"):
            print(f"{cell}: {line}")
    if status:
        raise CannotTest("specgen bundle failed")
    outcome = run(cell.runtime, mode, bundle, timeout=timeout)
    if outcome.exit_code != 0:
        raise CannotTest(outcome.output or f"no end after {timeout:.0f} seconds")
    (scratch,) = (bundle / "scratch").iterdir()
    return scratch


def tested(build: Path, seconds: float) -> Run:
    """Return what the tests in a /build came to."""
    log = (build / "check.log").read_text(errors="replace")
    status = int((build / "status").read_text())
    return Run(read_results(build / "tree", log, status), build / "tree", seconds)


# --- what docs/real-builds.md explains ------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """A row of the page's table: a test, and the cells in which it ends otherwise."""

    package: str
    tests: str
    cells: tuple[str, ...]
    outside: str
    inside: str

    def covers(self, package: str, test: str, cell: str, results: tuple[str, str]) -> bool:
        """Whether this row is about that difference. Tests and cells are patterns of a shell."""
        return (
            package == self.package
            and matches(test, self.tests)
            and any(matches(cell, pattern) for pattern in self.cells)
            and results == (self.outside, self.inside)
        )


def explained(page: str) -> list[Explained]:
    """Return the rows of the table of differences in a page."""
    _, _, section = page.partition("\n| Package | Test | Cells |")
    rows = []
    for line in section.partition("\n\n")[0].splitlines()[2:]:
        package, test, cells, outside, inside, *_ = (
            cell.strip(" `") for cell in line.strip("|").split("|")
        )
        patterns = tuple(cell.strip(" `") for cell in cells.split(","))
        rows.append(Explained(package, test, patterns, outside, inside))
    return rows


# --- the run --------------------------------------------------------------------------


class Session:
    """A run over packages and cells, and what it found."""

    def __init__(self, work: Path, cells: list[Cell], *, whole: bool, timeout: float) -> None:
        """Make the root file system where there is none; ``whole`` builds in each cell too."""
        self._tree = DebianTree(work)
        self._unexplained = 0
        self._work = work
        self._runs = work / "runs"
        self._cells = cells
        self._whole = whole
        self._timeout = timeout
        self._explained = explained(PAGE.read_text())

    def packages(self, names: Sequence[str]) -> int:
        """Test packages, one after the other, and return the exit code of ``main``."""
        versions = ", ".join(f"{runtime} {runtime.version()}" for runtime in (RUNC, CRUN))
        print(f"{versions}, Linux {platform.release()}, Debian {self._tree.release()}")
        not_tested = 0
        for name in names:
            try:
                self._package(name)
            except (Refused, CannotTest) as problem:
                print(f"real_software: {name}: {problem}", file=sys.stderr)
                not_tested += 1
        print(f"{self._unexplained} differences are not explained in {PAGE.relative_to(ROOT)}")
        return 2 if not_tested else int(self._unexplained > 0)

    def _package(self, name: str) -> None:
        """Build a package, run its tests everywhere, and print what they came to."""
        source = self._tree.source(name)
        print(f"\n### {source}\n", flush=True)
        if not self._whole:
            source = self._built(source)
        text = script(source, build=self._whole, check=True)
        request = build_request([*self._tree.toolchain(), source], text)

        def in_cell(cell: Cell, place: Path) -> Path:
            inputs = self._tree.inputs
            return run_in_cell(cell, request, inputs, place, timeout=self._timeout)

        def outside(place: Path) -> Path:
            run_outside(self._tree, source, text, place, timeout=self._timeout)
            return place

        expected = self._run(f"{name}-outside", outside)
        _print_row("where", "PASS", "FAIL", "SKIP", "others", "seconds")
        _print_row(*["---"] * 6)
        _print_counts("outside", expected)
        for cell in self._cells:
            try:
                found = self._run(f"{name}-{cell}", partial(in_cell, cell))
            except CannotTest as problem:
                print(f"\n{cell} did not end:\n{problem}\n", flush=True)
                self._unexplained += 1
                continue
            _print_counts(str(cell), found)
            self._print_differences(name, str(cell), expected, found)
        print(flush=True)

    def _run(self, name: str, build: Callable[[Path], Path]) -> Run:
        place = self._runs / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        start = time.monotonic()
        return tested(build(place), time.monotonic() - start)

    def _built(self, source: str) -> str:
        """Build a source outside, and return the name of the input that the tree then is."""
        built = self._tree.built(source)
        if not built.exists():
            place = self._runs / built.name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            text = script(source, build=True, check=False)
            run_outside(self._tree, source, text, place, timeout=self._timeout)
            # In a user namespace it is somebody else's: all may read it.
            subprocess.run(("chmod", "-R", "a+rX", place / "tree"), check=True)
            (place / "tree").rename(built)
        return built.name

    def _print_differences(self, package: str, cell: str, outside: Run, inside: Run) -> None:
        for test, results in differences(outside.results, inside.results).items():
            known = any(row.covers(package, test, cell, results) for row in self._explained)
            self._unexplained += not known
            log = inside.tree / f"{test.split()[0]}.log"
            where = log if log.exists() else inside.tree.parent / "check.log"
            print(
                f"  {test}: {results[0]} outside, {results[1]} inside,"
                f" {'explained' if known else 'NOT EXPLAINED'}; {where.relative_to(self._work)}",
                flush=True,
            )


def _print_row(*cells: str) -> None:
    print(f"| {cells[0]:28} | " + " | ".join(f"{cell:>7}" for cell in cells[1:]) + " |", flush=True)


def _print_counts(where: str, run_: Run) -> None:
    words = list(run_.results.values())
    counts = [words.count(word) for word in ("PASS", "FAIL", "SKIP")]
    others = len(words) - sum(counts)
    _print_row(where, *map(str, (*counts, others)), f"{run_.seconds:.0f}")


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for.

    The exit code is 1 where a difference is not explained, 2 where a package or all of them
    cannot be tested.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", nargs="*", default=PACKAGES, help="of Debian's sources")
    parser.add_argument(
        "--cells", metavar="PATTERN", default="*", help="just these, such as 'runc-*-seed'"
    )
    parser.add_argument(
        "--build-in-cells", action="store_true", help="configure and build in each as well: slow"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for each of these")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("/var/tmp/specgen-real-software"),
        help="where the root file system is kept, and what the last run left",
    )
    args = parser.parse_args(words)
    every = every_cell()
    cells = [cell for cell in every if matches(str(cell), args.cells)]
    if not cells:
        parser.error(f"no cell is like {args.cells}: there are {', '.join(map(str, every))}")
    try:
        for cell in cells:
            require_runtime(cell.runtime, MODES[cell.mode])
        with reserved(args.work):
            session = Session(args.work, cells, whole=args.build_in_cells, timeout=args.timeout)
            return session.packages(args.package)
    except (Refused, pytest.skip.Exception, pytest.fail.Exception) as problem:
        print(f"real_software: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
