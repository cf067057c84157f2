"""Server reflection, under both of its names.

The packaged servicer speaks grpc.reflection.v1alpha; clients of today ask for
grpc.reflection.v1 first. The messages are the same, field for field, so the same
servicer answers both.
"""

from __future__ import annotations

from typing import Any, cast

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from specgen_core import UnreadableMessage

from .calls import Limit, Method
from .service import OpenCall

__all__ = ["reflection_methods"]

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_MOST_CALLS = 64


def reflection_methods(services: list[str]) -> list[Method]:
    """Return the methods that describe the services of these full names, and themselves."""
    _describe_v1()
    names = [*services, reflection.SERVICE_NAME, f"{_V1}.ServerReflection"]
    servicer: Any = reflection.ReflectionServicer(names, pool=_PoolWithMethods())

    def described(wire: bytes, _: OpenCall) -> bytes:
        try:
            request = ServerReflectionRequest.FromString(wire)
        except DecodeError:
            raise UnreadableMessage(ServerReflectionRequest.DESCRIPTOR.full_name) from None
        (answer,) = servicer.ServerReflectionInfo(iter([request]), None)
        return bytes(answer.SerializeToString())

    limit = Limit(_MOST_CALLS, "reflection calls are in flight")
    return [
        Method(f"{package}.ServerReflection", "ServerReflectionInfo", described, limit, "stream")
        for package in (_V1ALPHA, _V1)
    ]


class _PoolWithMethods:
    """The default pool, which also finds the file of a method by the method's full name."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        try:
            return cast(FileDescriptor, self._pool.FindFileContainingSymbol(symbol))
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return cast(FileDescriptor, found.file)


def _describe_v1() -> None:
    """Put v1's descriptor into the default pool, so that it can be described as well."""
    pool = descriptor_pool.Default()
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
        return
    except KeyError:
        pass
    v1alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    v1 = FileDescriptorProto(name=name, package=_V1, syntax=v1alpha.syntax)
    v1.message_type.extend(v1alpha.message_type)
    v1.service.extend(v1alpha.service)
    for message in v1.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(_V1ALPHA, _V1)
    for service in v1.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_V1ALPHA, _V1)
            method.output_type = method.output_type.replace(_V1ALPHA, _V1)
    pool.Add(v1)
