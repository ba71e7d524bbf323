"""Downloads arrive whole or not at all; each source says what is wrong with it."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.base_model.base_model import find_base_model
from src.weights.base_model.check import check_complete
from src.weights.cache.cache import WeightsCache
from src.weights.download.download import fetch
from tests.weights.archives import make_tar
from tests.weights.http_server import cut_off, drip, files_of, hub_routes, serving

ROUTES = {
    "/good": b"hello" * 100,
    "/cut": cut_off,
    "/drip": drip,
    "/moved": lambda handler: handler.reply(302, b"", Location="/good"),
    "/loop": lambda handler: handler.reply(302, b"", Location="/loop"),
    "/elsewhere": lambda handler: handler.reply(302, b"", Location="file:///etc/passwd"),
    "/large": b"x" * 5000,
    "/secret": lambda handler: handler.reply(403, b""),
}


def test_downloads_are_whole_or_not_there(tmp_path: Path):
    with serving(ROUTES) as address:
        for route in ("good", "moved"):
            fetch(f"{address}/{route}", tmp_path / route, max_bytes=2000)
            assert (tmp_path / route).read_bytes() == ROUTES["/good"]
        fetch("data:text/plain;base64,aGk=", tmp_path / "data", max_bytes=10)
        assert (tmp_path / "data").read_bytes() == b"hi"
        before = sorted(tmp_path.iterdir())
        for route, found in {
            "/none": "HTTP 404",
            "/secret?X-Amz-Signature=abc": "HTTP 403",
            "/cut": "could not download",
            "/loop": "redirect",
            "/elsewhere": "expected an http",
            "/large": "larger than 2,000 bytes",
        }.items():
            with pytest.raises(UserError, match=found) as caught:
                fetch(address + route, tmp_path / "bad", max_bytes=2000)
            assert "Signature" not in str(caught.value)
        started = time.monotonic()
        with pytest.raises(UserError):
            fetch(f"{address}/drip", tmp_path / "bad", max_bytes=2000, timeout_seconds=1)
        assert time.monotonic() - started < 5
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="could not download"):
        fetch(f"{address}/good", tmp_path / "bad", max_bytes=2000, timeout_seconds=2)


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "http://", "http://a b/", "x"])
def test_other_addresses_are_refused(tmp_path: Path, url: str):
    with pytest.raises(UserError):
        fetch(url, tmp_path / "bad", max_bytes=10, timeout_seconds=1)


def make_cache(tmp_path: Path, **values) -> WeightsCache:
    return WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, **values)


def test_weights_are_known_by_their_content(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(make_tar())
    cache = make_cache(tmp_path)
    with serving({"/w": make_tar()}) as address:
        one, two = cache.get(str(tmp_path / "a.tar")), cache.get(f"{address}/w?token=1")
    assert one == two
    assert one.key == hashlib.sha256(make_tar()).hexdigest()
    assert cache.get(f"{address}/w?token=1") == one  # the server is gone
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [one.key]
    assert cache.get(str(one.folder)).folder.is_dir()


def test_paths_stay_below_their_root(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.tar").write_bytes(make_tar())
    (root / "link.tar").symlink_to(tmp_path / "outside.tar")
    (root / "in.tar").write_bytes(make_tar())
    cache = make_cache(tmp_path)
    assert cache.get("in.tar", local_root=root)
    for source in ("../outside.tar", str(tmp_path / "outside.tar"), "link.tar", "a/../../x"):
        with pytest.raises(UserError, match="outside of WEIGHTS_DIR"):
            cache.get(source, local_root=root)
    for source in ("none.tar", "a\0b", "x" * 5000):
        with pytest.raises(UserError):
            cache.get(source, local_root=root)


def test_the_cache_makes_room_and_keeps_no_failure(tmp_path: Path):
    cache = make_cache(tmp_path, max_bytes=1)
    keys = []
    for number in range(3):
        (tmp_path / "a.tar").write_bytes(make_tar(files={
            "adapter_config.json": b"%d" % number, "adapter_model.safetensors": b"x",
        }))  # fmt: skip
        keys.append(cache.get(str(tmp_path / "a.tar")).key)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == keys[-1:]
    (tmp_path / "a.tar").write_bytes(b"<html>")
    with pytest.raises(UserError, match="HTML"):
        cache.get(str(tmp_path / "a.tar"))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == keys[-1:]


def test_a_mirror_is_fetched_once_and_completely(tmp_path: Path, base_dir: Path):
    routes = files_of(base_dir)
    whole = routes["/model.safetensors"]
    environ = {"BASE_MODEL": "llama-2-7b", "BASE_MODEL_CACHE": str(tmp_path / "cache")}
    with serving(routes) as address:
        environ["BASE_MODEL_URL"] = address
        routes["/model.safetensors"] = cut_off
        with pytest.raises(UserError, match="could not download"):
            find_base_model(environ)
        routes["/model.safetensors"] = whole[:-100]
        with pytest.raises(UserError, match=r"model\.safetensors is cut off or damaged: found"):
            find_base_model(environ)
        routes["/model.safetensors"] = whole
        found = find_base_model(environ)
        assert found.name == "llama-2-7b"
        check_complete(found.folder)
    assert find_base_model(environ) == found  # the server is gone
    environ["BASE_MODEL_URL"] = str(base_dir)
    assert find_base_model(environ).folder == base_dir


def test_the_signature_of_a_mirror_is_sent_and_kept_nowhere(tmp_path: Path, base_dir: Path):
    def signed(data: bytes):
        return lambda h: h.reply(200 if h.path.endswith("?sig=SECRET") else 403, data)

    routes = {f"/m{name}": signed(data) for name, data in files_of(base_dir).items()}
    environ = {"BASE_MODEL": "llama-2-7b", "BASE_MODEL_CACHE": str(tmp_path / "cache")}
    with serving(routes) as address:
        found = find_base_model({**environ, "BASE_MODEL_URL": f"{address}/m?sig=SECRET"})
    check_complete(found.folder)
    assert not [path for path in tmp_path.rglob("*") if "SECRET" in path.name]


def test_the_hub_is_asked_for_a_whole_model(tmp_path: Path, base_dir: Path):
    environ = {"BASE_MODEL": "someone/tiny", "BASE_MODEL_CACHE": str(tmp_path / "cache")}
    routes = hub_routes(base_dir, "someone/tiny")
    with serving(routes) as address:
        environ["HF_ENDPOINT"] = address
        found = find_base_model(environ)
        assert found.revision == "a" * 40
        assert (found.folder / "model.safetensors").read_bytes() == (
            base_dir / "model.safetensors"
        ).read_bytes()
        gated = {"X_Error_Code": "GatedRepo", "X_Error_Message": "Access is restricted"}
        routes["/api/models/meta-llama/Llama-2-7b-hf"] = lambda h: h.reply(403, b"", **gated)
        with pytest.raises(UserError, match="is gated on the Hub: accept its licence"):
            find_base_model({**environ, "BASE_MODEL": "llama-2-7b"})
        missing = {"X_Error_Code": "RepoNotFound"}
        routes["/api/models/someone/none"] = lambda h: h.reply(404, b"", **missing)
        with pytest.raises(UserError, match="is not on the Hub, or is private"):
            find_base_model({**environ, "BASE_MODEL": "someone/none"})
    assert find_base_model(environ) == found


def test_what_is_no_base_model_is_named(tmp_path: Path, base_dir: Path):
    folder = tmp_path / "model"
    shutil.copytree(base_dir, folder)
    environ = {"BASE_MODEL": str(folder)}
    assert find_base_model(environ).folder == folder
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(size - 10)
    with pytest.raises(UserError, match=f"found {size - 10:,} bytes, expected {size:,}"):
        find_base_model(environ)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"found pytorch_model\.bin only"):
        find_base_model(environ)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-1\.safetensors is missing"):
        find_base_model(environ)
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is no safetensors file"):
        find_base_model(environ)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="expected a tokenizer"):
        find_base_model(environ)
    for name in ("", "nope", "a/b/c"):
        with pytest.raises(UserError, match="BASE_MODEL"):
            find_base_model({"BASE_MODEL": name})
