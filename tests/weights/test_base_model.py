"""A base model is whole, or the file that is wrong is named."""

import json
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.base_models import KNOWN_MODELS, KnownModel
from src.errors import UserError
from src.weights.base_model.base_model import find_base_model
from src.weights.base_model.check import check_complete
from tests.weights.http_server import cut_off, files_of, hub_routes, serving


def safetensors(*values: float) -> bytes:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
    ).encode()
    return struct.pack(f"<Q{len(header)}s{len(values)}f", len(header), header, *values)


SHARDS = {"model-00001-of-00002.safetensors": [1, 2], "model-00002-of-00002.safetensors": [3]}
INDEX = {
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    folder = tmp_path / "single"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(1, 2, 3))
    return folder


@pytest.fixture
def sharded(single: Path) -> Path:
    folder = single.rename(single.with_name("sharded"))
    (folder / "model.safetensors").unlink()
    for name, values in SHARDS.items():
        (folder / name).write_bytes(safetensors(*values))
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"BASE_MODEL": "someone/tiny", "BASE_MODEL_CACHE": str(tmp_path / "cache")}


@pytest.mark.parametrize("environ", [{}, {"BASE_MODEL": ""}, {"BASE_MODEL": "  "}])
def test_a_missing_name_is_said_with_what_it_may_be(environ: dict[str, str]):
    with pytest.raises(UserError, match=r"BASE_MODEL is not set: .*llama-2-7b.*owner/name.*folder"):
        find_base_model(environ)


@pytest.mark.parametrize("name", ["nope", "a/b/c", "/no/such/folder", "a b", "\n\x1b[31m"])
def test_a_wrong_name_is_said(name: str):
    with pytest.raises(UserError, match="BASE_MODEL") as caught:
        find_base_model({"BASE_MODEL": name})
    assert str(caught.value).isprintable()


def test_a_local_folder_is_taken_as_it_is(single: Path, sharded_copy: Path):
    for folder in (single, sharded_copy):
        found = find_base_model({"BASE_MODEL": str(folder)})
        assert (found.name, found.folder, found.revision) == (str(folder), folder, None)
        mirrored = find_base_model({"BASE_MODEL": "llama-2-7b", "BASE_MODEL_URL": str(folder)})
        assert (mirrored.name, mirrored.folder) == ("llama-2-7b", folder)
    with pytest.raises(UserError, match="BASE_MODEL_URL: there is no folder"):
        find_base_model({"BASE_MODEL": "llama-2-7b", "BASE_MODEL_URL": "/no/such/folder"})


@pytest.fixture
def sharded_copy(single: Path) -> Path:
    folder = single.with_name("sharded-copy")
    shutil.copytree(single, folder)
    (folder / "model.safetensors").unlink()
    for name, values in SHARDS.items():
        (folder / name).write_bytes(safetensors(*values))
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    return folder


