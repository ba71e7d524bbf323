"""A gzip file is taken as gzip writes it, and one that tries to have no end is refused."""

import gzip
import io
from pathlib import Path

import pytest

from src.data.reading.example_file import ExampleFile
from src.errors import UserError
from src.files.gzip import FREE_PACKED_BYTES, Gunzip, UnpackLimits
from tests.data.test_examples import GOOD

TEXT = GOOD * 3
WHOLE = {
    "one-member": (gzip.compress(TEXT), TEXT),
    "stored": (gzip.compress(TEXT, compresslevel=0), TEXT),
    "several-members": (gzip.compress(TEXT) * 5, TEXT * 5),
    "empty-members": (gzip.compress(b"") * 99 + gzip.compress(TEXT) + gzip.compress(b""), TEXT),
    "a-line-a-member": (gzip.compress(GOOD) * 60_000, GOOD * 60_000),
    "padded": (gzip.compress(TEXT) + b"\0" * 1_000_000, TEXT),
    "padded-between": (gzip.compress(TEXT) + b"\0" * 99_999 + gzip.compress(TEXT), TEXT * 2),
    "large": (gzip.compress(bytes(range(256)) * 20_000), bytes(range(256)) * 20_000),
}
HEADER = b"\x1f\x8b\x08%b\0\0\0\0\0\xff"
FREE = FREE_PACKED_BYTES
ENDLESS = {
    "long-name": HEADER % b"\x08" + b"a" * 2 * FREE,
    "long-comment": HEADER % b"\x10" + b"a" * 2 * FREE,
    "empty-members": gzip.compress(b"") * (FREE // 10),
    "padding": gzip.compress(TEXT) + b"\0" * 2 * FREE,
    "empty-blocks": HEADER % b"\0" + b"\0\0\0\xff\xff" * (FREE // 4) + gzip.compress(TEXT)[10:],
}
DAMAGED = {
    "cut-off": gzip.compress(TEXT)[:-9],
    "cut-in-the-header": gzip.compress(TEXT)[:5],
    "second-cut-off": gzip.compress(TEXT) + gzip.compress(TEXT)[:-1],
    "checksum": gzip.compress(TEXT)[:-8] + b"\0" * 8,
    "garbage-behind": gzip.compress(TEXT) + b"garbage",
    "garbage-behind-padding": gzip.compress(TEXT) + b"\0" * 99_999 + b"garbage",
    "other-method": b"\x1f\x8b\x07" + gzip.compress(TEXT)[3:],
}


class CountingFile(io.BytesIO):
    """Counts how often it gives something."""

    num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self.num_reads += bool(block)
        return block


def unpack(packed: bytes) -> tuple[bytes, int]:
    """Return the text and how often the file was read for it."""
    file = CountingFile(packed)
    gunzip = Gunzip(file, UnpackLimits("data.jsonl", max_ratio=100, free_bytes=2**28))
    with io.BufferedReader(gunzip) as unpacked:
        return unpacked.read(), file.num_reads


@pytest.mark.parametrize("name", WHOLE)
def test_all_members_are_read_in_blocks(name: str):
    packed, text = WHOLE[name]
    found, num_reads = unpack(packed)
    assert found == text
    assert num_reads <= 1 + len(packed) / 2**16


@pytest.mark.parametrize("name", ENDLESS)
def test_packed_bytes_without_text_are_refused(name: str):
    with pytest.raises(UserError, match=r"jsonl: 1,[0-9,]+ packed bytes unpack to only \d+, exp"):
        unpack(ENDLESS[name])


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str):
    with pytest.raises(UserError, match=r"^data\.jsonl: the gzip data are damaged .*; expected "):
        unpack(DAMAGED[name])


def test_a_bomb_of_good_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 30_000))
    assert ExampleFile(path).check() == 30_000
    monkeypatch.setattr("src.data.reading.lines.FREE_UNPACKED_BYTES", 100_000)
    with pytest.raises(
        UserError, match=r"packed bytes unpack to .*, expected at most 100 times as many"
    ):
        ExampleFile(path).check()
