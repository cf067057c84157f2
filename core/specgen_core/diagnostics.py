"""What is valid and still will not run, or not as its caller thinks.

Each finding was seen on real runtimes, runc 1.1.5 and crun 1.8.1;
tests/test_diagnostics_on_runtimes.py shows each of them again, and docs/diagnostics.md
lists them. What depends on the builder's host alone is not said here: this room knows
the request and the options only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Literal, TypeAlias, get_args

import msgspec

from .memo import Memo
from .options import IdMapping, SpecOptions
from .paths import nearest_above
from .process import BUILD_GID, BUILD_UID, NOFILE
from .request import KNOWN_SANDBOXES, LARGEST_SANDBOX, Constraints, Request, Sandbox

__all__ = ["CODES", "Diagnostic", "diagnose"]

Code: TypeAlias = Literal[
    "no-id-mappings",
    "root-not-mapped",
    "build-user-not-mapped",
    "needs-terminal",
    "argument-too-long",
    "arguments-too-long",
    "command-without-path",
    "unusable-working-dir",
    "symlink-input",
    "shadowed-scratch",
    "shadowed-input",
    "mount-over-root",
    "mount-over-proc",
    "mount-over-sys",
    "mount-over-dev",
    "mount-in-input",
    "file-over-directory",
    "private-tmp",
    "too-many-mounts",
    "path-too-long",
    "output-is-scratch",
    "read-only-output",
    "misplaced-additional-file",
]

CODES: tuple[str, ...] = get_args(Code)
"""Every code there is, as docs/diagnostics.md lists them."""


class Diagnostic(msgspec.Struct, frozen=True, cache_hash=True):
    """Why a valid spec will not run as it stands."""

    code: Code
    """Stable, in kebab-case."""
    field: str
    """The request's field or the option that it is about."""
    message: str
    """What will happen on which runtime, and what to do."""


_MOST_OF_A_KIND = 20


def diagnose(request: Request, options: SpecOptions) -> list[Diagnostic]:
    """Return what will keep the spec from running, at most 20 findings of a kind.

    The checks come before every spec, so those that cannot find anything are left out.
    None looks at each input.
    """
    found = list(_of_options(options))
    checks = _checks_of[request.sandbox, options]
    for check in checks.if_plain if _is_plain(request) else checks.otherwise:
        found += islice(check(request, options), _MOST_OF_A_KIND)
    return found


# --- options --------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _of_options(options: SpecOptions) -> tuple[Diagnostic, ...]:
    return (*_id_mappings(options), *_terminal(options))


def _id_mappings(options: SpecOptions) -> Iterator[Diagnostic]:
    if not options.rootless:
        return
    kinds = (
        ("uid", options.uid_mappings, BUILD_UID),
        ("gid", options.gid_mappings, BUILD_GID),
    )
    missing = [kind for kind, mappings, _ in kinds if not mappings]
    if missing:
        # both runtimes stop at the first
        kind = missing[0]
        given = " and ".join(f"{kind}_mappings" for kind in missing)
        crun = "cannot setresuid to 1000" if missing == ["uid"] else "cannot setresgid to 100"
        yield Diagnostic(
            "no-id-mappings",
            f"options.{kind}_mappings",
            f"a rootless spec without {' and '.join(missing)} mappings: runc refuses it "
            f'("User namespaces enabled, but no {kind} mappings found"), and crun run by root '
            f'fails ("{crun}"). Give {given}, or ask for a rootful spec',
        )
    for kind, mappings, build_id in kinds:
        if mappings and not _covered(0, mappings):
            yield Diagnostic("root-not-mapped", f"options.{kind}_mappings", _ROOT_NOT_MAPPED[kind])
        if mappings and not _covered(build_id, mappings):
            yield Diagnostic(
                "build-user-not-mapped",
                f"options.{kind}_mappings",
                f"{kind} {build_id}, which the build runs as, is in no mapping: runc and crun "
                f'cannot switch to it ("cannot set {kind} to unmapped user in user namespace", '
                f'"cannot setres{kind} to {build_id}"). Map it to a subordinate id',
            )


