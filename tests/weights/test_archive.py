"""Only the named members ever leave an archive; every trick is refused and leaves nothing."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.archive import read_archive, write_archive

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "training.json": b'{"format_version": 1}',
}
MAX_BYTES = 100_000


def member(name: str, data: bytes = b"x", **values) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def make_tar(*extra, files=FILES, prefix="", tar_format=tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for info, data in [*extra, *(member(prefix + n, d) for n, d in files.items())]:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def make_zip(files=FILES, prefix="", compression=zipfile.ZIP_DEFLATED, extra=()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in [*((prefix + n, d) for n, d in files.items()), *extra]:
            archive.writestr(name, data)
    return buffer.getvalue()


def patched(data: bytes, offset: int, value: bytes, *, fix_checksum: bool = True) -> bytes:
    """Overwrite bytes of the first header, with a right checksum unless asked otherwise."""
    data = data[:offset] + value + data[offset + len(value) :]
    if fix_checksum:
        header = data[:148] + b" " * 8 + data[156:512]
        data = data[:148] + b"%06o\0 " % sum(header) + data[156:]
    return data


GOOD = {
    "tar": make_tar(),
    "tar-gz": gzip.compress(make_tar()),
    "zip": make_zip(),
    "zip-stored": make_zip(compression=zipfile.ZIP_STORED),
    "dot": make_tar(prefix="./"),
    "folder": make_tar(member("out", b"", type=tarfile.DIRTYPE), prefix="out/"),
    "zip-folder": make_zip(prefix="out/"),
    "others": make_tar(member("README.md"), member("._training.json")),
    "gnu": make_tar(tar_format=tarfile.GNU_FORMAT),
    "pax-mtime": make_tar(
        member("README", pax_headers={"mtime": "1.5"}), tar_format=tarfile.PAX_FORMAT
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_archives_are_read(tmp_path: Path, name: str):
    (tmp_path / "weights").write_bytes(GOOD[name])
    folder = tmp_path / "out"
    folder.mkdir()
    read_archive(tmp_path / "weights", folder, max_bytes=MAX_BYTES)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}


def test_the_same_files_make_the_same_archive(tmp_path: Path):
    archives = []
    for number, names in enumerate((list(FILES), list(reversed(FILES)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(FILES[name])
            os.utime(folder / name, (number, number))
        write_archive(folder, tmp_path / f"{number}.tar")
        archives.append((tmp_path / f"{number}.tar").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        assert tar.getnames() == sorted(FILES)


CONFIG = "adapter_config.json"
LINK = {"type": tarfile.SYMTYPE, "size": 0}
HARD = {"type": tarfile.LNKTYPE, "size": 0}
PAX = tarfile.PAX_FORMAT
REST = {name: data for name, data in FILES.items() if name != CONFIG}


def with_pax(**headers: str) -> bytes:
    return make_tar(member("a", pax_headers=headers), tar_format=PAX)


def zip_with_flag(flag: int) -> bytes:
    data = bytearray(make_zip(compression=zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data[at : at + 2] = flag.to_bytes(2, "little")
    return bytes(data)


def zip_link() -> bytes:
    info = zipfile.ZipInfo(CONFIG)
    info.external_attr = 0o120777 << 16
    return make_zip(files=REST, extra=[(info, "/etc/passwd")])


HOSTILE = {
    "link-absolute": make_tar(member(CONFIG, b"", linkname="/etc/passwd", **LINK), files=REST),
    "link-up": make_tar(member(CONFIG, b"", linkname="../secret", **LINK), files=REST),
    "link-inside": make_tar(member(CONFIG, b"", linkname="training.json", **LINK), files=REST),
    "link-other": make_tar(member("other", b"", linkname="/etc", **LINK)),
    "hard-link": make_tar(member(CONFIG, b"", linkname="/etc/passwd", **HARD), files=REST),
    "hard-link-other": make_tar(member("other", b"", linkname="../x", **HARD)),
    "fifo": make_tar(member("pipe", b"", type=tarfile.FIFOTYPE)),
    "character-device": make_tar(member("tty", b"", type=tarfile.CHRTYPE)),
    "block-device": make_tar(member("disk", b"", type=tarfile.BLKTYPE)),
    "traversal": make_tar(member("../escaped")),
    "traversal-deep": make_tar(member("a/../../escaped")),
    "traversal-wanted": make_tar(member(f"../{CONFIG}"), files=REST),
    "absolute": make_tar(member("/tmp/escaped-absolute")),
    "absolute-wanted": make_tar(member(f"/tmp/{CONFIG}"), files=REST),
    "duplicate": make_tar(member(CONFIG)),
    "duplicate-dot": make_tar(member(f"./{CONFIG}")),
    "pax-path": with_pax(path="../escaped"),
    "pax-size": with_pax(size="99999999"),
    "pax-linkpath": with_pax(linkpath="/etc/passwd"),
    "pax-sparse": with_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "pax-sparse-size": with_pax(**{"GNU.sparse.realsize": "1099511627776"}),
    "pax-huge": with_pax(comment="x" * 200_000),
    "gnu-long-name": make_tar(member("x" * 200_000), tar_format=tarfile.GNU_FORMAT),
    "gnu-sparse": make_tar(member("a", type=b"S")),
    "unknown-type": make_tar(member("a", type=b"Z")),
    "checksum": patched(make_tar(), 148, b"000000\0 ", fix_checksum=False),
    "size-negative": patched(make_tar(), 124, b"-0000000001\0"),
    "size-base-256": patched(make_tar(), 124, b"\xff" * 12),
    "size-letters": patched(make_tar(), 124, b"zzzzzzzzzzz\0"),
    "size-too-large": patched(make_tar(), 124, b"77777777777\0"),
    "cut-header": make_tar()[:300],
    "cut-data": make_tar()[:520],
    "cut-gzip": gzip.compress(make_tar())[:-30],
    "no-config": make_tar(files=REST),
    "no-weights": make_tar(files={CONFIG: b"{}"}),
    "many-members": make_tar(*(member(f"f{number}") for number in range(5000))),
    "too-large": make_tar(member("adapter_model.safetensors", b"x" * (MAX_BYTES + 1)), files={}),
    "bomb-gzip": gzip.compress(make_tar(member("zeros", b"\0" * 300_000_000))),
    "bomb-wanted": gzip.compress(make_tar(member(CONFIG, b"\0" * 50_000_000), files=REST)),
    "bomb-zip": make_zip(files=REST, extra=[(CONFIG, b"\0" * 50_000_000)]),
    "zip-link": zip_link(),
    "zip-encrypted": zip_with_flag(1),
    "zip-traversal": make_zip(extra=[("../escaped", "x")]),
    "zip-absolute": make_zip(extra=[("/tmp/escaped-absolute", "x")]),
    "zip-duplicate": make_zip(extra=[(f"./{CONFIG}", "x")]),
    "zip-many": make_zip(extra=[(f"f{number}", "x") for number in range(300)]),
    "zip-cut": make_zip()[:-10],
    "zip-lzma": make_zip(compression=zipfile.ZIP_LZMA),
    "bzip2": bz2.compress(make_tar()),
    "xz": lzma.compress(make_tar()),
    "html": b"<!DOCTYPE html><html>Not found</html>",
    "json": b'{"detail": "not found"}',
    "empty": b"",
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "noise": bytes(range(256)) * 8,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, name: str):
    inner = tmp_path / "inner"
    folder = inner / "out"
    folder.mkdir(parents=True)
    archive = tmp_path / "weights"
    archive.write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as caught:
        read_archive(archive, folder, max_bytes=MAX_BYTES)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert list(folder.iterdir()) == []
    assert list(inner.iterdir()) == [folder]
    assert sorted(tmp_path.iterdir()) == [inner, archive]
    assert not Path("/tmp/escaped-absolute").exists()
