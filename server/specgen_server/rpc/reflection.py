"""Server reflection, under both of its names.

The packaged servicer speaks grpc.reflection.v1alpha; clients of today ask for
grpc.reflection.v1 first. The messages are the same, field for field, so the same
servicer answers both.
"""

from __future__ import annotations

from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

__all__ = ["add_reflection"]

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"


def add_reflection(server: grpc.Server, services: list[str]) -> None:
    """Serve reflection for the services of these full names, and for itself."""
    _describe_v1()
    names = [*services, reflection.SERVICE_NAME, f"{_V1}.ServerReflection"]
    servicer = reflection.ReflectionServicer(names, pool=_PoolWithMethods())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for package in (_V1ALPHA, _V1):
        service = f"{package}.ServerReflection"
        handlers = {"ServerReflectionInfo": method}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


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
