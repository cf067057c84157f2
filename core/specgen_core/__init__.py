"""The domain: a build request and options in, an OCI runtime spec out.

Pure: it imports no grpc, does no I/O and reads nothing of the host. Read it in the order
request, options, assembler (process, linux, mounts), template (the same, faster), bundle,
diagnostics::

    request = read_request(wire_bytes)
    spec = make_spec(request, SpecOptions(rootless=False))
    config_json = oci.encode(spec)
"""

from . import oci
from .bundle import input_path, output_path, scratch_path
from .diagnostics import Diagnostic, diagnose
from .options import IdMapping, SpecOptions
from .process import BUILD_GID, BUILD_UID
from .request import AdditionalFile, Input, Output, Request, read_request
from .spec import least_size, make_spec
from .violations import InvalidRequest, UnreadableMessage, Violation

__all__ = [
    "BUILD_GID",
    "BUILD_UID",
    "AdditionalFile",
    "Diagnostic",
    "IdMapping",
    "Input",
    "InvalidRequest",
    "Output",
    "Request",
    "SpecOptions",
    "UnreadableMessage",
    "Violation",
    "diagnose",
    "input_path",
    "least_size",
    "make_spec",
    "oci",
    "output_path",
    "read_request",
    "scratch_path",
]
