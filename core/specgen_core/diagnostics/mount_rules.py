"""Rules about what is mounted over what.

The order of the mounts: the runtime's own and /tmp, scratch paths, inputs, read-only paths, the
sandbox shell, files of /etc. A later one covers what it lies at or above.
"""

from __future__ import annotations

from collections.abc import Callable

from ..layout import MountKind, shown
from ..paths import lies_in
from ..spec import BUILD_UID
from .rule import Build, Findings, Rules

RULES = Rules()


@RULES.add(
    "symlink-input",
    "{name} is a symlink, and runc and crun mount what it points to on the host, or fail where",
    "that does not exist. Make it a link in a directory input",
    proven_by=("test_symlink_input",),
)
def _symlink_input(build: Build) -> Findings:
    """An input is a symlink."""
    if "symlink" not in build.request.inputs.values():
        return
    for i, (name, kind) in enumerate(build.request.inputs.items()):
        if kind == "symlink":
            yield f"inputs[{i}].symlink", {"name": shown(name)}


_CANNOT_WRITE = (
    "on runc and crun the build cannot write there, and nothing of it reaches the bundle"
)
_EFFECT_OF: dict[MountKind, str] = {
    "ro_path": _CANNOT_WRITE,
    "directory": _CANNOT_WRITE,
    "file": 'runc and crun fail ("not a directory")',
    "symlink": "what it points to is mounted over it, or runc and crun fail",
}


@RULES.add(
    "shadowed-scratch",
    "{path} lies at or in {what}, which is mounted after it: {effect}. Move one of them",
    proven_by=(
        "test_scratch_shadowed_by_directory",
        "test_scratch_shadowed_by_file",
        "test_scratch_shadowed_by_ro_path",
    ),
)
def _shadowed_scratch(build: Build) -> Findings:
    """A scratch path lies at or in an input or a read-only path, which are mounted after it."""
    layout = build.layout
    for scratch in layout.scratch:
        path = layout.place(scratch)
        for part in (layout.inputs, layout.ro_paths):
            for over in _not_of_root(build, layout.over(path, part))[-1:]:
                effect = _EFFECT_OF[layout.kind(over)]
                words = {"path": shown(path), "what": layout.what(over), "effect": effect}
                yield layout.field(scratch), words


def _not_of_root(build: Build, numbers: list[int]) -> list[int]:
    """Leave out what is mounted at /: there is a rule for that alone."""
    return [n for n in numbers if build.layout.place(n) != "/"]


@RULES.add(
    "shadowed-input",
    "{path} lies at or in {what}, which is mounted after it: on runc and crun the build sees the",
    "host's there. Leave one of them out",
    proven_by=("test_input_shadowed_by_ro_path", "test_all_inputs_shadowed_by_ro_path"),
)
def _shadowed_input(build: Build) -> Findings:
    """An input, or ``inputs_dir``, lies at or in a read-only path, which is mounted after it."""
    layout, inputs_dir = build.layout, f"/{build.request.inputs_dir}"
    if layout.inputs and inputs_dir != "/":
        for over in _not_of_root(build, layout.over(inputs_dir, layout.ro_paths))[-1:]:
            yield "inputs_dir", {"path": shown(inputs_dir), "what": layout.what(over)}
    for ro_path in layout.ro_paths:
        place = layout.place(ro_path)
        for input_ in layout.over(place, layout.inputs):
            if layout.place(input_) == place:
                yield layout.field(input_), {"path": shown(place), "what": layout.what(ro_path)}


@RULES.add(
    "mount-in-input",
    "{what} is mounted in {input}: where that has no such place, runc fails, since it is",
    "read-only, and crun makes one in the builder's own inputs. Make sure the input has it, or",
    "leave one of them out",
    proven_by=("test_mount_in_input",),
)
def _mount_in_input(build: Build) -> Findings:
    """A read-only path, the sandbox shell or a file of /etc is mounted inside an input."""
    layout = build.layout
    for later in (*layout.ro_paths, *layout.host_files):
        place = layout.place(later)
        for input_ in layout.over(place, layout.inputs):
            if layout.place(input_) != place:
                words = {"what": layout.what(later), "input": layout.what(input_)}
                yield layout.field(input_), words


@RULES.add(
    "file-over-directory",
    'needs a directory at {place}, where {what} lies, a file: runc and crun fail ("not a',
    'directory"). Choose another place',
    proven_by=("test_file_over_directory",),
)
def _file_over_directory(build: Build) -> Findings:
    """The sandbox shell or a file of /etc lies where a directory must be."""
    layout = build.layout
    found = {}
    for file in layout.host_files:
        place = layout.place(file)
        for n in layout.over(place, layout.scratch, layout.inputs):
            if layout.place(n) == place and layout.kind(n) in ("scratch", "directory"):
                found[layout.field(n)] = {"place": shown(place), "what": layout.what(file)}
    for path, directory_for, file_for in build.conflicts:
        if file_for.field.startswith("constraints.") and directory_for.field != "working_dir":
            place = shown(f"/{path.partition('/')[2]}") if path.startswith("root/") else "its place"
            found.setdefault(directory_for.field, {"place": place, "what": file_for.what})
    yield from found.items()


# --- what lies over the runtime's own mounts ------------------------------------------

# runc, libcontainer/rootfs_linux.go, checkProcMount: these may be mounted over
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"),
        *("sys/crypto/fips_enabled", "sys/kernel/ns_last_pid"),
    )
)


