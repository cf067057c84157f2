"""What is valid and still will not run, or not as its caller thinks.

Each finding was seen on real runtimes, runc 1.1.5 and crun 1.8.1;
tests/test_diagnostics_on_runtimes.py shows each of them again, and docs/diagnostics.md
lists them. What depends on the builder's host alone is not said here: this room knows
the request and the options only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice

import msgspec

from .options import IdMapping, SpecOptions
from .process import BUILD_GID, BUILD_UID, NOFILE
from .request import Request

__all__ = ["Diagnostic", "diagnose"]


class Diagnostic(msgspec.Struct, frozen=True):
    """Why a valid spec will not run as it stands."""

    code: str
    """Stable, in kebab-case."""
    field: str
    """The request's field or the option that it is about."""
    message: str
    """What will happen on which runtime, and what to do."""


_MOST_OF_A_KIND = 20


def diagnose(request: Request, options: SpecOptions) -> list[Diagnostic]:
    """Return what will keep the spec from running, at most 20 findings of a kind."""
    found = list(_of_options(options))
    for check in _CHECKS:
        found += islice(check(request, options), _MOST_OF_A_KIND)
    return found


# --- options --------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _of_options(options: SpecOptions) -> tuple[Diagnostic, ...]:
    return (*_id_mappings(options), *_terminal(options))


def _id_mappings(options: SpecOptions) -> Iterator[Diagnostic]:
    if not options.rootless:
        return
    for kind, mappings, build_id in (
        ("uid", options.uid_mappings, BUILD_UID),
        ("gid", options.gid_mappings, BUILD_GID),
    ):
        field = f"options.{kind}_mappings"
        if not mappings:
            yield Diagnostic(
                "no-id-mappings",
                field,
                f"a rootless spec without {kind} mappings: runc refuses it "
                f'("User namespaces enabled, but no {kind} mappings found"), and so does crun run '
                f"by root. Give {kind}_mappings, or ask for a rootful spec",
            )
            continue
        if not _covered(0, mappings):
            yield Diagnostic(
                "root-not-mapped",
                field,
                f"{kind} 0 of the sandbox, which the runtime sets it up as, is in no mapping: runc "
                'refuses ("User namespaces enabled, but no '
                f'{"user" if kind == "uid" else "group"} mapping found"), and crun may lack the '
                "permission to make mount points. Map it to the user that runs the runtime",
            )
        if not _covered(build_id, mappings):
            yield Diagnostic(
                "build-user-not-mapped",
                field,
                f"{kind} {build_id}, which the build runs as, is in no mapping: runc and crun "
                f'cannot switch to it ("cannot set {kind} to unmapped user in user namespace", '
                f'"cannot setres{kind} to {build_id}"). Map it to a subordinate id',
            )


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


