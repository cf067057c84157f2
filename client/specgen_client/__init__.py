"""The client: a thin typed stub, the bundle writer, and the ``specgen`` command.

::

    with SpecClient("127.0.0.1:50051") as client:
        spec = client.generate(request)          # specgen.v1.SpecJSON
        for result in client.generate_many(requests):
            ...
    with_skeleton = client.generate(request, options=SpecOptions(skeleton=True))
    write_bundle(request, Path("bundle"), spec=with_skeleton)
"""

from .bundle import BundleError, write_bundle
from .client import (
    CallFailed,
    DeadlineExceeded,
    RequestRefused,
    ServerUnavailable,
    SpecClient,
    SpecgenError,
    Tls,
)
from .request_files import RequestFileError, read_request_file

__all__ = [
    "BundleError",
    "CallFailed",
    "DeadlineExceeded",
    "RequestFileError",
    "RequestRefused",
    "ServerUnavailable",
    "SpecClient",
    "SpecgenError",
    "Tls",
    "read_request_file",
    "write_bundle",
]
