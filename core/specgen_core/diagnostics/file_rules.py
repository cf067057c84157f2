"""Rules about names, outputs and additional files."""

from __future__ import annotations

from ..layout import shown
from ..text import MOST_BYTES_A_CHARACTER
from .rule import Build, Findings, Rules

RULES = Rules()

_NAME_BYTES = 255
_PATH_BYTES = 4095


@RULES.add(
    "path-too-long",
    f"Linux takes {_NAME_BYTES} bytes in a name and {_PATH_BYTES} in a path: {{effect}}",
    '("file name too long"). Shorten it',
    proven_by=("test_path_too_long", "test_output_too_long"),
)
def _path_too_long(build: Build) -> Findings:
    """A name takes more than 255 bytes, or a path more than 4095."""
    request = build.request
    mounted = {
        "working_dir": [request.working_dir],
        "inputs_dir": [request.inputs_dir],
        "scratch_paths[{}]": request.scratch_paths,
        "constraints.available_ro_paths[{}]": request.constraints.available_ro_paths,
    }
    made = {
        "outputs[{}]": [output.path for output in request.outputs],
        "additional_files[{}].path": [file.path for file in request.additional_files],
    }
    for field, paths in (mounted | made).items():
        effect = "runc and crun fail" if field in mounted else "nobody can make such a file"
        for i, path in enumerate(paths):
            if len(path) * MOST_BYTES_A_CHARACTER <= _NAME_BYTES:
                continue
            name = max(map(len, path.encode().split(b"/")))
            if name > _NAME_BYTES or len(path.encode()) > _PATH_BYTES:
                yield field.format(i), {"effect": effect}


@RULES.add(
    "output-is-scratch",
    "{path} is itself a scratch path, hence a mount point: on runc and crun the build can neither",
    'remove nor replace it ("Device or resource busy", "Read-only file system"), so the output',
    "can only be a directory. Make the directory above it the scratch path",
    proven_by=("test_output_is_scratch",),
)
def _output_is_scratch(build: Build) -> Findings:
    """An output is itself a scratch path."""
    for i, output in enumerate(build.request.outputs):
        if output.path == output.scratch:
            yield f"outputs[{i}]", {"path": shown(output.path)}


@RULES.add(
    "read-only-output",
    "{path} lies at or in {what}: on runc and crun the build cannot write it. Move one of them",
    proven_by=("test_read_only_output",),
)
def _read_only_output(build: Build) -> Findings:
    """An output lies at or in an input or a read-only path."""
    layout = build.layout
    for i, output in enumerate(build.request.outputs):
        for part in (layout.inputs, layout.ro_paths):
            over = [n for n in layout.over(f"/{output.path}", part) if layout.place(n) != "/"]
            if over:
                words = {"path": shown(output.path), "what": layout.what(over[-1])}
                yield f"outputs[{i}]", words


@RULES.add(
    "misplaced-additional-file",
    "{path} {why}: the builder can lay no file there that the build would see. Choose another",
    "place, such as in a scratch path",
    proven_by=("test_misplaced_additional_file",),
)
def _misplaced_additional_file(build: Build) -> Findings:
    """An additional file lies in a mount that is no scratch path, or where a directory must be."""
    layout = build.layout
    why: dict[str, str] = {}
    for i, file in enumerate(build.request.additional_files):
        seen = layout.seen_at(f"/{file.path}")
        if seen is not None and seen not in layout.scratch:
            why[f"additional_files[{i}].path"] = f"lies at or in {layout.what(seen)}"
    for _, directory_for, file_for in build.conflicts:
        if directory_for.field.startswith("additional_files"):
            why.setdefault(directory_for.field, f"lies in {file_for.what}, a file")
        elif file_for.field.startswith("additional_files"):
            why.setdefault(file_for.field, f"lies where {directory_for.what} needs a directory")
    for i, file in enumerate(build.request.additional_files):
        field = f"additional_files[{i}].path"
        if field in why:
            yield field, {"path": shown(file.path), "why": why[field]}
