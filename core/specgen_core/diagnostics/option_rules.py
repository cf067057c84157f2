"""Rules about options: id mappings, the terminal and limits."""

from __future__ import annotations

from collections.abc import Iterator

from ..options import IdMapping
from ..spec import BUILD_GID, BUILD_UID
from .rule import Build, Findings, Rules

RULES = Rules()


def _mappings(build: Build) -> Iterator[tuple[str, tuple[IdMapping, ...], int]]:
    if build.options.rootless:
        yield "uid", build.options.uid_mappings, BUILD_UID
        yield "gid", build.options.gid_mappings, BUILD_GID


@RULES.add(
    "no-id-mappings",
    'a rootless spec without {missing} mappings: runc refuses it ("User namespaces enabled, but',
    'no {kind} mappings found"), and crun run by root fails ("{crun}"). Give {given}, or ask for',
    "a rootful spec",
    proven_by=("test_no_id_mappings",),
)
def _no_id_mappings(build: Build) -> Findings:
    """The spec is rootless, and one of the lists of id mappings is empty."""
    missing = [(kind, build_id) for kind, mappings, build_id in _mappings(build) if not mappings]
    if missing:
        kinds = [kind for kind, _ in missing]
        last, build_id = missing[-1]  # crun sets the group first, runc looks at uids first
        yield (
            f"options.{kinds[0]}_mappings",
            {
                "missing": " and ".join(kinds),
                "kind": kinds[0],
                "crun": f"cannot setres{last} to {build_id}",
                "given": " and ".join(f"{kind}_mappings" for kind in kinds),
            },
        )


def _unmapped(build: Build, wanted: int | None) -> Findings:
    for kind, mappings, build_id in _mappings(build):
        id_ = build_id if wanted is None else wanted
        if mappings and not any(mapping.covers(id_) for mapping in mappings):
            yield f"options.{kind}_mappings", {"kind": kind, "id": id_, **_OF_KIND[kind]}


_OF_KIND = {
    "uid": {"who": "user", "crun": "runs only where it need not make a mount point"},
    "gid": {"who": "group", "crun": "runs it"},
}


@RULES.add(
    "root-not-mapped",
    "{kind} 0 of the sandbox, as which the runtime prepares it, is in no mapping: runc refuses",
    '("User namespaces enabled, but no {who} mapping found"), and crun {crun}. Map it to an id',
    "that the runtime may use",
    proven_by=("test_root_uid_not_mapped", "test_root_gid_not_mapped"),
)
def _root_not_mapped(build: Build) -> Findings:
    """Mappings are given, and id 0 of the sandbox is in none."""
    yield from _unmapped(build, 0)


@RULES.add(
    "build-user-not-mapped",
    "{kind} {id}, which the build runs as, is in no mapping: runc and crun cannot switch to it",
    '("cannot set {kind} to unmapped user in user namespace", "cannot setres{kind} to {id}").',
    "Map it to a subordinate id",
    proven_by=("test_build_user_not_mapped", "test_build_group_not_mapped"),
)
def _build_user_not_mapped(build: Build) -> Findings:
    """Mappings are given, and uid 1000 or gid 100, the build's own, is in none."""
    yield from _unmapped(build, None)


@RULES.add(
    "needs-terminal",
    'the spec asks for a terminal: without one, runc fails ("open /dev/tty: no such device or',
    'address") and so does crun ("tcgetattr: Inappropriate ioctl for device"). Run it on a',
    "terminal or with --console-socket, or set terminal to false",
    proven_by=("test_needs_terminal",),
)
def _needs_terminal(build: Build) -> Findings:
    """``terminal`` is set: the default, as the reference has it."""
    if build.options.terminal:
        yield "options.terminal", {}


_LEAST_MEMORY = 6 * 1024 * 1024  # Docker, daemon/daemon_unix.go: linuxMinMemory


@RULES.add(
    "tiny-memory-limit",
    "{memory} bytes are fewer than a runtime may itself need to start the build: runc takes some",
    '2 MiB, and fails with less ("unable to set memory limit"). The number is of bytes; on the',
    "command line it may have a suffix, as in --memory 512M",
    proven_by=("test_tiny_memory_limit",),
)
def _tiny_memory_limit(build: Build) -> Findings:
    """A limit of memory is set, and is below 6 MiB, the least that Docker takes."""
    memory = build.options.resources.memory_bytes
    if 0 < memory < _LEAST_MEMORY:
        yield "options.resources.memory_bytes", {"memory": memory}
