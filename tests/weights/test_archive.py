"""Only the named members ever leave an archive; every trick is refused and leaves nothing."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from random import Random

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


GLOBAL_PAX = tarfile.TarInfo.create_pax_global_header({"comment": "0123abcd"})
LONG_NAME = make_tar(member("deep/" * 40 + "notes.txt"), tar_format=tarfile.GNU_FORMAT)
MAC = [member(f"out/._{name}", b"\0\5\x16\7") for name in FILES]
GOOD |= {
    "gnu-long-name": LONG_NAME,
    "git-archive": GLOBAL_PAX + make_tar(prefix="out/"),
    "mac": make_tar(*MAC, prefix="out/"),
    "zip-mac": make_zip(prefix="out/", extra=[("__MACOSX/out/._training.json", b"\0\5\x16\7")]),
    "gzip-padded": gzip.compress(make_tar()) + b"\0" * 512,
    "nested-same-name": make_tar(member("out/old/adapter_config.json"), prefix="out/"),
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


def test_what_is_written_can_be_read(tmp_path: Path):
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "checkpoint").mkdir()
    write_archive(folder, tmp_path / "weights.tar")
    read_archive(tmp_path / "weights.tar", copy, max_bytes=MAX_BYTES)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "folder", "weights.tar"]


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path):
    (tmp_path / "weights").write_bytes(make_tar())
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_config.json").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    with pytest.raises(FileExistsError):
        read_archive(tmp_path / "weights", folder, max_bytes=MAX_BYTES)
    assert (tmp_path / "victim").read_text() == "mine"
    assert [p.name for p in folder.iterdir()] == ["adapter_config.json"]


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


def raw(name: str, kind: bytes, data: bytes, *, rest: bytes | None = None) -> bytes:
    """Return one member of any type with data, and a good archive behind it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    header = info.tobuf(tarfile.GNU_FORMAT)
    return header + data + b"\0" * (-len(data) % 512) + (make_tar() if rest is None else rest)


def with_prefix(prefix: bytes) -> bytes:
    return patched(make_tar(), 345, prefix)


def zip_patched(signature: bytes, offset: int, value: bytes, **values) -> bytes:
    data = bytearray(make_zip(**values))
    at = data.rindex(signature) + offset
    data[at : at + len(value)] = value
    return bytes(data)


def zip_device() -> bytes:
    info = zipfile.ZipInfo("tty")
    info.external_attr = 0o020666 << 16
    return make_zip(extra=[(info, b"")])


DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"
STORED = {"compression": zipfile.ZIP_STORED}
HUGE = 100 << 20
HOSTILE |= {
    # CVE-2025-4517 and CVE-2026-11940: they need links, and no link is taken.
    "cve-2025-4517": make_tar(
        member("d" * 90, b"", type=tarfile.DIRTYPE),
        member("a", b"", linkname="d" * 90, **LINK),
        member("escape", b"", linkname="a/../../..", **LINK),
        member("escape/escaped"),
    ),
    "cve-2026-11940": make_tar(
        member("a/b/s", b"", linkname="../../secret", **LINK),
        member(CONFIG, b"", linkname="a/b/s", **HARD),
        files=REST,
    ),
    "gnu-long-name-up": raw("././@LongLink", b"L", b"../escaped\0"),
    "gnu-long-name-absolute": raw("././@LongLink", b"L", b"/tmp/escaped-absolute\0"),
    "gnu-long-name-alone": raw("././@LongLink", b"L", b"name\0", rest=b"\0" * 1024),
    "gnu-long-name-bomb": gzip.compress(raw("././@LongLink", b"L", b"x" * HUGE), 1),
    "gnu-long-link": raw("././@LongLink", b"K", b"/etc/passwd\0"),
    "pax-bomb": gzip.compress(raw("p", b"x", b"x" * HUGE), 1),
    "pax-sparse-name": raw("p", b"x", b"28 GNU.sparse.name=escaped1\n"),
    "pax-global-path": raw("p", b"g", b"19 path=../escaped\n"),
    "pax-solaris-path": raw("p", b"X", b"19 path=../escaped\n"),
    "pax-no-length": raw("p", b"x", b"path=../escaped\n"),
    "pax-length-zero": raw("p", b"x", b"0 path=../escaped\n"),
    "pax-length-short": raw("p", b"x", b"5 a=b\n19 path=../escaped\n"),
    "pax-length-long": raw("p", b"x", b"999 a=b\n"),
    "pax-realsize": raw("p", b"x", b"30 SCHILY.realsize=9999999999\n"),
    "prefix-up": with_prefix(b"../.."),
    "prefix-absolute": with_prefix(b"/tmp"),
    "backslash-up": make_tar(member("..\\escaped")),
    "log-injection": make_tar(member("a\n\x1b[31mfake: ok", b"", linkname="x", **LINK)),
    "right-to-left": make_tar(member("../\u202egnp.exe")),
    "no-name": make_tar(member("./")),
    "two-folders": make_tar(member(f"other/{CONFIG}"), files=REST),
    "folder-with-data": raw("folder", b"5", b"x" * 512),
    "only-end": b"\0" * 1024,
    "no-end": make_tar()[:3072],
    "second-tar": make_tar() + make_tar(),
    "tail": make_tar() + b"x",
    "second-gzip": gzip.compress(make_tar()) + gzip.compress(make_tar()),
    "gzip-tail": gzip.compress(make_tar()) + b"PK\x03\x04",
    "gzip-checksum": gzip.compress(make_tar())[:-8] + b"\0\0\0\0" + gzip.compress(make_tar())[-4:],
    "gzip-damaged": gzip.compress(make_tar())[:40] + b"\xff" * 40,
    "gzip-html": gzip.compress(b"<html>" * 1000),
    "gzip-twice": gzip.compress(gzip.compress(make_tar())),
    "many-empty": gzip.compress(make_tar(*(member(f"f{i}", b"") for i in range(2000)))),
    "zip-empty": make_zip(files={}),
    "zip-tail": make_zip() + b"x",
    "zip-two-ends": make_zip(files={}) + make_zip() + make_zip(files={}),
    "zip-end-beyond": zip_patched(END, 16, b"\xff\xff\xff\x7f"),
    "zip-directory-huge": zip_patched(END, 12, b"\xff\xff\xff\x7f"),
    "zip-count-lies": zip_patched(END, 8, struct.pack("<HH", 65535, 65535)),
    "zip-64": make_zip()[:-22] + b"PK\x06\x07" + b"\0" * 16 + make_zip()[-22:],
    "zip-no-names": zip_patched(DIRECTORY, 46, b"\0"),
    "zip-offset": zip_patched(DIRECTORY, 42, b"\xff\xff\xff\x7f"),
    "zip-size-larger": zip_patched(DIRECTORY, 24, struct.pack("<I", 99_000)),
    "zip-size-smaller": zip_patched(DIRECTORY, 24, struct.pack("<I", 1)),
    "zip-checksum": zip_patched(DIRECTORY, 16, b"\1\2\3\4", **STORED),
    "zip-other-local-name": zip_patched(b"PK\x03\x04", 30, b"X"),
    "zip-nul-name": zip_patched(DIRECTORY, 50, b"\0"),
    "zip-backslash": make_zip(extra=[("..\\escaped", "x")]),
    "zip-device": zip_device(),
    "zip-bzip2": make_zip(compression=zipfile.ZIP_BZIP2),
    "safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "zstandard": b"\x28\xb5\x2f\xfd" + b"\0" * 600,
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"detail": "not found"}', "JSON text"),
        (bz2.compress(b"x"), "bzip2 data"),
        (lzma.compress(b"x"), "xz data"),
        (HOSTILE["safetensors"], "a bare safetensors file"),
        (b"", "an empty file"),
    ],
)
def test_what_came_instead_is_named(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=f"not a .tar, .tar.gz or .zip archive: found .*{words}"):
        read_archive(tmp_path / "weights", tmp_path, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("name", ["tar", "tar-gz", "zip", "zip-stored"])
def test_random_damage_is_a_user_error_or_harmless(tmp_path: Path, name: str):
    random = Random(name)
    archive, folder = tmp_path / "weights", tmp_path / "out"
    for _ in range(500):
        data = bytearray(GOOD[name])
        for _ in range(random.randint(1, 4)):
            place = random.randrange(len(data))
            if random.random() < 0.5:  # the list of a zip's entries stands at the end
                place = len(data) - 1 - place % 300
            data[place] = random.choice([0, 1, 128, 255, random.randrange(256)])
        archive.write_bytes(data)
        folder.mkdir()
        try:
            read_archive(archive, folder, max_bytes=MAX_BYTES)
        except UserError:
            assert list(folder.iterdir()) == []
        assert {p.name for p in folder.iterdir()} <= FILES.keys()
        assert sorted(tmp_path.iterdir()) == [folder, archive]
        shutil.rmtree(folder)