DAMAGES = {
    "no-config": ({"config.json": None}, r"expected a config\.json, found none"),
    "config-html": ({"config.json": b"<html>"}, r"config\.json is not valid JSON"),
    "config-deep": ({"config.json": b"[" * 100_000}, r"config\.json is not valid JSON"),
    "config-bytes": ({"config.json": b"\xff\xfe"}, r"config\.json is not valid JSON"),
    **{
        f"quantized-{method}": (
            {"config.json": json.dumps({"quantization_config": found}).encode()},
            rf"its weights are quantized already, with {method}; expected",
        )
        for method, found in {
            "gptq": {"quant_method": "gptq", "bits": 4},
            "awq": {"quant_method": "awq"},
            "fp8": {"quant_method": "fp8"},
            "bitsandbytes 8-bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        }.items()
    },
    "no-tokenizer": ({"tokenizer.json": None}, "expected a tokenizer"),
    "no-weights": ({"model.safetensors": None}, "found none"),
    "pickle": (
        {"model.safetensors": None, "pytorch_model.bin": b"\x80"}, r"found pytorch_model\.bin only",
    ),
    "cut": ({"model.safetensors": safetensors(1, 2, 3)[:-4]}, "that are damaged or cut off"),
    "longer": ({"model.safetensors": safetensors(1) + b"x"}, "that are damaged or cut off"),
    "cut-header": ({"model.safetensors": safetensors(1)[:20]}, "damaged or cut off"),
    "empty": ({"model.safetensors": b""}, "damaged or cut off"),
    "html": ({"model.safetensors": b"<html>Not found</html>"}, "damaged or cut off"),
    **{
        f"header-{number}": (
            {"model.safetensors": struct.pack("<Q", len(header)) + header}, "damaged or cut off",
        )
        for number, header in enumerate(
            [b"[]", b"1", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": []}}',
             b'{"a": {"data_offsets": [0, "4"]}}', b'{"a": {"data_offsets": [0, null]}}',
             b"[" * 100_000, b"\xff"]
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_named(single: Path, name: str):
    changes, words = DAMAGES[name]
    for file, content in changes.items():
        if content is None:
            (single / file).unlink()
        else:
            (single / file).write_bytes(content)
    with pytest.raises(UserError, match=f"base model single: .*{words}"):
        find_base_model({"BASE_MODEL": str(single)})


INDEXES = {
    "not-json": "<html>",
    "deep": "[" * 100_000,
    "list": "[]",
    "no-map": "{}",
    "map-list": '{"weight_map": []}',
    "map-empty": '{"weight_map": {}}',
    "map-number": '{"weight_map": {"a": 1}}',
    "map-nested": '{"weight_map": {"a": ["x.safetensors"]}}',
    "traversal": '{"weight_map": {"a": "../x.safetensors"}}',
    "absolute": '{"weight_map": {"a": "/etc/x.safetensors"}}',
    "pickle": '{"weight_map": {"a": "pytorch_model.bin"}}',
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_damaged_index_is_named(sharded: Path, name: str):
    (sharded / "model.safetensors.index.json").write_text(INDEXES[name])
    with pytest.raises(UserError, match=r"base model sharded: .*index"):
        check_complete(sharded)


def test_a_missing_or_cut_shard_is_named(sharded: Path):
    shard = sharded / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=f"{shard.name}: expected a complete .*, found {size - 1} bytes that"
    ):
        check_complete(sharded)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: the file is missing"):
        check_complete(sharded)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_mirror_is_copied(
    kind: str, request: pytest.FixtureRequest, environ: dict[str, str], tmp_path: Path
):
    folder = request.getfixturevalue(kind)
    with serving(files_of(folder)) as address:
        environ["BASE_MODEL_URL"] = f"{address}/"
        found = find_base_model(environ)
    assert files_of(found.folder) == files_of(folder)
    assert found.folder.is_relative_to(tmp_path / "cache")
    assert find_base_model(environ) == found  # the server is gone


MIRROR_FAULTS = {
    "cut": cut_off,
    "short": safetensors(3)[:-1],
    "missing": None,
    "html": b"<html>Please log in</html>",
    "busy": lambda handler: handler.reply(503, b""),
}


@pytest.mark.parametrize("fault", MIRROR_FAULTS)
def test_a_broken_mirror_leaves_no_model_and_a_second_try_works(
    sharded: Path, environ: dict[str, str], tmp_path: Path, fault: str
):
    routes = files_of(sharded)
    good = dict(routes)
    routes["/model-00002-of-00002.safetensors"] = MIRROR_FAULTS[fault]
    with serving(routes) as address:
        environ["BASE_MODEL_URL"] = address
        for _ in range(2):
            with pytest.raises(UserError):
                find_base_model(environ)
            assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
        routes.update(good)
        assert files_of(find_base_model(environ).folder) == good


def test_the_signature_of_a_mirror_is_sent_and_kept_nowhere(
    single: Path, environ: dict[str, str], tmp_path: Path
):
    def signed(data: bytes):
        return lambda h: h.reply(200 if h.path.endswith("?sig=SECRET") else 403, data)

    routes = {f"/m{name}": signed(data) for name, data in files_of(single).items()}
    with serving(routes) as address:
        found = find_base_model({**environ, "BASE_MODEL_URL": f"{address}/m?sig=SECRET"})
    check_complete(found.folder)
    assert not [path for path in tmp_path.rglob("*") if "SECRET" in path.name]


def test_two_who_want_a_model_fetch_it_once(single: Path, environ: dict[str, str]):
    asked: list[str] = []

    def noting(data: bytes):
        def answer(handler):
            asked.append(handler.path)
            time.sleep(0.05)
            handler.reply(200, data)

        return answer

    routes = {name: noting(data) for name, data in files_of(single).items()}
    with serving(routes) as address, ThreadPoolExecutor(4) as pool:
        environ["BASE_MODEL_URL"] = address
        found = set(pool.map(lambda _: find_base_model(environ), range(4)))
    assert len(found) == 1
    assert sorted(asked) == sorted(routes)


def test_a_torn_fetch_of_a_killed_process_is_no_model(
    single: Path, environ: dict[str, str], tmp_path: Path
):
    with serving(files_of(single)) as address:
        environ["BASE_MODEL_URL"] = address
        found = find_base_model(environ)
        partial = found.folder.with_name(f"{found.folder.name}.partial")
        found.folder.rename(partial)
        (partial / "model.safetensors").write_bytes(b"torn")
        assert files_of(find_base_model(environ).folder) == files_of(single)
    assert not partial.exists()


def test_an_optional_file_that_breaks_off_is_not_left_out(single: Path, environ: dict[str, str]):
    routes = {**files_of(single), "/tokenizer_config.json": cut_off}
    with serving(routes) as address, pytest.raises(UserError, match=r"tokenizer_config\.json"):
        find_base_model({**environ, "BASE_MODEL_URL": address})


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_the_hub_is_copied(kind: str, request: pytest.FixtureRequest, environ: dict[str, str]):
    folder = request.getfixturevalue(kind)
    (folder / "pytorch_model.bin").write_bytes(b"\x80 not asked for")
    with serving(hub_routes(folder, "someone/tiny")) as address:
        environ["HF_ENDPOINT"] = address
        found = find_base_model(environ)
    expected = {n: d for n, d in files_of(folder).items() if n != "/pytorch_model.bin"}
    assert files_of(found.folder) == {**expected, "/revision.txt": b"a" * 40}
    assert found.revision == "a" * 40
    assert find_base_model(environ) == found  # the server is gone


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize("place", ["hub", "mirror"])
def test_without_weights_none_are_fetched(
    place: str, kind: str, request: pytest.FixtureRequest, environ: dict[str, str]
):
    folder = request.getfixturevalue(kind)
    small = {n: d for n, d in files_of(folder).items() if not n.endswith(".safetensors")}
    routes = hub_routes(folder, "someone/tiny") if place == "hub" else files_of(folder)
    with serving(routes) as address:
        environ |= {"HF_ENDPOINT": address} if place == "hub" else {"BASE_MODEL_URL": address}
        found = find_base_model(environ, with_weights=False).folder
        assert files_of(found).keys() - {"/model.safetensors.index.json", "/revision.txt"} == (
            small.keys() - {"/model.safetensors.index.json"}
        )
        whole = find_base_model(environ)
    assert whole.folder != found
    check_complete(whole.folder)
    # From now on the whole one serves both.
    assert find_base_model(environ, with_weights=False) == whole


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_is_said_with_the_way_in(environ: dict[str, str], status: int):
    def gated(handler):
        headers = {"X_Error_Code": "GatedRepo", "X_Error_Message": "Access is restricted"}
        handler.reply(status, b"", **headers)

    routes = {"/api/models/someone/tiny": gated}
    words = "someone/tiny is gated on the Hub: accept its licence there and set HF_TOKEN"
    with serving(routes) as address, pytest.raises(UserError, match=words):
        find_base_model({**environ, "HF_ENDPOINT": address})


def test_a_model_that_the_hub_does_not_know_is_said(environ: dict[str, str]):
    missing = {"X_Error_Code": "RepoNotFound"}
    routes = {"/api/models/someone/tiny": lambda h: h.reply(404, b"", **missing)}
    words = "someone/tiny is not on the Hub, or is private: check BASE_MODEL and HF_TOKEN"
    with serving(routes) as address, pytest.raises(UserError, match=words):
        find_base_model({**environ, "HF_ENDPOINT": address})


def test_the_token_is_sent_to_the_hub(single: Path, environ: dict[str, str]):
    routes = hub_routes(single, "someone/tiny")
    info, seen = routes["/api/models/someone/tiny"], []

    def note(handler):
        seen.append(handler.headers.get("Authorization"))
        handler.reply(200, info)

    routes["/api/models/someone/tiny"] = note
    with serving(routes) as address:
        find_base_model({**environ, "HF_ENDPOINT": address, "HF_TOKEN": "hf_secret"})
    assert seen == ["Bearer hf_secret"]


def test_a_hub_without_answer_is_a_sentence(environ: dict[str, str]):
    with serving({}) as address:
        pass
    with pytest.raises(UserError, match="someone/tiny could not be fetched from the Hub"):
        find_base_model({**environ, "HF_ENDPOINT": address})
    with pytest.raises(UserError, match=r"a/b\.\.c could not be fetched from the Hub"):
        find_base_model({**environ, "BASE_MODEL": "a/b..c", "HF_ENDPOINT": address})


def test_a_hub_model_without_safetensors_is_refused(
    single: Path, environ: dict[str, str], tmp_path: Path
):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    words = r"expected weights in model\.safetensors"
    routes = hub_routes(single, "someone/tiny")
    with serving(routes) as address, pytest.raises(UserError, match=words):
        find_base_model({**environ, "HF_ENDPOINT": address})
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


SMOLLM2_DIALOGUE = """<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
What is the capital of France?<|im_end|>
<|im_start|>assistant
"""


def test_a_package_brings_a_real_model(smollm2_dir: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_complete(smollm2_dir)
    config = json.loads((smollm2_dir / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt == SMOLLM2_DIALOGUE
    tokens = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
    assert tokens == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.tokenize("a  24") == ["a", "ĠĠ", "2", "4"]  # digits are parted first
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, do_sample=False, max_new_tokens=20)[
        0, len(ids["input_ids"][0]) :
    ]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_a_package_that_is_not_there_is_said(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(KNOWN_MODELS, "packed", KnownModel("a/b", package="no-such-package"))
    with pytest.raises(UserError, match="package no-such-package, which is not installed"):
        find_base_model({**environ, "BASE_MODEL": "packed"})


def test_a_package_that_cannot_be_converted_leaves_no_model(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "site" / "torn_package").mkdir(parents=True)
    (tmp_path / "site" / "torn_package" / "model.gguf").write_bytes(b"GGUF\3\0\0\0torn")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setitem(KNOWN_MODELS, "packed", KnownModel("a/b", package="torn-package"))
    with pytest.raises(UserError, match="of torn-package could not be converted: ") as caught:
        find_base_model({**environ, "BASE_MODEL": "packed"})
    print(caught.value)
    assert [p for p in (tmp_path / "cache").iterdir() if p.name == "torn-package"] == []


MEANT = {
    "llama2": "did you mean llama-2-7b",
    "Llama-2-7b": "did you mean llama-2-7b",
    "~/models/x": "write $HOME",
    "/none": "is no folder here",
    "models/llama.gguf": "a file of llama.cpp; expected a folder",
    __file__: f"is a file; expected its folder, {Path(__file__).parent}",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_name_that_is_none_says_what_to_write(name: str):
    with pytest.raises(UserError, match="BASE_MODEL: ") as caught:
        find_base_model({"BASE_MODEL": name})
    assert MEANT[name] in str(caught.value)
