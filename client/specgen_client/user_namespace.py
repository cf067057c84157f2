"""Doing things as one's subordinate ids, which takes a user namespace and no root.

The kernel lets only newuidmap and newgidmap (setuid root, from the uidmap package) map
subordinate ids: see user_namespaces(7), "Defining user and group ID mappings".
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence

from specgen_commands.host_ids import NoSubordinateIds, all_own_ids
from specgen_core import IdMapping

__all__ = ["CannotMap", "chown_to_subordinate", "remove_as_subordinate"]


class CannotMap(Exception):
    """The user has no such subordinate ids, or the host no tools to map them with."""


def chown_to_subordinate(uid: int, gid: int, directory: int, *, only_itself: bool = False) -> None:
    """Give what is in a directory to ids of the host; links are not followed.

    Args:
        uid: of the host.
        gid: of the host.
        directory: its descriptor.
        only_itself: give the directory itself, and nothing of what is in it.

    Raises:
        CannotMap: the ids are not the user's own nor subordinate ones of it, or cannot be
            mapped.
    """
    uids, gids = _own_ids()
    owner = f"{_seen_from_within(uid, uids)}:{_seen_from_within(gid, gids)}"
    if only_itself:
        _run(("chown", owner, "."), directory, uids, gids)
    elif names := os.listdir(directory):
        everything = ("chown", "--recursive", "--no-dereference", owner, "--", *names)
        _run(everything, directory, uids, gids)


def remove_as_subordinate(directory: int, name: str) -> None:
    """Remove a tree in a directory, whichever of the user's ids its parts belong to.

    Raises:
        CannotMap: the ids cannot be mapped, or part of it belongs to somebody else.
    """
    uids, gids = _own_ids()
    remove = ("rm", "--recursive", "--force", "--one-file-system", "--", name)
    _run(remove, directory, uids, gids)


def _own_ids() -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    try:
        return all_own_ids()
    except (NoSubordinateIds, OSError) as error:
        raise CannotMap(str(error)) from None


def _seen_from_within(host_id: int, mappings: Iterable[IdMapping]) -> int:
    for mapping in mappings:
        if mapping.host_id <= host_id < mapping.host_id + mapping.size:
            return mapping.container_id + host_id - mapping.host_id
    raise CannotMap(f"{host_id} is no subordinate id of this user")


def _run(
    command: Sequence[str],
    directory: int,
    uids: Sequence[IdMapping],
    gids: Sequence[IdMapping],
) -> None:
    """Run a command in a directory, as root of a new user namespace."""
    # The namespace must exist before its ids can be mapped, from outside: so the shell in
    # it says that it is there, and waits. What it executes then has all capabilities
    # there, being the namespace's root.
    waiting = ("sh", "-c", 'echo; read -r _ && exec "$@" </dev/null', "sh", *command)
    try:
        with subprocess.Popen(  # noqa: S603 - no word of it comes from a request
            ("unshare", "--user", "--", *waiting),  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=f"/proc/self/fd/{directory}",
        ) as child:
            assert child.stdout is not None  # noqa: S101
            problem = child.stdout.readline().strip().decode(errors="replace")
            problem = (
                problem or _map(child.pid, "newuidmap", uids) or _map(child.pid, "newgidmap", gids)
            )
            output, _ = child.communicate(b"" if problem else b"\n")
    except OSError as error:
        raise CannotMap(f"cannot run {error.filename}: {error.strerror}") from None
    if problem or child.returncode:
        raise CannotMap(problem or output.decode(errors="replace").strip())


def _map(pid: int, tool: str, mappings: Sequence[IdMapping]) -> str:
    """Map ids in the process's namespace; return what went wrong."""
    numbers = [str(n) for m in mappings for n in (m.container_id, m.host_id, m.size)]
    try:
        done = subprocess.run(  # noqa: S603
            (tool, str(pid), *numbers), capture_output=True, check=False
        )
    except OSError as error:
        return f"cannot run {tool}: {error.strerror}"
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""
