"""Where things lie in the OCI bundle around a spec of ours.

Relative to the bundle directory: ``config.json``; ``root/``, the skeleton of the root
file system; ``inputs/NAME``, one for each input; ``scratch/``, what the build may write
to. Source: tvix, build/src/oci/bundle.rs.
"""

from __future__ import annotations

from base64 import b32encode

from blake3 import blake3

from .request import Output

__all__ = ["input_path", "output_path", "scratch_path"]


def input_path(name: str) -> str:
    """Return where in the bundle the input of this name lies."""
    return f"inputs/{name}"


def scratch_path(path: str) -> str:
    """Return where in the bundle a scratch path of the sandbox lies.

    The name is the padded BASE32 of the path's BLAKE3 digest (seed: ``scratch_name``).
    """
    return f"scratch/{b32encode(blake3(path.encode()).digest()).decode()}"


def output_path(output: Output) -> str:
    """Return where in the bundle an output lies: in the nearest scratch path above it."""
    return scratch_path(output.scratch) + output.path[len(output.scratch) :]
