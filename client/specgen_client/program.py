"""What a file is to execve(2): an ELF file, a script, or neither."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

__all__ = ["Program", "program_of"]

_HEAD_BYTES = 256  # of which the kernel decides: BINPRM_BUF_SIZE
_HEADERS_BYTES = 65_536  # the kernel takes no more of program headers
_PATH_BYTES = 4096
_PT_INTERP = 3


class Program(NamedTuple):
    """What the first bytes of a file say."""

    head: bytes
    """At most 256 of them."""
    loader: str = ""
    """The dynamic loader that an ELF file asks for."""
    interpreter: str = ""
    """What a script names after ``#!``."""
    argument: str = ""
    """What stands behind that: one argument, blanks and all."""

    @property
    def is_elf(self) -> bool:
        """Whether it is an ELF file, for whichever machine."""
        return self.head.startswith(b"\x7fELF")

    @property
    def is_script(self) -> bool:
        """Whether it names an interpreter."""
        return bool(self.interpreter)


def program_of(fd: int) -> Program | None:
    """Read a regular file's descriptor, made with O_PATH; None for what cannot be read."""
    try:
        # a descriptor by O_PATH cannot be read from; this opens the same file, see proc(5)
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        head = os.pread(file, _HEAD_BYTES, 0)
        if head.startswith(b"\x7fELF"):
            return Program(head, loader=_loader(file, head))
        if head.startswith(b"#!"):
            return _script(head)
        return Program(head)
    except OSError:
        return None
    finally:
        os.close(file)


def _script(head: bytes) -> Program:
    """Read the first line: Linux, fs/binfmt_script.c."""
    line = head[2:].partition(b"\n")[0].strip(b" \t").partition(b"\0")[0]
    words = line.replace(b"\t", b" ").split(b" ", 1)
    argument = words[1].strip(b" ") if len(words) > 1 else b""
    return Program(head, interpreter=os.fsdecode(words[0]), argument=os.fsdecode(argument))


def _loader(file: int, head: bytes) -> str:
    """Return the PT_INTERP of an ELF file; empty if it has none, or is broken.

    Source: elf(5), Elf32_Ehdr, Elf64_Ehdr and their program headers.
    """
    try:
        wide = head[4] == 2
        order = "<" if head[5] == 1 else ">"
        word = order + ("Q" if wide else "I")
        (table,) = struct.unpack_from(word, head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        if not size:
            return ""
        headers = os.pread(file, min(size * count, _HEADERS_BYTES), table)
        for at in range(0, len(headers), size):
            (kind,) = struct.unpack_from(order + "I", headers, at)
            if kind != _PT_INTERP:
                continue
            (offset,) = struct.unpack_from(word, headers, at + (8 if wide else 4))
            (length,) = struct.unpack_from(word, headers, at + (32 if wide else 16))
            return os.fsdecode(os.pread(file, min(length, _PATH_BYTES), offset).partition(b"\0")[0])
    except (OSError, struct.error, ValueError, IndexError, OverflowError):
        pass  # what is broken is for the kernel to say
    return ""
