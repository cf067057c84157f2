"""The domain: a build request and options in, an OCI runtime spec out.

Pure: it imports no grpc, does no I/O and reads nothing of the host. Read it in the order
request, reading, elements, options, spec, layout, skeleton, diagnostics, answer::

    request = read_request(wire_bytes)
    spec = make_spec(request, SpecOptions(rootless=False))
    config_json = oci.encode(spec)
"""

from . import oci
from .answer import answer, generate
from .bundle import input_path, output_path, scratch_path
from .diagnostics import Diagnostic, diagnose
from .layout import Layout
from .options import IdMapping, Resources, SpecOptions
from .profiles import Nofile
from .reading import read_request
from .request import AdditionalFile, Constraints, EnvVar, Output, Request
from .skeleton import Skeleton
from .spec import BUILD_GID, BUILD_UID, make_spec
from .violations import InvalidRequest, UnreadableMessage, Violation

__all__ = [
    "BUILD_GID",
    "BUILD_UID",
    "AdditionalFile",
    "Constraints",
    "Diagnostic",
    "EnvVar",
    "IdMapping",
    "InvalidRequest",
    "Layout",
    "Nofile",
    "Output",
    "Request",
    "Resources",
    "Skeleton",
    "SpecOptions",
    "UnreadableMessage",
    "Violation",
    "answer",
    "diagnose",
    "generate",
    "input_path",
    "make_spec",
    "oci",
    "output_path",
    "read_request",
    "scratch_path",
]