_ROOT_NOT_MAPPED = {
    "uid": "uid 0 of the sandbox, which the runtime sets it up as, is in no mapping: runc refuses "
    '("User namespaces enabled, but no user mapping found"), and crun runs only where it need not '
    "make a mount point. Map it to the user that runs the runtime",
    "gid": "gid 0 of the sandbox, which the runtime sets it up as, is in no mapping: runc refuses "
    '("User namespaces enabled, but no group mapping found"), crun runs it. Map it to the group '
    "of the user that runs the runtime",
}


def _covered(container_id: int, mappings: Iterable[IdMapping]) -> bool:
    return any(mapping.covers(container_id) for mapping in mappings)


def _terminal(options: SpecOptions) -> Iterator[Diagnostic]:
    if options.terminal:
        yield Diagnostic(
            "needs-terminal",
            "options.terminal",
            'the spec asks for a terminal: without one, runc fails ("open /dev/tty: no such '
            'device or address") and so does crun ("tcgetattr: Inappropriate ioctl for device"). '
            "Run it on a terminal or with --console-socket, or set terminal to false",
        )


# --- the command ----------------------------------------------------------------------

_ARG_BYTES = 128 * 1024  # execve(2), "Limits on size of arguments": MAX_ARG_STRLEN, NUL included
_ARGS_BYTES = 2 * 1024 * 1024  # a quarter of the usual 8 MiB of stack
_POINTER = 8


