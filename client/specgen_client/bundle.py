"""Writing a whole OCI bundle: a directory that runc and crun run as it stands.

::

    config.json      the spec
    inputs/          one entry for each input: empty, a copy, or a link to a directory
    root/            the skeleton of the root file system: mount points, etc/passwd ...
    scratch/NAME/    what the build may write to, and where its outputs come to lie

Everything is made in a new directory with nothing in it, so no path of a request can lead
out of the bundle, and is put in place by renaming once it is complete.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import read_request
from tvix.build.protos.build_pb2 import BuildRequest

from .bundle_error import BundleError
from .copying import Progress, write_inputs
from .files import write_new
from .given_spec import decoded
from .host_checks import host_problems
from .host_rule import HostBuild
from .owners import build_owner, close_to_others, give_away, has_user_namespace
from .placing import new_contents
from .skeleton import Tree, tree_of

__all__ = ["BundleError", "write_bundle"]


def write_bundle(
    request: BuildRequest,
    directory: Path,
    *,
    spec: SpecJSON,
    inputs: Path | None = None,
    copy_inputs: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write the bundle of a build request, whole or not at all.

    Args:
        request: what is to be built.
        directory: where to write it: a new directory, or one that is empty.
        spec: what the service, or ``specgen_core.answer``, answered to the request; with
            ``skeleton`` among the options.
        inputs: a directory that holds the inputs, each under its name.
        copy_inputs: copy them, instead of making ``inputs/`` a link to that directory.
        force: replace the bundle that is in the directory. What else is in it stays.
        progress: what to call after each input that was copied.

    Returns:
        What will keep it from running on this host: a sentence each, with its code behind it.

    Raises:
        InvalidRequest: the request breaks rules.
        BundleError: the request asks for a file where a directory must be, or the like; or
            an input cannot be copied.
        FileExistsError: the directory is not empty, and ``force`` is not set.
        OSError: it cannot be written.
    """
    read = read_request(request)
    config = decoded(spec.json)
    tree = tree_of(read, spec, inputs)
    owner = build_owner(config)
    problems = [
        *host_problems(
            HostBuild(
                request=read,
                spec=config,
                bundle=directory.absolute(),
                inputs=inputs,
                copied=copy_inputs,
                said={found.code for found in spec.diagnostics},
                min_memory=request.constraints.min_memory,
            )
        )
    ]
    if force and inputs is not None and inputs.resolve().is_relative_to(directory.resolve()):
        raise BundleError(f"{inputs} lies in {directory}, the bundle that is to be replaced")
    as_root = os.geteuid() == 0
    with new_contents(
        directory, force=force, admit=lambda place: close_to_others(place, config)
    ) as fd:
        _write_tree(tree, fd, owner if as_root else None)
        write_inputs(read, fd, inputs, copy=copy_inputs, progress=progress)
        write_new(fd, "config.json", spec.json.encode())
        if not as_root and has_user_namespace(config):
            give_away(fd, owner)
    return problems


def _write_tree(tree: Tree, fd: int, owner: tuple[int, int] | None) -> None:
    try:
        tree.write(fd, owner)
    except OSError as error:
        if owner is None or error.errno != errno.EINVAL:
            raise
        raise BundleError(
            "this user namespace has too few ids, see /proc/self/uid_map and gid_map: the"
            f" build's uid {owner[0]} or gid {owner[1]} is not among them"
        ) from None
