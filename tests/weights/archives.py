"""Archives of weights, good and hostile, made in memory."""

import base64
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib

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


def make_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in FILES.items():
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
    "dot": make_tar(prefix="./"),
    "folder": make_tar(member("out", b"", type=tarfile.DIRTYPE), prefix="out/"),
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
    "gzip-of-much-text": gzip.compress(make_tar(member("README.md", b"much text " * 1_500_000))),
    "gzip-padded": gzip.compress(make_tar()) + b"\0" * 512,
    "nested-same-name": make_tar(member("out/old/adapter_config.json"), prefix="out/"),
}


def make_json(archive: bytes, *, kind: str = "application/x-tar") -> bytes:
    """Return what `cog train -o FILE` writes of an archive."""
    data = base64.b64encode(archive).decode()
    return json.dumps({"weights": f"data:{kind};base64,{data}"}, indent=2).encode()


IN_JSON = make_json(make_tar())
ANSWER = {"id": "a", "logs": 'step 1: "weights": "data:;base64,AAAA"\n', "status": "succeeded"}
GOOD |= {
    "json": IN_JSON,
    "json-of-gzip": make_json(gzip.compress(make_tar()), kind="application/gzip"),
    "json-with-blanks": b"\xef\xbb\xbf \n" + IN_JSON.replace(b": ", b" :\n"),
    "json-answer": json.dumps({**ANSWER, "output": json.loads(IN_JSON)}).encode(),
    "json-of-several-blocks": make_json(make_tar(member("README.md", bytes(200_000)))),
}


LOGS = f"runs/Nov21_17-32-46_{'ip-172-31-22-101.' * 5}internal/events"
CHECKPOINTS = [
    member(f"{folder}/{name}", b"old")
    for folder in ("checkpoint-100", "checkpoint-200")
    for name in FILES
]
GOOD |= {
    # As Python's tarfile writes what transformers' Trainer leaves.
    "pax-long-name": make_tar(member(f"out/{LOGS}"), prefix="out/", tar_format=tarfile.PAX_FORMAT),
    "pax-unicode": make_tar(member("\u00dc.md"), prefix="\u6a21/", tar_format=tarfile.PAX_FORMAT),
    "checkpoints-before": make_tar(*CHECKPOINTS, prefix="./"),
    "checkpoints-behind": make_tar(*map(member, FILES, FILES.values()), *CHECKPOINTS, files={}),
}


CONFIG = "adapter_config.json"
LINK = {"type": tarfile.SYMTYPE, "size": 0}
HARD = {"type": tarfile.LNKTYPE, "size": 0}
PAX = tarfile.PAX_FORMAT
REST = {name: data for name, data in FILES.items() if name != CONFIG}


def with_pax(**headers: str) -> bytes:
    return make_tar(member("a", pax_headers=headers), tar_format=PAX)


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
    "zip": make_zip(),
    "zip-in-gzip": gzip.compress(make_zip()),
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
    "safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "zstandard": b"\x28\xb5\x2f\xfd" + b"\0" * 600,
}


def gzip_header_endless() -> bytes:
    """Gzip data whose stored file name never ends."""
    return b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 5_000_000


def tar_raw_name(name: bytes) -> bytes:
    return patched(make_tar(member("x")), 0, name.ljust(100, b"\0"))


def sparse_1_0(map_text: bytes) -> bytes:
    """A PAX 1.0 sparse member: the map stands before the data."""
    fields = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    return raw("p", b"x", fields, rest=raw(CONFIG, b"0", map_text.ljust(512, b"\0")))


HOSTILE |= {
    "json-cut": IN_JSON[:-500],
    "json-cut-at-a-block": make_json(make_tar(member("README.md", bytes(200_000))))[: 1 << 16],
    "json-damaged": IN_JSON[:700] + b"*" + IN_JSON[701:],
    "json-padded-early": IN_JSON[:700] + b"==" + IN_JSON[702:],
    "json-url": b'{"weights": "https://example.com/weights.tar"}',
    "json-null": b'{"weights": null}',
    "json-in-json": make_json(IN_JSON),
    "json-list": b'["weights"]',
    "json-far-away": b'{"a": "' + b"x" * (2 << 20) + b'", ' + IN_JSON[1:],
    "json-hostile": make_json(make_tar(member("../escaped"))),
    "json-bomb": make_json(gzip.compress(make_tar(member("zeros", b"\0" * 300_000_000)))),
    "json-too-large": make_json(
        make_tar(member("adapter_model.safetensors", b"x" * (MAX_BYTES + 1)), files={})
    ),
}


