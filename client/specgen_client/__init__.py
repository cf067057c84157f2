"""The client: a thin typed stub, and what the ``specgen`` command is made of.

::

    with SpecClient("127.0.0.1:50051") as client:
        spec = client.generate(request)          # specgen.v1.SpecJSON
        for result in client.generate_many(requests):
            ...
"""

from .client import (
    CallFailed,
    DeadlineExceeded,
    RequestRefused,
    ServerUnavailable,
    SpecClient,
    SpecgenError,
    Tls,
)

__all__ = [
    "CallFailed",
    "DeadlineExceeded",
    "RequestRefused",
    "ServerUnavailable",
    "SpecClient",
    "SpecgenError",
    "Tls",
]
