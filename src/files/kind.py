"""What a file is, by how it begins."""

START_BYTES = 512

_KINDS = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"PK\x05\x06": "an empty zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite f": "an SQLite database",
    b"\x80": "a pickle",
    b"\x93NUMPY": "a NumPy file",
    b"{\\rtf": "a rich text document",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel file",
    b"%PDF": "a PDF",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "a gzip file",
    b"\x00\x00\xfe\xff": "a UTF-32 text",
    b"\xff\xfe\x00\x00": "a UTF-32 text",
    b"\xff\xfe": "a UTF-16 text",
    b"\xfe\xff": "a UTF-16 text",
}
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<!--")


def is_gzip(start: bytes) -> bool:
    """Tell whether a file that begins so is packed with gzip."""
    return start.startswith(b"\x1f\x8b")


def is_tar(start: bytes) -> bool:
    """Tell whether a file that begins so is a tar archive."""
    return start[257:262] == b"ustar"


def other_kind(start: bytes) -> str | None:
    """Return what a file is that begins so; None for what may be JSON text in UTF-8."""
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return kind
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_HTML):
        return "an HTML page"
    if text.startswith(b"<?xml"):
        return "an XML file"
    if is_tar(start):
        return "a tar archive"
    if start[8:9] == b"{" and b"\0" in start[:8]:
        return "a bare safetensors file"
    if b"\0" in start[:2]:
        return "a UTF-16 text or a binary file"
    return None
