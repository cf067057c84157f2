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
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["delimited", "field_head", "view_of"]


def view_of(
    message: type[Message], *, opaque: tuple[str, ...], merged: tuple[str, ...] = ()
) -> Any:
    """Return a message class that reads some submessages of ``message`` as bytes.

    A submessage and a ``bytes`` field are the same on the wire: a length and so many
    bytes (protobuf.dev/programming-guides/encoding).

    Args:
        message: the message of which it is a view.
        opaque: repeated fields, whose elements are to be bytes.
        merged: singular ones. What occurs of them on the wire becomes a list of bytes,
            empty for a field that is not set; joined, they are the field's one value,
            since concatenation is how protobuf merges messages.
    """
    view = DescriptorProto()
    message.DESCRIPTOR.CopyToProto(view)
    view.name += "View"
    for kept_as_it_is in ("nested_type", "enum_type"):
        view.ClearField(kept_as_it_is)
    for field in view.field:
        if field.name in opaque + merged:
            is_repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
            assert is_repeated == (field.name in opaque)  # noqa: S101
            field.label = FieldDescriptorProto.LABEL_REPEATED
            field.type = FieldDescriptorProto.TYPE_BYTES
            field.ClearField("type_name")
    file = FileDescriptorProto(
        name=f"specgen/view/{message.DESCRIPTOR.full_name}.proto",
        package="specgen.view",
        syntax="proto3",
        dependency=[message.DESCRIPTOR.file.name],
        message_type=[view],
    )
    pool = DescriptorPool()  # one of its own, so that reflection does not show it
    _add(pool, message.DESCRIPTOR.file)
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{view.name}"))


def _add(pool: DescriptorPool, file: Any) -> None:
    for dependency in file.dependencies:
        _add(pool, dependency)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)


def delimited(field: int, payload: bytes) -> bytes:
    """Return a field of this number that holds bytes, a string or a message."""
    return field_head(field, len(payload)) + payload


def field_head(field: int, size: int) -> bytes:
    """Return what stands before a field of so many bytes: its number and its size.

    Joined with the bytes, it avoids the copy of them that ``delimited`` makes.
    """
    octets = [field << 3 | _LENGTH_DELIMITED]
    while size > 0x7F:
        octets.append(size & 0x7F | 0x80)
        size >>= 7
    octets.append(size)
    return bytes(octets)


_LENGTH_DELIMITED = 2
