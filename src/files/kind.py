"""What a file is that is no text in UTF-8, by how it begins."""

START_BYTES = 512

_KINDS = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite f": "an SQLite database",
    b"\x80\x04\x95": "a pickle",
    b"\x93NUMPY": "a NumPy file",
    b"<!DOCTYP": "an HTML page",
    b"<!doctyp": "an HTML page",
    b"<html": "an HTML page",
    b"{\\rtf": "a rich text document",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel file",
    b"\x00\x00\xfe\xff": "a UTF-32 text",
    b"\xff\xfe\x00\x00": "a UTF-32 text",
    b"%PDF": "a PDF",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\x1f\x8b": "a gzip file",
    b"\xff\xfe": "a UTF-16 text",
    b"\xfe\xff": "a UTF-16 text",
}


def other_kind(start: bytes) -> str | None:
    """Return what a file is that begins so; None for what may be text in UTF-8."""
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive"
    if b"\0" in start[:2]:
        return "a UTF-16 text or a binary file"
    return None
