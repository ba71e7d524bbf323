"""Read a tar stream with our own parser, which knows regular files and nothing else."""

# Python's tarfile has written outside the destination through links, sparse maps and PAX fields,
# its data filter included; a reader that knows no links cannot.

import re
from collections.abc import Callable

from src.errors import UserError
from src.files.printable import printable
from src.weights.archive.members import Read, member_parts

MAX_MEMBERS = 256
MAX_EXTENSION_BYTES = 64 << 10
MAX_ALL_EXTENSION_BYTES = 256 << 10
BLOCK = 512

REFUSED_PAX = ("size", "linkpath", "GNU.sparse.", "SCHILY.realsize")
EXTENSIONS = (b"x", b"g", b"X", b"L")
"""PAX headers and GNU's long names, which tell of the member behind them."""
REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"K": "a link with a long name",
    b"S": "a sparse file",
}

_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")

Copy = Callable[[str, int, Read], bool]
"""Given name, size and a reader of the content: take the file and return True, or leave it."""


def read_tar(read: Read, copy: Copy) -> None:
    """Offer every regular file of the stream to `copy`, in order, and read to the end."""
    long_name: str | None = None
    extension_bytes = 0
    for num_members in range(MAX_MEMBERS + 2):
        header = _read_exactly(read, BLOCK)
        if not header.strip(b"\0"):
            if long_name is not None or num_members == 0:
                raise UserError("weights archive: the tar holds no files")
            return _read_padding(read)
        if num_members > MAX_MEMBERS:
            break
        _check_sum(header)
        name = long_name or _name(header)
        size, kind = _size(header), header[156:157]
        if kind in EXTENSIONS:
            extension_bytes += size
            if extension_bytes > MAX_ALL_EXTENSION_BYTES:
                raise UserError(
                    "weights archive: expected long names and PAX headers of at most "
                    f"{MAX_ALL_EXTENSION_BYTES:,} bytes together, found more"
                )
            extension = _read_extension(read, size)
            path = _text(extension) if kind == b"L" else _pax_path(extension, kind)
            long_name = path or long_name
        elif kind == b"5" or (kind == b"\0" and name.endswith("/")):
            member_parts(name)
            if size != 0:
                raise UserError(f"weights archive: the folder {printable(name)!r} has a size")
            long_name = None
        elif kind in (b"0", b"\0"):
            if not copy(name, size, read):
                _skip(read, size)
            _skip(read, -size % BLOCK)
            long_name = None
        else:
            found = REFUSED_TYPES.get(kind, f"an entry of type {printable(kind)}")
            raise UserError(
                f"weights archive: {printable(name)!r} is {found}, expected regular files only"
            )
    raise UserError(f"weights archive: expected at most {MAX_MEMBERS} members, found more")


def _check_sum(header: bytes) -> None:
    stated = header[148:156].strip(b" \0")
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if not re.fullmatch(b"[0-7]+", stated) or int(stated, 8) != actual:
        raise UserError("weights archive: it is damaged or no tar (a header has a wrong checksum)")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # Only POSIX headers have a prefix; GNU ones keep other things in its place.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _size(header: bytes) -> int:
    field = header[124:136].strip(b" \0")
    # Base-256 numbers are for sizes over 8 GiB, or below zero.
    if not re.fullmatch(b"[0-7]+", field):
        raise UserError(
            f"weights archive: {printable(_name(header))!r} has a size that is no octal number"
        )
    return int(field, 8)


def _pax_path(data: bytes, kind: bytes) -> str | None:
    """Return the next member's path, if the header has it; refuse fields that change its data."""
    path, position = None, 0
    while position < len(data):
        match = _PAX_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        record = data[match.end() if match else end : end]
        key, equals, value = record.partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise UserError("weights archive: a PAX header is damaged")
        name = key.decode("utf-8", "replace")
        if name == "path" and kind == b"x" and value != b"\n":
            path = _text(value[:-1])
        elif name.startswith((*REFUSED_PAX, "path")):
            raise UserError(
                f"weights archive: a PAX header sets {printable(name)}, "
                "expected plain names and sizes"
            )
        position = end
    return path


def _read_extension(read: Read, size: int) -> bytes:
    if size > MAX_EXTENSION_BYTES:
        raise UserError(
            f"weights archive: a long name or PAX header has {size:,} bytes, "
            f"expected at most {MAX_EXTENSION_BYTES:,}"
        )
    data = _read_exactly(read, size)
    _skip(read, -size % BLOCK)
    return data


def _read_exactly(read: Read, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = read(size - len(data))
        if not block:
            raise UserError("weights archive: it ends too early")
        data += block
    return data


def _skip(read: Read, size: int) -> None:
    while size > 0:
        size -= len(_read_exactly(read, min(size, 1 << 20)))


def _read_padding(read: Read) -> None:
    """Read to the end of the stream: nothing may stand behind the end mark."""
    while block := read(1 << 20):
        if block.strip(b"\0"):
            raise UserError("weights archive: there are data after its end")
