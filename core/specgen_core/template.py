"""The JSON of a spec, from a template.

Most of a spec is the same for all builds of a coordinator: it hangs on the sandbox and on
the options. So the plain way makes it once, of a request that has marks where inputs,
arguments and environment go, and the JSON is cut there. What most inputs add to it is known
too, by their names, since builds share most of them. No rule of the spec is written here.
"""

from __future__ import annotations

from operator import attrgetter

import msgspec

from . import oci
from .memo import Memo
from .mounts import input_mount
from .options import SpecOptions
from .request import KNOWN_SANDBOXES, LARGEST_SANDBOX, EnvVar, Request, Sandbox
from .spec import make_spec

__all__ = ["spec_json"]


def spec_json(request: Request, options: SpecOptions) -> bytes:
    """Return ``oci.encode(make_spec(request, options))``, the same bytes.

    tests/test_fast_paths.py holds it to that. With 60 inputs it takes a sixth of the time.
    """
    template = _templates[request.sandbox, options]
    names = request.input_names
    return b"".join(
        (
            template.before_inputs,
            *map(_input_mounts[request.sandbox.inputs_dir].over(names), names),
            template.before_args,
            oci.encode(request.command_args),
            template.before_env,
            b",".join(map(_json_of, request.environment)),
            template.after_env,
        )
    )


_json_of = attrgetter("json")


class _Template(msgspec.Struct, frozen=True, gc=False):
    before_inputs: bytes
    before_args: bytes
    before_env: bytes
    after_env: bytes


# No string of a valid request has a NUL byte, so what JSON makes of these is found in no other.
_INPUT, _ARG, _ENTRY = "\0input", "\0arg", "\0entry"


def _make_template(key: tuple[Sandbox, SpecOptions]) -> _Template:
    sandbox, options = key
    marked = Request(
        sandbox=sandbox,
        input_names=[_INPUT],
        input_elements=[],
        symlinks=[],
        command_args=[_ARG],
        outputs=[],
        environment=[EnvVar("", oci.encode(_ENTRY))],
        additional_files=[],
        wire_size=0,
    )
    json = oci.encode(make_spec(marked, options))
    before_inputs, rest = json.split(_with_comma(input_mount(sandbox.inputs_dir, _INPUT)))
    before_args, rest = rest.split(oci.encode([_ARG]))
    before_env, after_env = rest.split(oci.encode(_ENTRY))
    return _Template(before_inputs, before_args, before_env, after_env)


def _with_comma(mount: oci.Mount) -> bytes:
    return b"," + oci.encode(mount)  # those of the runtime come before, so none is the first


_templates = Memo(
    _make_template,
    limit=KNOWN_SANDBOXES,
    longest=LARGEST_SANDBOX,
    size=lambda key: key[0].size,
)

_KNOWN_DIRS = 2
_KNOWN_INPUTS = 16_384
_LARGEST_MOUNT = 512


def _mounts_into(inputs_dir: str) -> Memo[str, bytes]:
    """Return the JSON of mounts of inputs into a directory, by the input's name."""
    return Memo(
        lambda name: _with_comma(input_mount(inputs_dir, name)),
        limit=_KNOWN_INPUTS,
        longest=_LARGEST_MOUNT,
        size=lambda name: len(inputs_dir) + len(name),  # both are in each that is kept
    )


_input_mounts: Memo[str, Memo[str, bytes]] = Memo(
    _mounts_into, limit=_KNOWN_DIRS, longest=_LARGEST_MOUNT
)
