"""The call lane: calls as events of one completion queue of gRPC's core, on one thread.

grpc.server() hands each call from thread to thread, and a call that stalls holds one. Here a
call is a few events: it came in, its message is there, its answer has left. Each event's tag
is the method of ours that goes on with the call, and between two events it holds no thread.

``grpc._cython.cygrpc`` is private to grpcio: core.py alone imports it. ``missing`` lists what
of it is not as it was when this was written; public_way.py then serves instead.
"""

from .core import missing
from .lane import CallLane

__all__ = ["CallLane", "missing"]