ZEROS = b"\0" * 30_000_000
DEEP = "/".join("d" * 2 for _ in range(1500))
HOSTILE |= {
    "folder-up": make_tar(member("../escaped", b"", type=tarfile.DIRTYPE)),
    "folder-absolute": make_tar(member("/tmp/escaped-absolute", b"", type=tarfile.DIRTYPE)),
    "folder-size-lies": patched(make_tar(member("d", b"", type=b"5")), 124, b"00000001000\0"),
    "nested-folders": make_tar(
        *(member("d/" * (n % 120 + 1), b"", type=b"5") for n in range(1500)), tar_format=PAX
    ),
    "deep-name": raw("././@LongLink", b"L", DEEP.encode() + b"\0"),
    "deep-pax-name": with_pax(path=DEEP),
    "long-name": raw("././@LongLink", b"L", b"n" * 60_000 + b"\0"),
    "name-newline": make_tar(member("a\nadapter: ok")),
    "name-escape": make_tar(member("\x1b[2Ja")),
    "name-carriage-return": make_tar(member("a\rb")),
    "name-bell": make_tar(member("a\x07")),
    "name-delete": make_tar(member("a\x7f")),
    "name-c1": make_tar(member("a\x9b31m")),
    "name-surrogate": tar_raw_name(b"a\xed\xa0\x80"),
    "name-half-surrogate-pair": tar_raw_name(b"a\xed\xb0\x80b"),
    "name-latin-1": tar_raw_name(b"a\xe4"),
    "name-overlong": tar_raw_name(b"\xc0\xae\xc0\xae/escaped"),
    "name-empty": tar_raw_name(b""),
    "name-dots": make_tar(member("..")),
    "name-dots-inside": make_tar(member("out/.."), prefix="out/"),
    "name-dots-after-nul": tar_raw_name(b"../escaped\0adapter_config.json"),
    "name-windows-drive": make_tar(member("\\\\host\\share\\x")),
    "name-mixed-slashes": make_tar(member("a\\../escaped")),
    "prefix-newline": with_prefix(b"a\nb"),
    "contiguous": make_tar(member("a", type=b"7")),
    "multi-volume": make_tar(member("a", type=b"M")),
    "dump-folder": make_tar(member("a", type=b"D")),
    "volume-label": make_tar(member("a", b"", type=b"V")),
    "old-long-name": make_tar(member("a", type=b"N")),
    "solaris-acl": make_tar(member("a", type=b"A")),
    "extended-attributes": make_tar(member("a", type=b"E")),
    "high-type": make_tar(member("a", type=b"\xff")),
    "escape-type": make_tar(member("a", type=b"\x1b")),
    "wanted-as-folder": make_tar(member(CONFIG, b"", type=b"5"), files=REST),
    "wanted-as-fifo": make_tar(member(CONFIG, b"", type=tarfile.FIFOTYPE), files=REST),
    "wanted-as-device": make_tar(member(CONFIG, b"", type=tarfile.CHRTYPE), files=REST),
    "wanted-as-sparse": make_tar(member(CONFIG, type=b"S"), files=REST),
    "link-to-itself": make_tar(member(CONFIG, b"", linkname=CONFIG, **LINK), files=REST),
    "link-empty": make_tar(member("a", b"", linkname="", **LINK)),
    "link-with-data": raw("a", b"2", b"x" * 512),
    "hard-link-to-link": make_tar(
        member("l", b"", linkname="/etc", **LINK), member("m", b"", linkname="l", **HARD)
    ),
    "hard-link-with-data": raw(CONFIG, b"1", b"x" * 512),
    "link-behind-the-good": make_tar(
        *(member(n, d) for n, d in FILES.items()),
        member("l", b"", linkname="/etc", **LINK),
        files={},
    ),
    "traversal-behind-the-good": make_tar(
        *(member(n, d) for n, d in FILES.items()), member("../escaped"), files={}
    ),
    "size-zero-with-data": patched(make_tar(), 124, b"00000000000\0"),
    "size-one-block-more": patched(make_tar(), 124, b"%011o\0" % 1025),
    "size-empty": patched(make_tar(), 124, b"\0" * 12),
    "size-blank": patched(make_tar(), 124, b" " * 12),
    "size-sign": patched(make_tar(), 124, b"+0000000001\0"),
    "size-base-256-huge": patched(make_tar(), 124, b"\x80" + b"\x7f" * 11),
    "size-base-256-negative": patched(make_tar(), 124, b"\xff" * 11 + b"\x80"),
    "size-terabyte": patched(make_tar(), 124, b"17777777777\0"),
    "checksum-letters": patched(make_tar(), 148, b"abcdefg\0", fix_checksum=False),
    "checksum-empty": patched(make_tar(), 148, b"\0" * 8, fix_checksum=False),
    "checksum-negative": patched(make_tar(), 148, b"-00123\0 ", fix_checksum=False),
    "pax-name": with_pax(**{"GNU.sparse.name": "../escaped"}),
    "pax-sparse-map": with_pax(**{"GNU.sparse.map": "0,1" * 1000}),
    "pax-sparse-blocks": with_pax(**{"GNU.sparse.numblocks": "999999999"}),
    "pax-sparse-1.0": sparse_1_0(b"1\n0\n1\n"),
    "pax-sparse-1.0-endless": sparse_1_0(b"99999999\n" + b"0\n1\n" * 100),
    "pax-size-negative": with_pax(size="-1"),
    "pax-path-empty": raw("p", b"x", b"8 path=\n"),
    "pax-no-equals": raw("p", b"x", b"8 comme\n"),
    "pax-no-newline": raw("p", b"x", b"5 a=bX"),
    "pax-length-million": raw("p", b"x", b"9999999 a=b\n"),
    "pax-length-sign": raw("p", b"x", b"+6 a=b\n"),
    "pax-length-blank": raw("p", b"x", b" 6 a=b\n"),
    "pax-digits": raw("p", b"x", b"1" * 60_000),
    "pax-chain": gzip.compress(raw("p", b"x", b"6 a=b\n", rest=b"") * 100_000 + make_tar()),
    "pax-global-chain": gzip.compress(raw("p", b"g", b"6 a=b\n", rest=b"") * 100_000),
    "gnu-long-name-chain": gzip.compress(raw("n", b"L", b"a\0", rest=b"") * 100_000),
    "gnu-long-name-cut": raw("n", b"L", b"a\0")[:700],
    "gnu-long-name-newline": raw("n", b"L", b"a\nb\0"),
    "gnu-long-name-twice-up": raw("n", b"L", b"ok\0", rest=raw("n", b"L", b"../escaped\0")),
    "old-tar": patched(make_tar(), 257, b"\0" * 8),
    "folders-only": make_tar(member("d", b"", type=b"5"), files={}),
    "others-only": make_tar(member("README.md"), files={}),
    "member-too-deep": make_tar(prefix="a/b/c/"),
    "config-too-large": make_tar(member(CONFIG, b" " * (1 << 20) + b"x"), files=REST),
    "thousands-of-members": gzip.compress(make_tar(*(member(f"f{i}", b"") for i in range(20_000)))),
    "thousands-of-wanted": make_tar(*(member(f"{i}/{CONFIG}") for i in range(3000))),
    "bomb-weights": gzip.compress(make_tar(member("adapter_model.safetensors", ZEROS), files={})),
    "bomb-other": gzip.compress(make_tar(member("zeros", ZEROS))),
    "bomb-after-end": gzip.compress(make_tar() + ZEROS),
    "bomb-report": gzip.compress(make_tar(member("report.html", ZEROS))),
    "bomb-bzip2": bz2.compress(make_tar(member("zeros", ZEROS))),
    "bomb-xz": lzma.compress(make_tar(member("zeros", ZEROS))),
    "gzip-endless-name": gzip_header_endless(),
    "gzip-method": b"\x1f\x8b\x07" + gzip.compress(make_tar())[3:],
    "gzip-flags": b"\x1f\x8b\x08\xff" + gzip.compress(make_tar())[4:],
    "gzip-empty": gzip.compress(b""),
    "gzip-length-lies": gzip.compress(make_tar())[:-4] + b"\1\2\3\4",
    "gzip-of-safetensors": gzip.compress(b"\x02\0\0\0\0\0\0\0{}"),
    "gzip-two-bytes": b"\x1f\x8b",
    "zlib": b"\x78\x9c" + gzip.compress(make_tar())[10:],
    "7-zip": b"7z\xbc\xaf\x27\x1c" + b"\0" * 600,
    "rar": b"Rar!\x1a\x07\0" + b"\0" * 600,
    "elf": b"\x7fELF" + b"\0" * 600,
    "script": b"#!/bin/sh\nrm -rf /\n" + b"#" * 600,
    "zeros": b"\0" * 100_000,
    "cut-first-byte": make_tar()[1:],
    "cut-to-header": make_tar()[:512],
    "cut-gzip-header": gzip.compress(make_tar())[:9],
}


EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
"""Of deflate: a stored block of no bytes, which is not the last one."""


def padded_deflate(data: bytes) -> bytes:
    return EMPTY_BLOCK * 800_000 + zlib.compress(data, wbits=-15)


HOSTILE |= {
    "pax-many-records": gzip.compress(
        raw("p", b"x", b"4 =\n" * 16384, rest=b"") * 250 + make_tar()
    ),
    "pax-global-many": gzip.compress(raw("p", b"g", b"4 =\n" * 16384, rest=b"") * 250 + make_tar()),
    "long-names-many": gzip.compress(
        raw("././@LongLink", b"L", b"n" * 900 + b"\0" * 60_000, rest=b"") * 200 + make_tar()
    ),
    "pax-path-up-wanted": make_tar(
        member("a", pax_headers={"path": f"../{CONFIG}"}), files=REST, tar_format=PAX
    ),
    "gzip-of-nothing": gzip.compress(b"")[:10]
    + padded_deflate(make_tar())
    + gzip.compress(make_tar())[-8:],
    "two-checkpoints": make_tar(*CHECKPOINTS, files={}),
}
