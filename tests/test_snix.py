"""snix coordinators can call us: snix.build.v1.BuildRequest has the same wire form."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from support import GOLDEN_NAMES, golden_case

from specgen.v1.specgen_pb2 import SpecJSON
from specgen_core import SpecOptions
from specgen_core.answer import generate
from tvix.build.protos import build_pb2
from tvix.castore.protos import castore_pb2


def of_a_message(field: FieldDescriptorProto) -> bool:
    return field.type == FieldDescriptorProto.TYPE_MESSAGE


def snix_build_request() -> Any:
    """Return snix's message class: other packages, and castore's Node is named Entry."""
    pool = DescriptorPool()
    for module in (castore_pb2, build_pb2):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        file.name = file.name.replace("tvix/", "snix/")
        file.package = file.package.replace("tvix.", "snix.")
        file.dependency[:] = [name.replace("tvix/", "snix/") for name in file.dependency]
        messages = list(file.message_type)
        while messages:
            message = messages.pop()
            messages += message.nested_type
            if message.name == "Node":
                message.name = "Entry"
            for field in filter(of_a_message, message.field):
                field.type_name = field.type_name.replace(".tvix.", ".snix.").replace(
                    "castore.v1.Node", "castore.v1.Entry"
                )
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("snix.build.v1.BuildRequest"))


SnixBuildRequest = snix_build_request()


def test_it_is_snix() -> None:
    inputs = SnixBuildRequest.DESCRIPTOR.fields_by_name["inputs"]

    assert SnixBuildRequest.DESCRIPTOR.full_name == "snix.build.v1.BuildRequest"
    assert inputs.message_type.full_name == "snix.castore.v1.Entry"


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_same_wire_form(name: str) -> None:
    request = golden_case(name).request

    snix = text_format.Parse(text_format.MessageToString(request), SnixBuildRequest())

    wire = snix.SerializeToString(deterministic=True)
    assert wire == request.SerializeToString(deterministic=True)
    assert generate(wire, SpecOptions()) == generate(request, SpecOptions())


def test_call(channel: grpc.Channel) -> None:
    request = golden_case("three_node_kinds").request
    snix = SnixBuildRequest.FromString(request.SerializeToString())
    call = channel.unary_unary(
        "/specgen.v1.SpecService/GenerateSpec",
        request_serializer=SnixBuildRequest.SerializeToString,
        response_deserializer=SpecJSON.FromString,
    )

    assert call(snix, timeout=20) == generate(request, SpecOptions())
