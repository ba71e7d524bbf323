"""A JSON schema costs little or is refused; none ends the process."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.chat.tokenizer import Tokenizer
from src.cli.tiny_model import make_base_model
from src.errors import UserError
from src.serving.grammar import trial
from src.serving.grammar.json_grammar import JsonGrammar, JsonGrammars
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST

ROOT = Path(__file__).parents[2]
TEXT = {"type": "string"}
START = """
import json, os, resource, sys
from pathlib import Path
from src.errors import UserError
from src.serving.grammar.json_grammar import JsonGrammars
from src.chat.tokenizer import Tokenizer

tokenizer = Tokenizer(Path(sys.argv[1]))
grammars = JsonGrammars(tokenizer, vocab_size=len(tokenizer))
grammars.start('{"type": "string"}')
for schema in sys.stdin:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = os.times()
    try:
        grammars.start(schema)
        error = ""
    except UserError as caught:
        error = str(caught)
    seconds = sum(os.times()[:4]) - sum(started[:4])  # of the trial too
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([error, seconds, grown / 1024]), flush=True)
"""


def chain(length: int, link: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    links = {str(i): link({"$ref": f"#/d/{i + 1}"}) for i in range(length)}
    return {"d": {**links, str(length): TEXT}, "$ref": "#/d/0"}


def nest(depth: int, around: Callable[[Any], Any], inner: Any = TEXT) -> Any:
    for _ in range(depth):
        inner = around(inner)
    return inner


def choices(count: int) -> list[dict[str, Any]]:
    return [
        {"anyOf": [{"properties": {f"{i}-{j}": TEXT}, "required": [f"{i}-{j}"]} for j in range(15)]}
        for i in range(count)
    ]


LEVELS, COSTLY = "properties, or levels", "more than"  # 100 MB or 0.5 s, whichever comes first
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "references": (chain(2_200, lambda ref: ref), LEVELS),
    "references by percent signs": (
        json.loads(json.dumps(chain(980, lambda ref: {"items": ref})).replace("#/d", "#/%64")),
        LEVELS,
    ),
    "references with a base": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$id": "http://a/", "$ref": "#/$defs/b"}}},
        "'/$defs/b' does not exist",
    ),
    "references in properties": (chain(980, lambda ref: {"properties": {"x": ref}}), LEVELS),
    "references beside keywords": (chain(400, lambda ref: {"type": "string", **ref}), LEVELS),
    "doubling": (
        chain(20, lambda ref: {"properties": {k: {"type": "object", **ref} for k in "ab"}}),
        COSTLY,
    ),
    "doubling in names of annotations": (
        chain(20, lambda ref: {"properties": {k: {"x": 1, **ref} for k in ("title", "id")}}),
        COSTLY,
    ),
    "squaring": (
        chain(400, lambda ref: {"allOf": [ref, ref, {"anyOf": [TEXT, {"type": "null"}]}]}),
        LEVELS,
    ),
    "nesting": (nest(130, lambda inner: {"items": inner}), "recursion limit"),
    "nesting that is no JSON": (nest(900, lambda inner: {"items": inner}), "recursion limit"),
    "choices": ({"allOf": choices(3)}, "schema too large"),
    "multipleOf": ({"type": "integer", "multipleOf": 999_983}, COSTLY),
    "multiples together": (
        {"type": "integer", "allOf": [{"multipleOf": k} for k in (97, 89, 83)]},
        COSTLY,
    ),
    "multiples that overflow": (
        {"type": "number", "allOf": [{"multipleOf": 1e-10}, {"multipleOf": 3}]},
        "multipleOf",
    ),
    "multiples out of bounds": (
        {"type": "number", "allOf": [{"multipleOf": 1e-300}, {"multipleOf": 1e300}]},
        "multipleOf",
    ),
    "patternProperties": (
        {"patternProperties": {f"^{i}x*y{{0,{i % 50}}}$": TEXT for i in range(300)}},
        COSTLY,
    ),
    "patterns together": (
        {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(16)]},
        COSTLY,
    ),
    "patterns around each other": (
        nest(16, lambda inner: {"pattern": f"{len(str(inner))}", "anyOf": [inner]}),
        "Unable to determine",
    ),
    "properties": ({"properties": {f"{i}": {} for i in range(4_000)}}, LEVELS),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas") / "base"
    make_base_model(
        folder, ["What is it?"] * 9, vocab_size=300, hidden_size=16, num_layers=1,
        num_heads=2, num_key_value_heads=1, max_seq_len=64,
    )  # fmt: skip
    return folder


def test_no_schema_costs_much(base: Path):
    schemas = "\n".join(json.dumps(schema) for schema, _ in HOSTILE.values())
    done = subprocess.run(
        [sys.executable, "-c", START, str(base)], input=schemas, cwd=ROOT,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{list(HOSTILE)[len(costs)]}: {done.stderr}"
    for (name, (_, expected)), cost in zip(HOSTILE.items(), costs, strict=True):
        error, seconds, mebibytes = cost
        assert error.startswith("json_schema: expected"), name
        assert expected in error, name
        assert len(error) < 300, name
        assert seconds < 1, name
        assert mebibytes < 50, name


def model(number: int, count: int) -> dict[str, Any]:
    other = {"$ref": f"#/$defs/M{(number * 7 + 1) % count}"}
    return {
        "title": f"Model {number}",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": f"^[a-z]{{1,{number + 2}}}$", "maxLength": 99},
            "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
            "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
            "one": {"description": "Another one", **other},
            "many": {"type": "array", "items": other, "maxItems": 100},
            "old": {"title": "As older versions write it", "allOf": [other]},
        },
        "required": ["name"],
        "additionalProperties": False,
    }


ORDINARY: dict[str, dict[str, Any]] = {
    "models": {"$ref": "#/$defs/M0", "$defs": {f"M{i}": model(i, 60) for i in range(60)}},
    "inheritance": {
        "$ref": "#/$defs/M0",
        "$defs": {f"M{i}": {"allOf": [{"$ref": "#/$defs/B"}, model(0, 8)]} for i in range(8)}
        | {"B": {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}}}},
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            }
        },
    },
    "strings": {"type": "string", "enum": [f"value number {i}" for i in range(1_000)]},
    "numbers": {"enum": list(range(10_000))},
    "union": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": f"{i}"}}, "required": ["kind"]}
            for i in range(200)
        ]
    },
    "arrays": nest(30, lambda inner: {"type": "array", "items": inner}),
    "objects": nest(25, lambda inner: {"type": "object", "properties": {"a": inner}}),
    "many properties": {
        "type": "object",
        "properties": {f"property_{i}": {**TEXT, "description": "a" * 60} for i in range(450)},
    },
    "names that are keywords": {
        "properties": dict.fromkeys(("$ref", "enum", "allOf", "pattern", "properties"), TEXT)
    },
    "escaped references": {
        "$ref": "#/definitions/List%3C~1a%3E",
        "definitions": {
            "List</a>": {"type": "array", "items": {"$ref": "#/definitions/b/anyOf/0"}},
            "b": {"anyOf": [TEXT, {"type": "null"}]},
        },
    },
    "anchors": {"$ref": "#a", "$defs": {"a": {"$anchor": "a", "type": "string"}}},
    "bases": {"$ref": "http://a/b", "$defs": {"b": {"$id": "http://a/b", "type": "string"}}},
    "long arrays": {"prefixItems": [{"type": "array", "minItems": 10**5 + i} for i in range(600)]},
    "multiples": {"properties": {f"{k}": {"multipleOf": k} for k in (0.01, 0.25, 7, 1000)}},
    "nothing": {},
}


@pytest.fixture(scope="module")
def grammars(base: Path) -> JsonGrammars:
    tokenizer = Tokenizer(base)
    return JsonGrammars(tokenizer, vocab_size=len(tokenizer))


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_schemas_are_taken(grammars: JsonGrammars, name: str):
    assert grammars.start(json.dumps(ORDINARY[name])) is not None


@pytest.mark.parametrize(
    ("schema", "starts"),
    [
        (ORDINARY["anchors"], '"'),
        (ORDINARY["bases"], '"'),
        (ORDINARY["tree"], "{"),
        ({"enum": [12, True]}, "1t"),
        ({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 9}, "07"),
    ],
)
def test_an_answer_begins_as_its_schema_wants(
    base: Path, grammars: JsonGrammars, schema: dict[str, Any], starts: str
):
    tokenizer = Tokenizer(base)
    allowed = torch.zeros(len(tokenizer), dtype=torch.bool)
    grammars.start(json.dumps(schema)).fill(allowed)
    texts = {tokenizer.decode([token]) for token in allowed.nonzero().flatten().tolist()}
    assert {text[0] for text in texts} - set(" \n\r\t") == set(starts)


def test_what_cannot_be_said_is_named(grammars: JsonGrammars):
    with pytest.raises(UserError, match="found: number out of range"):
        grammars.start('{"const": ' + "9" * 5_000 + "}")
    with pytest.raises(UserError, match="expected Unicode text, found half of a surrogate pair"):
        grammars.start('{"const": "\ud800"}')


def test_a_schema_is_tried_once(grammars: JsonGrammars, monkeypatch: pytest.MonkeyPatch):
    grammars.start('{"const": "known"}')
    monkeypatch.setattr(sys, "executable", "/no/python")
    grammars.start('{"const": "known"}')
    with pytest.raises(FileNotFoundError):
        grammars.start('{"const": "new"}')


def test_the_trial_loads_no_torch():
    command = [sys.executable, "-I", "-X", "importtime", trial.__file__]
    done = subprocess.run(command, input="{}", capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "llguidance" in loaded
    assert not loaded & {"torch", "numpy", "transformers"}


def test_grammars_are_made_where_nobody_waits(base: Path, monkeypatch: pytest.MonkeyPatch):
    makers: list[threading.Thread] = []
    start, copy = JsonGrammars.start, JsonGrammar.copy

    def started(self: JsonGrammars, schema: str) -> JsonGrammar:
        makers.append(threading.current_thread())
        return start(self, schema)

    def copied(self: JsonGrammar) -> JsonGrammar:
        makers.append(threading.current_thread())
        return copy(self)

    monkeypatch.setattr(JsonGrammars, "start", started)
    monkeypatch.setattr(JsonGrammar, "copy", copied)
    monkeypatch.setenv("BASE_MODEL", str(base))
    monkeypatch.setenv("WEIGHTS_CACHE", str(base.parent / "cache"))
    predictor = TextPredictor(None)

    async def ask() -> None:
        request = {**REQUEST, "json_schema": '{"enum": ["one", "two"]}', "num_outputs": 3}
        async for _ in predictor.stream_async(request, record_metric=lambda *_, **__: None):
            pass

    asyncio.run(ask())
    predictor.close()
    assert len(makers) == 3
    assert threading.current_thread() not in makers
