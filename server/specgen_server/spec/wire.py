"""Views of a message's wire form in which chosen repeated messages stay bytes.

Making a Python object of each input and each variable is half of what reading a
BuildRequest costs, and the builds of one coordinator share most of both. A view has
the same field numbers and wire types as the message, so it reads the same bytes, but
hands out those elements unparsed: what has been read before is known by its bytes.
It is derived from the message's own descriptor, so it cannot drift from it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["view_of"]


def view_of(message: type[Message], *, opaque: tuple[str, ...]) -> Any:
    """Return a message class that reads ``message`` with the fields ``opaque`` as bytes.

    A submessage and a ``bytes`` field are the same on the wire: a length and so many
    bytes (protobuf.dev/programming-guides/encoding). Only a repeated field can be read
    so, since occurrences of a singular one are merged.
    """
    view = DescriptorProto()
    message.DESCRIPTOR.CopyToProto(view)
    view.name += "View"
    for kept_as_it_is in ("nested_type", "enum_type"):
        view.ClearField(kept_as_it_is)
    for field in view.field:
        if field.name in opaque:
            assert field.label == FieldDescriptorProto.LABEL_REPEATED  # noqa: S101
            field.type = FieldDescriptorProto.TYPE_BYTES
            field.ClearField("type_name")
    file = FileDescriptorProto(
        name=f"specgen/view/{message.DESCRIPTOR.full_name}.proto",
        package="specgen.view",
        syntax="proto3",
        dependency=[message.DESCRIPTOR.file.name],
        message_type=[view],
    )
    pool = Default()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{view.name}"))