def _arguments(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    if request.wire_size < _ARG_BYTES:
        return  # nothing in it can be that long
    total = len(request.command_args[0].encode()) + 1  # the file name, once more
    entries = [env_var.entry for env_var in request.environment]
    for field, strings in (
        ("command_args[{}]", request.command_args),
        ("environment_vars[{}].value", entries),
    ):
        for i, string in enumerate(strings):
            size = len(string.encode()) + 1
            total += size + 8  # and a pointer
            if size > _ARG_BYTES:
                yield Diagnostic(
                    "argument-too-long",
                    field.format(i),
                    f"is {size - 1} bytes long, and Linux takes at most {_ARG_BYTES - 1} in one "
                    'argument or variable: runc and crun fail with "argument list too long". '
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


def _command_path(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    command = request.command_args[0]
    if "/" in command or any(env_var.key == "PATH" for env_var in request.environment):
        return
    yield Diagnostic(
        "command-without-path",
        "command_args[0]",
        "has no slash, and the environment has no PATH to find it in: runc and crun fail with "
        '"executable file not found in $PATH". Give its absolute path, or a PATH',
    )


# --- mounts ---------------------------------------------------------------------------


def _symlink_inputs(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for i, input_ in enumerate(request.inputs):
        if input_.kind == "symlink":
            yield Diagnostic(
                "symlink-input",
                f"inputs[{i}].symlink",
                f"{_shown(input_.name)} is a symlink, and runc and crun mount what it points to on "
                "the host, or fail where that does not exist. Make it a link in a directory input",
            )


def _shadowed_scratch(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    prefix = f"{request.inputs_dir}/" if request.inputs_dir else ""
    names: set[str] | None = None
    for i, path in enumerate(request.scratch_paths):
        if path.startswith(prefix):
            if names is None:
                names = {input_.name for input_ in request.inputs}
            name = path[len(prefix) :].split("/", 1)[0]
            if name in names:
                yield _shadowed(i, path, f"the input {_shown(name)}")
        for ro_path in request.constraints.available_ro_paths:
            if f"/{path}/".startswith(f"{ro_path.rstrip('/')}/"):
                yield _shadowed(i, path, f"the read-only path {_shown(ro_path)}")
                break


def _shadowed(i: int, path: str, by: str) -> Diagnostic:
    return Diagnostic(
        "shadowed-scratch",
        f"scratch_paths[{i}]",
        f"{_shown(path)} lies at or in {by}, which is mounted over it: on runc and crun the build "
        "cannot write there, and what it writes does not reach the bundle. Move one of them",
    )


# runc, libcontainer/rootfs_linux.go, checkProcMount: these may be mounted over
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)
_OF_THE_RUNTIME = ("proc", "sys", "dev")


def _runtime_mounts(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    """Find what is mounted over the file systems that the runtime makes."""
    places = [(f"scratch_paths[{i}]", path) for i, path in enumerate(request.scratch_paths)]
    if request.inputs_dir:
        if request.inputs:
            places.append(("inputs_dir", request.inputs_dir))
    else:
        places += ((f"inputs[{i}]", input_.name) for i, input_ in enumerate(request.inputs))
    for field, path in places:
        top = path.split("/", 1)[0]
        if top in _OF_THE_RUNTIME:
            yield Diagnostic(
                f"mount-over-{top}",
                field,
                f"/{path} is at or under /{top}, which the runtime makes: "
                f"{_WHAT_HAPPENS[top]}. Choose another place",
            )
    for i, path in enumerate(request.constraints.available_ro_paths):
        field = f"constraints.available_ro_paths[{i}]"
        if path == "/":
            yield Diagnostic(
                "mount-over-root",
                field,
                "/ would be mounted over the sandbox itself: runc and crun fail, and runc run by "
                "root may replace the host's /dev/ptmx. Name the paths that the build needs",
            )
        elif path.startswith("/proc/") and path not in _PROC_FILES:
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


_WHAT_HAPPENS = {
    "proc": 'runc refuses ("cannot be mounted because it is inside /proc", or "not of type proc"), '
    "crun fails or hides part of /proc",
    "sys": "what does not exist there cannot be made, so runc and crun fail; what exists is hidden",
    "dev": "over /dev or one of the standard devices in it, runc and crun fail; elsewhere the "
    "mount hides what the runtime put there",
}


def _private_tmp(request: Request, options: SpecOptions) -> Iterator[Diagnostic]:
    if options.rootless:
        return  # the build may pass there by CAP_DAC_OVERRIDE
    places = [(f"scratch_paths[{i}]", path) for i, path in enumerate(request.scratch_paths)]
    if request.inputs:
        places.append(("inputs_dir", f"{request.inputs_dir}/"))
    for field, path in places:
        if path.startswith("tmp/") and "tmp" not in request.scratch_paths:
            yield Diagnostic(
                "private-tmp",
                field,
                "lies under /tmp, which in a rootful spec is root's alone (mode 700): on runc and "
                f'crun uid {BUILD_UID} gets "Permission denied". Make tmp itself a scratch path, '
                "or choose another place",
            )


_OPEN_FILES_OF_CRUN = NOFILE - 24  # seen: 1009 read-only mounts run, less what its caller left open


def _many_mounts(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    if len(request.inputs) + len(request.constraints.available_ro_paths) > _OPEN_FILES_OF_CRUN:
        yield Diagnostic(
            "too-many-mounts",
            "inputs",
            f"{len(request.inputs)} inputs: crun holds a file open for each read-only mount, and "
            f'the spec\'s own limit is {NOFILE} ("Too many open files"). runc runs it',
        )


_NAME_BYTES = 255
_PATH_BYTES = 4095


def _long_paths(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    if request.wire_size <= _NAME_BYTES:
        return
    for field, path in chain(
        (("working_dir", request.working_dir), ("inputs_dir", request.inputs_dir)),
        ((f"scratch_paths[{i}]", path) for i, path in enumerate(request.scratch_paths)),
        ((f"outputs[{i}]", output.path) for i, output in enumerate(request.outputs)),
        ((f"additional_files[{i}].path", f.path) for i, f in enumerate(request.additional_files)),
    ):
        if len(path) * 4 <= _NAME_BYTES:
            continue  # at most four bytes a character
        longest = max(len(name.encode()) for name in path.split("/"))
        if longest > _NAME_BYTES or len(path.encode()) > _PATH_BYTES:
            yield Diagnostic(
                "path-too-long",
                field,
                f"Linux takes {_NAME_BYTES} bytes in a name and {_PATH_BYTES} in a path: runc and "
                'crun fail with "file name too long". Shorten it',
            )


# --- outputs --------------------------------------------------------------------------


def _scratch_outputs(request: Request, _: SpecOptions) -> Iterator[Diagnostic]:
    for i, output in enumerate(request.outputs):
        if output.path == output.scratch:
            yield Diagnostic(
                "output-is-scratch",
                f"outputs[{i}]",
                f"{_shown(output.path)} is itself a scratch path, hence a mount point: on runc and "
                'crun the build can neither remove nor replace it ("Device or resource busy"), so '
                "the output can only be a directory. Make the directory above it the scratch path",
            )


_CHECKS = (
    _arguments,
    _command_path,
    _symlink_inputs,
    _shadowed_scratch,
    _runtime_mounts,
    _private_tmp,
    _many_mounts,
    _long_paths,
    _scratch_outputs,
)

_SHOWN_CHARS = 60


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
