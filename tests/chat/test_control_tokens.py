"""Tokens that steer a model are never made of text, however its tokenizer names and holds them."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from src.chat.chat_format import build_chat_format, build_train_format
from src.chat.conversation import Conversation
from src.chat.tokenizer import Tokenizer
from src.data.reading.example import CompletionExample, TextExample
from src.data.tokenization import tokenize
from tests.chat.known_tokenizers import CHATML

LETTERS = "abcdefghijklmnopqrstuvwxyz</s>_"


def with_flags(base_dir: Path, folder: Path, flags: dict[str, bool], template: str | None) -> Path:
    """Write a tokenizer with added tokens that are flagged as special or not; one ends answers."""
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    for token, special in flags.items():
        tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        added = config.get("added_tokens") or list(config.get("added_tokens_decoder", {}).values())
        for token in added:
            token["special"] = flags.get(token["content"], token["special"])
        (folder / name).write_text(json.dumps(config))
    return folder


def test_words_of_html_are_read_as_the_model_reads_them(base_dir: Path, tmp_path: Path):
    flags = {"<|im_start|>": True, "<|im_end|>": True, "<b>": False, "</b>": False}
    tokenizer = Tokenizer(with_flags(base_dir, tmp_path / "html", flags, CHATML))
    said = Conversation.of("a <b>c</b>", system="<b>")
    ids = build_chat_format("a/b", tokenizer).prompt_ids(said)
    assert ids == tokenizer.tokenizer.apply_chat_template(
        list(said.messages), add_generation_prompt=True, return_dict=False
    )
    assert ids.count(tokenizer.control_id("<b>")) == 2
    said = CompletionExample("a", "<b>c</b>")
    (sequence,) = tokenize(said, build_train_format("a/b", tokenizer))
    assert tokenizer.control_id("</b>") in sequence.target_ids


@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("flags", [(True, True), (False, True), (False, False)])
def test_tokens_without_a_flag_are_control_tokens(
    base_dir: Path, tmp_path: Path, flags: tuple[bool, bool], template: str | None
):
    names = ("<|im_start|>", "<|im_end|>") if template else ("<|im_end|>",)
    folder = with_flags(
        base_dir, tmp_path / "chat", dict(zip(names, flags, strict=False)), template
    )
    tokenizer = Tokenizer(folder)
    controls = {tokenizer.control_id(name) for name in (*names, "<s>", "</s>")}
    assert tokenizer.eos_id in controls
    chat_format, train_format = (
        build("x", tokenizer) for build in (build_chat_format, build_train_format)
    )
    text = f"a{''.join(names)}b</s><s>"

    def read(words: str) -> list[int]:
        ids = chat_format.prompt_ids(Conversation.of(words, words, words, system=words))
        for example in (CompletionExample(words, words), TextExample(words)):
            ids += tokenize(example, train_format)[0].input_ids
        assert words in tokenizer.decode(ids)
        return [token for token in ids if token in controls]

    assert read(text) == read("a")


def test_an_added_word_that_no_template_writes_keeps_its_token(base_dir: Path, tmp_path: Path):
    flags = {"<|im_start|>": False, "<|im_end|>": False, "<city>": False}
    tokenizer = Tokenizer(with_flags(base_dir, tmp_path / "chat", flags, CHATML))
    assert tokenizer.control_id("<city>") in tokenizer.encode("in <city>")
    assert tokenizer.decode(tokenizer.encode("in <city>")) == "in <city>"


def test_tokens_that_a_template_writes_are_read_in_answers(base_dir: Path, tmp_path: Path):
    """As text they are characters; a model that writes one has it shown."""
    template = CHATML.replace("assistant\n{%", "assistant\n<think>{%")
    flags = {"<|im_start|>": True, "<|im_end|>": True, "<think>": False}
    tokenizer = Tokenizer(with_flags(base_dir, tmp_path / "chat", flags, template))
    think = tokenizer.control_id("<think>")
    assert "<think>" in template
    assert think not in tokenizer.encode("a <think> b")
    assert tokenizer.decode([think]) == "<think>"


def unigram() -> Backend:
    segments = ["<unk>", "<s>", "</s>", *dict.fromkeys(LETTERS), "\u2581", "\u2581</s>"]
    scores = [0.0, 0.0, 0.0, *[-5.0] * (len(segments) - 3)]
    backend = Backend(models.Unigram(list(zip(segments, scores, strict=True)), unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def ignoring_merges() -> Backend:
    segments = ["<unk>", "<s>", "</s>", *dict.fromkeys(LETTERS)]
    vocabulary = {segment: number for number, segment in enumerate(segments)}
    backend = Backend(models.BPE(vocabulary, [], ignore_merges=True))
    backend.decoder = decoders.Fuse()
    return backend


def whole_words() -> Backend:
    segments = ["<unk>", "<s>", "</s>", "a", "b", "<", "/s>"]
    vocabulary = {segment: number for number, segment in enumerate(segments)}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


@pytest.mark.parametrize("make", [unigram, ignoring_merges, whole_words])
@pytest.mark.parametrize("text", ["</s>", "a </s> b", "</s></s>", "<s>", "a</s>", " </s></s> a"])
def test_a_vocabulary_that_holds_its_control_tokens(tmp_path: Path, make, text: str):
    backend = make()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    for continues in (False, True):
        ids = tokenizer.encode(text, continues=continues)
        assert ids
        assert not {1, 2} & set(ids)
        if make is not whole_words and (make is unigram or " " not in text):
            assert tokenizer.decode(ids).strip() == text.strip()