def _arguments(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    total = len(request.command_args[0].encode()) + 1  # the file name, once more
    entries = [env_var.entry for env_var in request.environment]
    if not any(entry.startswith("HOME=") for entry in entries):
        total += len("HOME=/") + 1 + _POINTER  # both runtimes add it
    for field, strings in (
        ("command_args[{}]", request.command_args),
        ("environment_vars[{}].value", entries),
    ):
        for i, string in enumerate(strings):
            size = len(string.encode()) + 1
            total += size + _POINTER
            if size > _ARG_BYTES:
                yield Diagnostic(
                    "argument-too-long",
                    field.format(i),
                    f"is {size - 1} bytes long, and Linux takes at most {_ARG_BYTES - 1} in one "
                    'argument or KEY=value: runc and crun fail with "argument list too long". '
                    "Pass it in a file (additional_files)",
                )
    if total > _ARGS_BYTES:
        yield Diagnostic(
            "arguments-too-long",
            "command_args",
            f"arguments and environment take {total} bytes, and Linux takes {_ARGS_BYTES} with "
            'the usual stack limit of 8 MiB: runc and crun fail with "argument list too long". '
            "Pass some of it in files (additional_files)",
        )


def _command_path(request: Request, _: SpecOptions) -> Iterable[Diagnostic]:
    command = request.command_args[0]
    if "/" in command or any(env_var.key == "PATH" for env_var in request.environment):
        return ()
    return (
        Diagnostic(
            "command-without-path",
            "command_args[0]",
            "has no slash, and the environment has no PATH to find it in: on runc and crun it is "
            '"not found in $PATH". Give its absolute path, or a PATH',
        ),
    )


def _working_dir(request: Request, _: SpecOptions) -> Iterable[Diagnostic]:
    path = request.working_dir
    above = _input_above(request, path)
    if above is not None and request.kind_of_input(above) == "file":
        why = (
            f"/{_shown(path)} lies at or in {_shown(request.input_names[above])}, an input that "
            'is a file: runc and crun fail ("not a directory")'
        )
    elif path.startswith(("proc/", "sys/")):
        why = (
            f"/{_shown(path)} lies in a file system of the kernel's: where it is not there "
            'already, runc cannot make it and crun cannot enter it ("no such file or directory", '
            '"read-only file system")'
        )
    else:
        return ()
    return (Diagnostic("unusable-working-dir", "working_dir", f"{why}. Choose another"),)


# --- what lies over what --------------------------------------------------------------
# The order of the mounts: the runtime's own and /tmp, scratch paths, inputs, read-only
# paths, the sandbox shell, files of /etc. A later one covers what it lies at or above.


def _input_above(request: Request, path: str) -> int | None:
    """Return the index of the input that is mounted at or above a path."""
    inputs_dir = request.sandbox.inputs_dir
    if inputs_dir:
        if not path.startswith(inputs_dir + "/"):
            return None
        path = path[len(inputs_dir) + 1 :]
    name = path.partition("/")[0]
    names = request.input_names
    i = bisect_left(names, name)  # they are sorted
    return i if i < len(names) and names[i] == name else None


def _ro_paths_above(request: Request, paths: Iterable[str]) -> list[str | None]:
    """Return for each path the read-only path at or above it, if any."""
    roots = [ro_path[1:] for ro_path in request.constraints.available_ro_paths if ro_path != "/"]
    return nearest_above(list(paths), roots)


def _files_mounted(constraints: Constraints) -> list[tuple[str, str]]:
    """Return the host's files that are mounted last: where, and what they are."""
    files = []
    if constraints.provide_bin_sh:
        files.append(("bin/sh", "the sandbox shell"))
    if constraints.network_access:
        for name in ("etc/resolv.conf", "etc/services", "etc/hosts"):
            files.append((name, f"the host's /{name}"))
    return files


def _symlink_inputs(request: Request, _: SpecOptions) -> Iterable[Diagnostic]:
    return [
        Diagnostic(
            "symlink-input",
            f"inputs[{i}].symlink",
            f"{_shown(request.input_names[i])} is a symlink, and runc and crun mount what it "
            "points to on the host, or fail where that does not exist. Make it a link in a "
            "directory input",
        )
        for i in request.symlinks
    ]


_EFFECT_OF_INPUT = {
    "directory": "on runc and crun the build cannot write there, and nothing of it reaches the "
    "bundle",
    "file": 'runc and crun fail ("not a directory")',
    "symlink": "what it points to is mounted over it, or runc and crun fail",
}


def _shadowed_scratch(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for i, path in enumerate(request.scratch_paths):
        if (above := _input_above(request, path)) is not None:
            yield Diagnostic(
                "shadowed-scratch",
                f"scratch_paths[{i}]",
                f"{_shown(path)} lies at or in the input {_shown(request.input_names[above])}, "
                "which is mounted after it: "
                f"{_EFFECT_OF_INPUT[request.kind_of_input(above)]}. Move one of them",
            )
    if not request.constraints.available_ro_paths:
        return
    for i, ro_path in enumerate(_ro_paths_above(request, request.scratch_paths)):
        if ro_path is not None:
            yield Diagnostic(
                "shadowed-scratch",
                f"scratch_paths[{i}]",
                f"{_shown(request.scratch_paths[i])} lies at or in the read-only path "
                f"/{_shown(ro_path)}, which is mounted after it: on runc and crun the build cannot "
                "write there, and nothing of it reaches the bundle. Move it",
            )


_PARENTS_OF_FILES = ("", "bin", "etc")


def _late_mounts(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    """Find read-only paths and single files that lie over, or in, what was mounted before."""
    ro_paths = [path[1:] for path in request.constraints.available_ro_paths if path != "/"]
    if ro_paths and request.input_names and request.inputs_dir:
        (ro_path,) = _ro_paths_above(request, [request.inputs_dir])
        if ro_path is not None:
            yield Diagnostic(
                "shadowed-input",
                "inputs_dir",
                f"{_shown(request.inputs_dir)} lies at or in the read-only path "
                f"/{_shown(ro_path)}, which is mounted after the inputs: on runc and crun the "
                "build sees the host's directory there, and no input. Leave one of them out",
            )
    files = _files_mounted(request.constraints)
    inputs_dir = f"{request.inputs_dir}/" if request.inputs_dir else ""
    for path, what in chain(((path, f"/{path}") for path in ro_paths), files):
        i = _input_above(request, path)
        if i is None:
            continue
        name = request.input_names[i]
        at_it = path == inputs_dir + name
        if not at_it:
            yield Diagnostic(
                "mount-in-input",
                f"inputs[{i}]",
                f"{_shown(what)} is mounted in the input {_shown(name)}: where that has no "
                "such place, runc fails, since it is read-only, and crun makes one in the "
                "builder's own inputs. Make sure the input has it, or leave one of them out",
            )
        elif (path, what) not in files:
            yield Diagnostic(
                "shadowed-input",
                f"inputs[{i}]",
                f"{_shown(name)} has the place of the read-only path {_shown(what)}, which "
                "is mounted after it: on runc and crun the build sees the host's. Leave one of "
                "them out",
            )
        elif request.kind_of_input(i) == "directory":
            yield _file_over_directory(f"inputs[{i}]", path, what)
    for path, what in files:
        if path in request.scratch_paths:
            i = request.scratch_paths.index(path)
            yield _file_over_directory(f"scratch_paths[{i}]", path, what)


def _file_over_directory(field: str, path: str, what: str) -> Diagnostic:
    return Diagnostic(
        "file-over-directory",
        field,
        f"is a directory at /{path}, where {what} is mounted, a file: runc and crun fail "
        '("not a directory"). Choose another place',
    )


# runc, libcontainer/rootfs_linux.go, checkProcMount: these may be mounted over
_PROC_FILES = frozenset(
    f"proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)
_OF_THE_RUNTIME = frozenset(("proc", "sys", "dev"))


def _runtime_mounts(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    """Find what is mounted over the file systems that the runtime makes."""
    for i, path in enumerate(request.scratch_paths):
        top = path.partition("/")[0]
        if top in _OF_THE_RUNTIME:
            yield _over_runtime_mount(f"scratch_paths[{i}]", path, top)
    inputs_dir = request.inputs_dir
    if inputs_dir:
        top = inputs_dir.partition("/")[0]
        if top in _OF_THE_RUNTIME and not all(
            f"{inputs_dir}/{name}" in _PROC_FILES and request.kind_of_input(i) == "file"
            for i, name in enumerate(request.input_names)
        ):
            yield _over_runtime_mount("inputs_dir", inputs_dir, top)
    else:
        for top in ("proc", "sys", "dev"):
            above = _input_above(request, top)
            if above is not None:
                yield _over_runtime_mount(f"inputs[{above}]", top, top)


def _over_runtime_mount(field: str, path: str, top: str) -> Diagnostic:
    code, what_happens = _OVER_RUNTIME_MOUNT[top]
    return Diagnostic(
        code,
        field,
        f"/{_shown(path)} is at or under /{top}, which the runtime makes: {what_happens}. "
        "Choose another place",
    )


_OVER_RUNTIME_MOUNT: dict[str, tuple[Code, str]] = {
    "proc": (
        "mount-over-proc",
        'runc refuses ("cannot be mounted because it is inside /proc", or "not of type proc"), '
        "crun fails or hides part of /proc",
    ),
    "sys": (
        "mount-over-sys",
        "what does not exist there cannot be made, so runc and crun fail; what exists is hidden",
    ),
    "dev": (
        "mount-over-dev",
        "over /dev, over /dev/null, and in /dev/pts and /dev/mqueue, runc and crun fail; over "
        "other devices it depends on the runtime and on the user namespace; elsewhere it runs, "
        "and hides what is there",
    ),
}


def _runtime_ro_paths(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for i, path in enumerate(request.constraints.available_ro_paths):
        field = f"constraints.available_ro_paths[{i}]"
        if path == "/":
            yield Diagnostic(
                "mount-over-root",
                field,
                "/ would be mounted over the sandbox itself: runc and crun fail, and runc run by "
                "root may replace the host's /dev/ptmx. Name the paths that the build needs",
            )
        elif path.startswith("/proc/") and path[1:] not in _PROC_FILES:
            yield Diagnostic(
                "mount-over-proc",
                field,
                f'{_shown(path)} is under /proc: runc refuses it ("cannot be mounted because it is '
                'inside /proc"), crun mounts it. The sandbox has a /proc of its own; leave it out',
            )
        elif path == "/dev/ptmx":
            yield Diagnostic(
                "mount-over-dev",
                field,
                "/dev/ptmx is one of the sandbox's own devices: runc cannot replace it (\"error "
                'setting up ptmx"), on crun the mount is hidden. Leave it out',
            )


def _private_tmp(request: Request, options: SpecOptions) -> Iterator[Diagnostic]:
    if options.rootless:
        return  # the build may pass there by CAP_DAC_OVERRIDE
    places = [(f"scratch_paths[{i}]", p) for i, p in _under_tmp(request.scratch_paths)]
    if request.input_names and f"{request.inputs_dir}/".startswith("tmp/"):
        places.append(("inputs_dir", request.inputs_dir))
    ro_paths = request.constraints.available_ro_paths
    if ro_paths:
        places += (
            (f"constraints.available_ro_paths[{i}]", p)
            for i, p in _under_tmp([path[1:] for path in ro_paths])
        )
    if not places or "tmp" in request.scratch_paths or "/tmp" in ro_paths:
        return
    for field, path in places:
        yield Diagnostic(
            "private-tmp",
            field,
            f"/{_shown(path)} lies in /tmp, which in a rootful spec is root's alone (mode 700): on "
            f'runc and crun uid {BUILD_UID} gets "Permission denied". Make tmp itself a scratch '
            "path, or choose another place",
        )


def _under_tmp(paths: Iterable[str]) -> list[tuple[int, str]]:
    return [(i, path) for i, path in enumerate(paths) if path.startswith("tmp/")]


_OPEN_FILES = 15  # crun's own; seen: 1009 mounts run, or 1008 with a terminal


def _many_mounts(request: Request, options: SpecOptions) -> Iterable[Diagnostic]:
    constraints = request.constraints
    mounts = len(request.input_names) + len(constraints.available_ro_paths)
    mounts += len(_files_mounted(constraints))
    limit = NOFILE - _OPEN_FILES - options.terminal
    if mounts <= limit:
        return ()
    return (
        Diagnostic(
            "too-many-mounts",
            "inputs",
            f"{mounts} inputs and other read-only mounts: crun holds a file open for each, and the "
            f"spec's own limit of {NOFILE} open files leaves room for {limit} (\"Too many open "
            'files"). runc runs it, but 1.1 run by root for a rootless spec only as long as the '
            "paths of all that is mounted take less than 64 KiB",
        ),
    )


# --- names ----------------------------------------------------------------------------

_NAME_BYTES = 255
_PATH_BYTES = 4095


def _may_be_long(path: str) -> bool:
    return len(path) > _NAME_BYTES or not path.isascii()


def _long_paths(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for field, paths, effect in (
        ("working_dir", [request.working_dir], _CANNOT_MOUNT),
        ("inputs_dir", [request.inputs_dir], _CANNOT_MOUNT),
        ("scratch_paths[{}]", request.scratch_paths, _CANNOT_MOUNT),
        (
            "constraints.available_ro_paths[{}]",
            request.constraints.available_ro_paths,
            _CANNOT_MOUNT,
        ),
        ("outputs[{}]", [output.path for output in request.outputs], _CANNOT_MAKE),
        ("additional_files[{}].path", [f.path for f in request.additional_files], _CANNOT_MAKE),
    ):
        for i, path in enumerate(paths):
            if len(path) * 4 <= _NAME_BYTES:
                continue
            longest = max(len(name.encode()) for name in path.split("/"))
            if longest > _NAME_BYTES or len(path.encode()) > _PATH_BYTES:
                yield Diagnostic(
                    "path-too-long",
                    field.format(i),
                    f"Linux takes {_NAME_BYTES} bytes in a name and {_PATH_BYTES} in a path: "
                    f'{effect} ("file name too long"). Shorten it',
                )


_CANNOT_MOUNT = "runc and crun fail"
_CANNOT_MAKE = "nobody can make such a file"


# --- outputs and additional files -----------------------------------------------------


def _outputs(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for i, output in enumerate(request.outputs):
        path = output.path
        if path == output.scratch:
            yield Diagnostic(
                "output-is-scratch",
                f"outputs[{i}]",
                f"{_shown(path)} is itself a scratch path, hence a mount point: on runc and crun "
                'the build can neither remove nor replace it ("Device or resource busy", '
                '"Read-only file system"), so the output can only be a directory. Make the '
                "directory above it the scratch path",
            )
        if (above := _input_above(request, path)) is not None:
            name = request.input_names[above]
            yield _read_only_output(i, path, f"the input {_shown(name)}")
    if not request.constraints.available_ro_paths:
        return
    paths = [output.path for output in request.outputs]
    for i, ro_path in enumerate(_ro_paths_above(request, paths)):
        if ro_path is not None:
            yield _read_only_output(i, paths[i], f"the read-only path /{_shown(ro_path)}")


def _read_only_output(i: int, path: str, by: str) -> Diagnostic:
    return Diagnostic(
        "read-only-output",
        f"outputs[{i}]",
        f"{_shown(path)} lies at or in {by}: on runc and crun the build cannot write it. "
        "Move one of them",
    )


_COVERED_TOPS = _OF_THE_RUNTIME | {"tmp"}


def _additional_files(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    files = dict(_files_mounted(request.constraints))
    ro_paths = _ro_paths_above(request, (file.path for file in request.additional_files))
    for i, (file, ro_path) in enumerate(zip(request.additional_files, ro_paths)):
        path = file.path
        top = path.partition("/")[0]
        if (above := _input_above(request, path)) is not None:
            where = f"at or in the input {_shown(request.input_names[above])}"
        elif ro_path is not None:
            where = f"at or in the read-only path /{_shown(ro_path)}"
        elif path in files:
            where = f"where {files[path]} is mounted"
        elif path == file.scratch:
            where = "at a scratch path, which is a directory"
        elif file.scratch is None and top in _COVERED_TOPS:
            where = f"at or in /{top}, which the runtime mounts"
        else:
            continue
        yield Diagnostic(
            "misplaced-additional-file",
            f"additional_files[{i}].path",
            f"{_shown(path)} lies {where}: the builder can lay no file there that the build would "
            "see. Choose another place, such as in a scratch path",
        )


# --- which checks to ask --------------------------------------------------------------

_Check: TypeAlias = Callable[[Request, SpecOptions], Iterable[Diagnostic]]

_MANY_MOUNTS = (NOFILE - 2 * _OPEN_FILES) // 2


def _is_plain(request: Request) -> bool:
    """Whether there is nothing to find in what a request has besides its sandbox.

    True of most, and it takes half the time of asking each check.
    """
    if (
        request.symlinks
        or request.additional_files
        or request.wire_size >= _ARG_BYTES  # no string is longer; a byte makes less than ten
        or len(request.input_names) >= _MANY_MOUNTS
        or "/" not in request.command_args[0]
    ):
        return False
    for output in request.outputs:
        path = output.path
        if path == output.scratch or _may_be_long(path) or _input_above(request, path) is not None:
            return False
    return True


_OF_ODD_REQUESTS: frozenset[_Check] = frozenset(
    (
        _arguments,
        _command_path,
        _symlink_inputs,
        _many_mounts,
        _long_paths,
        _outputs,
        _additional_files,
    )
)


class _Checks(msgspec.Struct, frozen=True):
    """The checks that may find anything, for plain requests and for the others."""

    if_plain: tuple[_Check, ...]
    otherwise: tuple[_Check, ...]


def _checks_for(key: tuple[Sandbox, SpecOptions]) -> _Checks:
    """Return the checks to ask of builds with this sandbox.

    What most of them find hangs on the sandbox, and that is the same for all builds of a
    coordinator: to ask each of them anew cost 8 us of a build's 30.
    """
    sandbox, options = key
    working_dir, inputs_dir = sandbox.working_dir, sandbox.inputs_dir
    ro_paths = sandbox.constraints.available_ro_paths
    places = (inputs_dir, *sandbox.scratch_paths)
    tops = {place.partition("/")[0] for place in places}
    files = {path for path, _ in _files_mounted(sandbox.constraints)}

    def in_inputs_dir(path: str) -> bool:
        return not inputs_dir or path.startswith(inputs_dir + "/")

    by_sandbox: dict[_Check, bool] = {
        _arguments: False,
        _command_path: False,
        _working_dir: in_inputs_dir(working_dir) or working_dir.startswith(("proc/", "sys/")),
        _symlink_inputs: False,
        _shadowed_scratch: bool(ro_paths) or any(map(in_inputs_dir, sandbox.scratch_paths)),
        _late_mounts: bool(ro_paths)
        or inputs_dir in _PARENTS_OF_FILES
        or not files.isdisjoint(sandbox.scratch_paths),
        _runtime_mounts: not inputs_dir or not tops.isdisjoint(_OF_THE_RUNTIME),
        _runtime_ro_paths: bool(ro_paths),
        _private_tmp: (bool(ro_paths) or "tmp" in tops) and not options.rootless,
        _many_mounts: len(ro_paths) >= _MANY_MOUNTS,
        _long_paths: any(map(_may_be_long, (working_dir, *places, *ro_paths))),
        _outputs: bool(ro_paths),
        _additional_files: False,
    }
    return _Checks(
        if_plain=tuple(check for check, may_find in by_sandbox.items() if may_find),
        otherwise=tuple(
            check for check, may_find in by_sandbox.items() if may_find or check in _OF_ODD_REQUESTS
        ),
    )


_checks_of = Memo(
    _checks_for, limit=KNOWN_SANDBOXES, longest=LARGEST_SANDBOX, size=lambda key: key[0].size
)

_SHOWN_CHARS = 60


def _shown(text: str) -> str:
    """Return a text that fits a sentence, and is safe to print on a terminal."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    return shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."