def _mounted_over(build: Build, top: str) -> Findings:
    """Find scratch paths and inputs at or under a file system that the runtime makes."""
    layout, inputs_dir = build.layout, f"/{build.request.inputs_dir}"
    for number in layout.scratch:
        if lies_in(layout.place(number), top):
            yield layout.field(number), {"path": shown(layout.place(number))}
    if lies_in(inputs_dir, top):
        may = (layout.place(n) in _PROC_FILES and layout.kind(n) == "file" for n in layout.inputs)
        if not all(may):
            yield "inputs_dir", {"path": shown(inputs_dir)}
    else:
        for number in layout.over(top, layout.inputs):
            yield layout.field(number), {"path": top}


def _ro_paths(build: Build, is_bad: Callable[[str], bool]) -> Findings:
    for number in build.layout.ro_paths:
        path = build.layout.place(number)
        if is_bad(path):
            yield build.layout.field(number), {"path": shown(path)}


@RULES.add(
    "mount-over-root",
    "/ would be mounted over the sandbox itself: runc and crun fail, and runc run by root may",
    "replace the host's /dev/ptmx. Name the paths that the build needs",
    proven_by=(),  # seen by hand once: it may damage the host (libcontainer, setupPtmx)
)
def _mount_over_root(build: Build) -> Findings:
    """A read-only path is ``/``."""
    yield from _ro_paths(build, "/".__eq__)


@RULES.add(
    "mount-over-proc",
    '{path} is at or under /proc, of which the sandbox has its own: runc refuses ("cannot be',
    'mounted because it is inside /proc", or "not of type proc"), crun fails or hides what is',
    "there. Choose another place, or leave it out",
    proven_by=(
        "test_scratch_over_runtime_mount",
        "test_inputs_over_runtime_mount",
        "test_ro_path_over_runtime_mount",
    ),
)
def _mount_over_proc(build: Build) -> Findings:
    """A scratch path or input lies at or under /proc, or a read-only path under it.

    Not if it is one of the files that runc's checkProcMount allows.
    """
    yield from _mounted_over(build, "/proc")
    yield from _ro_paths(build, lambda path: path.startswith("/proc/") and path not in _PROC_FILES)


@RULES.add(
    "mount-over-sys",
    "{path} is at or under /sys, which the runtime makes: what does not exist there cannot be",
    "made, so runc and crun fail; what exists is hidden. Choose another place",
    proven_by=("test_scratch_over_runtime_mount", "test_inputs_over_runtime_mount"),
)
def _mount_over_sys(build: Build) -> Findings:
    """A scratch path or input lies at or under /sys."""
    yield from _mounted_over(build, "/sys")


@RULES.add(
    "mount-over-dev",
    "{path} is at or under /dev, which the runtime makes: over /dev, /dev/null and /dev/ptmx, and",
    "in /dev/pts and /dev/mqueue, runc fails, and crun fails or hides it; over other devices it",
    "depends on the runtime and on the user namespace; elsewhere it runs, and hides what is",
    "there. Choose another place",
    proven_by=(
        "test_scratch_over_runtime_mount",
        "test_other_devices_depend_on_the_user_namespace",
        "test_an_input_over_runtime_mount",
        "test_ro_path_over_runtime_mount",
    ),
)
def _mount_over_dev(build: Build) -> Findings:
    """A scratch path or input lies at or under /dev; or a read-only path is /dev/ptmx."""
    yield from _mounted_over(build, "/dev")
    yield from _ro_paths(build, "/dev/ptmx".__eq__)


@RULES.add(
    "private-tmp",
    "{path} lies in /tmp, which is root's alone (mode {mode}): on runc and crun uid {uid} gets",
    '"Permission denied". Make tmp itself a scratch path, set tmp_mode to 1777, or choose another',
    "place",
    proven_by=("test_private_tmp", "test_inputs_and_ro_paths_in_private_tmp"),
)
def _private_tmp(build: Build) -> Findings:
    """A scratch path, inputs or a read-only path lie in a /tmp that the build may not enter.

    Not if ``tmp`` itself is a scratch path, or the build has CAP_DAC_OVERRIDE, as in a rootless
    spec that keeps its capabilities.
    """
    layout, mode = build.layout, build.options.tmp_mode
    places = [(layout.field(n), layout.place(n)) for n in (*layout.scratch, *layout.ro_paths)]
    if build.may_use_tmp(0o1) or any(place == "/tmp" for _, place in places):
        return
    if layout.inputs:
        places.insert(len(layout.scratch), ("inputs_dir", f"/{build.request.inputs_dir}/"))
    for field, place in places:
        if place.startswith("/tmp/"):
            yield field, {"path": shown(place.rstrip("/")), "mode": mode, "uid": BUILD_UID}


_OPEN_FILES = 15  # crun's own; seen: 1009 mounts run, or 1008 with a terminal


@RULES.add(
    "too-many-mounts",
    "{mounts} inputs and other read-only mounts: crun holds a file open for each, and the spec's",
    'own limit of {limit} open files leaves room for {most} ("Too many open files"). runc',
    "runs it; but runc 1.1, run by root for a rootless spec, takes no more than 64 KiB of paths of",
    "mounts",
    proven_by=("test_too_many_mounts",),
)
def _too_many_mounts(build: Build) -> Findings:
    """There are more read-only mounts than ``nofile`` leaves room for: by default, 1009.

    They are inputs, read-only paths, sandbox shell and files of /etc. A terminal takes one.
    """
    mounts = len(build.layout.mounts) - build.layout.inputs.start
    limit = build.options.nofile.soft
    most = limit - _OPEN_FILES - build.options.terminal
    if limit and mounts > most:
        yield "inputs", {"mounts": mounts, "limit": limit, "most": most}
