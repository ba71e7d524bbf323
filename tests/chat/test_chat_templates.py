"""What base models bring beside one template: named ones, files of their own, tools, reasons."""

import io
import json
from pathlib import Path

import pytest

from src.chat.chat_format import (
    ChatFormat,
    build_chat_format,
    build_train_format,
    describe_answers,
)
from src.chat.conversation import Conversation
from src.chat.tokenizer import Tokenizer
from src.data.odd_rows import OddRows
from src.data.reading.example import ChatExample, CompletionExample
from src.data.tokenization import tokenize
from src.errors import UserError
from tests.chat.known_tokenizers import make_tokenizer
from tests.chat.templates import CONTROL_TOKENS, TEMPLATES
from tests.chat.test_train_equals_serve import check, learned

OTHER = "{% for m in messages %}OTHER{{ m.content }}{% endfor %}"
CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {}}}
TOOLS = (
    "{% for t in tools %}<|system|>{{ t | tojson }}{% endfor %}{% for m in messages %}"
    "<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}"
    "({{ c.function.arguments | tojson }}){% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def written(chat_format: ChatFormat, *contents: str) -> str:
    return chat_format.tokenizer.show(chat_format.prompt_ids(Conversation.of(*contents)))


def rewrite(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_template(folder: Path) -> Path:
    make_tokenizer(folder, TEMPLATES["plain"], also=CONTROL_TOKENS)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_of_several_templates_the_default_counts(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, {"default": TEMPLATES["plain"], "tool_use": OTHER})
    check(make_tokenizer(tmp_path / "one", TEMPLATES["plain"], also=CONTROL_TOKENS))
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert "OTHER" not in written(build_chat_format("a/b", tokenizer), "Hi")


@pytest.mark.parametrize("form", ["old list", "processor"])
def test_a_template_is_read_from_older_files(tmp_path: Path, form: str):
    folder = without_template(tmp_path / "model")
    if form == "processor":
        (folder / "chat_template.json").write_text(
            json.dumps({"chat_template": TEMPLATES["plain"]})
        )
    else:
        templates = {"tool_use": OTHER, "default": TEMPLATES["plain"]}
        named = [{"name": name, "template": text} for name, text in templates.items()]
        rewrite(folder, "tokenizer_config.json", chat_template=named)
    chat_format = build_chat_format("a/b", Tokenizer(folder))
    assert written(chat_format, "Hi") == "⟨<|user|>⟩\nHi⟨<|end|>⟩\n⟨<|assistant|>⟩\n"


def test_templates_without_a_default_are_named(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, {"rag": OTHER, "tool_use": OTHER})
    with pytest.raises(UserError, match="chat templates rag, tool_use, and none named default"):
        build_chat_format("a/b", tokenizer)
    assert written(build_chat_format("a/b", tokenizer, template="Q: {prompt}"), "x").endswith(
        "Q: x"
    )


def test_a_template_that_refuses_a_dialogue_says_why(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES["refuses a system message"])
    twice = Conversation((*Conversation.of("a").messages, *Conversation.of("b").messages))
    with pytest.raises(UserError, match="refuses the messages: user and assistant in turn, please"):
        build_chat_format("a/b", tokenizer).prompt_ids(twice)


def test_a_template_that_loses_messages_is_refused(tmp_path: Path):
    last = "<|user|>{{ messages[-1].content }}<|end|>{{ bos_token }}"
    chat_format = build_chat_format("a/b", make_tokenizer(tmp_path, last))
    chat_format.prompt_ids(Conversation.of("a"))
    with pytest.raises(UserError, match="leaves out or reorders earlier messages"):
        chat_format.prompt_ids(Conversation.of("a", "b", "c"))
    nothing = make_tokenizer(tmp_path / "nothing", "<|user|>", also="<|end|>")
    with pytest.raises(UserError, match="does not show the last message: set prompt_template"):
        build_chat_format("a/b", nothing).describe()


def test_every_end_that_is_learned_ends_an_answer(tmp_path: Path):
    folder = tmp_path / "model"
    make_tokenizer(folder, TEMPLATES["plain"], also="<|user|><|assistant|><|end|><|stop|>")
    backend = Tokenizer(folder)
    stop = backend.control_id("<|stop|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    tokenizer = Tokenizer(folder)
    ends = {tokenizer.control_id(token) for token in ("<|eos|>", "<|end|>", "<|stop|>")}
    assert tokenizer.end_ids == ends
    (sequence,) = tokenize(CompletionExample("a", "b"), build_train_format("a/b", tokenizer))
    assert sequence.input_ids[-1] == tokenizer.control_id("<|end|>")
    template = build_train_format("a/b", tokenizer, template="{prompt}|")
    (sequence,) = tokenize(CompletionExample("a", "b"), template)
    assert sequence.input_ids[-1] == tokenizer.eos_id


@pytest.mark.parametrize("merges", [(("Ċ", "Ċ"),), (("Ċ", "Ġ"),), (("Ċ", "a"), ("n", "Ċ"))])
def test_tokens_that_join_prompt_and_answer(tmp_path: Path, merges: tuple[tuple[str, str], ...]):
    """What a tokenizer would join over the seam is not joined where an answer is to be written."""
    check(make_tokenizer(tmp_path, TEMPLATES["plain"], also=CONTROL_TOKENS, merges=merges))


def test_the_plan_tells_what_answers_follow(tmp_path: Path):
    plain = build_train_format("a/b", make_tokenizer(tmp_path / "plain", TEMPLATES["plain"]))
    assert plain.describe() == (
        "prompt format: the base model's chat template; answers follow "
        r"'<|assistant|>\n' and end with <|end|>"
    )
    name = "writes empty reasons into the last finished answer"
    thinks = make_tokenizer(tmp_path / "thinks", TEMPLATES[name], also=CONTROL_TOKENS)
    line = build_train_format("a/b", thinks).describe()
    assert line.endswith(
        r"'<think>\n\n</think>\n\n' before finished answers is in no prompt and not learned"
    )
    own = build_train_format("a/b", thinks, template="Q: {prompt}\nA: ")
    assert own.describe() == (
        r"prompt format: prompt_template 'Q: {prompt}\nA: '; answers follow '\nA: ' "
        "and end with <|eos|>"
    )


def test_control_tokens_count_in_prompt_template_alone(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES["plain"], also=CONTROL_TOKENS)
    own = build_chat_format("a/b", tokenizer)
    template = (
        "<|bos|><|system|>\n{system_prompt}<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\n"
    )
    same = build_chat_format("a/b", tokenizer, template=template)
    for text in ("Hi", "<|end|><|bos|>"):
        said = Conversation.of(text, system="Be kind.")
        ids = same.prompt_ids(said)
        assert ids == [tokenizer.bos_id, *own.prompt_ids(said)]
        assert ids.count(tokenizer.control_id("<|end|>")) == 2
    letters = build_chat_format("a/b", tokenizer, template="{prompt}")
    assert letters.prompt_ids(Conversation.of("<|user|>"))[0] == tokenizer.bos_id
    assert tokenizer.control_id("<|user|>") not in letters.prompt_ids(Conversation.of("<|user|>"))


def test_the_marks_of_an_answer_are_the_models_own(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES["plain"], also=CONTROL_TOKENS)
    marks = [tokenizer.control_id(mark) for mark in ("<think>", "</think>")]
    said = Conversation.of("<think>a</think>", "<think>b</think>c")
    (sequence,) = tokenize(ChatExample(said), build_train_format("a/b", tokenizer))
    ((prompt_ids, answer_ids),) = learned(sequence)
    assert not set(marks) & set(prompt_ids)
    assert [token for token in answer_ids if token in marks] == marks
    assert tokenizer.decode(answer_ids) == "<think>b</think>c"


def test_reasons_are_written_by_the_template(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TOOLS, also=CONTROL_TOKENS)
    chat_format = build_train_format("a/b", tokenizer)
    said = Conversation.of("Hi").and_then(
        [{"role": "assistant", "content": "c", "reasoning_content": "r"}]
    )
    (sequence,) = tokenize(ChatExample(said), chat_format)
    ((_, ids),) = learned(sequence)
    assert tokenizer.show(ids) == "⟨<think>⟩r⟨</think>⟩c⟨<|end|>⟩"
    assert not list(OddRows(chat_format).remarks(ChatExample(said)))
    (remark,) = OddRows(chat_format).remarks(CompletionExample("a", "b"))
    assert remark.startswith("answer without the reasons that this model gives first")
    without = build_train_format("a/b", make_tokenizer(tmp_path / "b", TEMPLATES["plain"]))
    with pytest.raises(UserError, match="reasoning_content: the base model's chat template has no"):
        tokenize(ChatExample(said), without)
    assert not list(OddRows(without).remarks(CompletionExample("a", "b")))


def test_tools_and_calls_are_written_by_the_template(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TOOLS, also=CONTROL_TOKENS + "<|tool|>")
    chat_format = build_train_format("a/b", tokenizer)
    text = {**CALL, "function": {**CALL["function"], "arguments": '{"a": 1}'}}
    said = Conversation(
        (
            {"role": "user", "content": "Add <|end|>"},
            {"role": "assistant", "content": None, "tool_calls": [text]},
            {"role": "tool", "content": "2", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "Two"},
        ),
        tools=(TOOL,),
    )
    (sequence,) = tokenize(ChatExample(said), chat_format)
    answers = [tokenizer.show(ids) for _, ids in learned(sequence)]
    assert answers == ['add({"a": 1})⟨<|end|>⟩', "Two⟨<|end|>⟩"]
    shown = tokenizer.show(sequence.input_ids)
    assert shown.startswith('⟨<|system|>⟩{"type": "function"')
    assert "⟨<|user|>⟩Add <|end|>⟨<|end|>⟩" in shown
    assert shown.endswith("⟨<|tool|>⟩2⟨<|end|>⟩⟨<|assistant|>⟩Two⟨<|end|>⟩")
    without = build_chat_format("a/b", make_tokenizer(tmp_path / "b", TEMPLATES["plain"]))
    with pytest.raises(UserError, match="tools: the base model's chat template has no place"):
        without.prompt_ids(said.until(1))
    tags = build_chat_format("a/b", tokenizer, template="{prompt}")
    with pytest.raises(UserError, match="only a chat template has a place for tools"):
        tags.prompt_ids(said.until(1))


def test_calls_that_a_template_loses_are_refused(tmp_path: Path):
    loses = TEMPLATES["plain"].replace("{% for", "{{ tools | tojson if tools }}{% for", 1)
    tokenizer = make_tokenizer(tmp_path, loses, also=CONTROL_TOKENS + "<|tool|>")
    said = Conversation.of("Add", "").and_then([{"role": "tool", "content": "2"}])
    calls = {**said.messages[1], "tool_calls": [CALL]}
    said = Conversation((said.messages[0], calls, said.messages[2]), tools=(TOOL,))
    with pytest.raises(UserError, match="tool_calls: the base model's chat template has no place"):
        build_chat_format("a/b", tokenizer).prompt_ids(said)


def test_a_template_for_tools_is_used_with_tools_alone(tmp_path: Path):
    """What the default refuses is not written by the one for tools."""
    refuses = TEMPLATES["refuses a system message"]
    tokenizer = make_tokenizer(
        tmp_path, {"default": refuses, "tool_use": TOOLS}, also=CONTROL_TOKENS + "<|tool|>"
    )
    chat_format = build_chat_format("a/b", tokenizer)
    plain = build_chat_format("a/b", make_tokenizer(tmp_path / "p", refuses, also=CONTROL_TOKENS))
    for said in (Conversation.of("Hi", system="Be kind."), Conversation.of("Hi")):
        shown = [f.tokenizer.show(f.prompt_ids(said)) for f in (chat_format, plain)]
        assert shown[0] == shown[1]
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    said = Conversation.of("Add").and_then([calls, {"role": "tool", "content": "2"}])
    with_tools = Conversation(said.messages, tools=(TOOL,))
    assert 'add({"a": 1})' in tokenizer.show(chat_format.prompt_ids(with_tools))
    with pytest.raises(UserError, match="no place for calls of tools without tools beside them"):
        chat_format.prompt_ids(said)


@pytest.mark.parametrize("loses", [True, False])
def test_text_beside_calls_that_a_template_loses_is_told(tmp_path: Path, loses: bool):
    content = "{{ m.content if not m.tool_calls }}" if loses else "{{ m.content }}"
    template = TOOLS.replace("{{ m.content }}", content)
    tokenizer = make_tokenizer(tmp_path, template, also=CONTROL_TOKENS + "<|tool|>")
    calls = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}
    said = ChatExample(
        Conversation((*Conversation.of("Add", system="Be kind.").messages, calls), tools=(TOOL,))
    )
    remarks = list(OddRows(build_train_format("a/b", tokenizer)).remarks(said))
    assert (
        "have text beside calls of tools, which the chat template leaves out" in remarks
    ) == loses


def test_a_template_that_demands_a_system_message(tmp_path: Path):
    demands = "{% if messages[0].role != 'system' %}{{ raise_exception('whom am I?') }}{% endif %}"
    tokenizer = make_tokenizer(tmp_path, demands + TEMPLATES["plain"], also=CONTROL_TOKENS)
    check(tokenizer, system="Be kind.")
    with pytest.raises(UserError, match="refuses the messages: whom am I"):
        tokenize(CompletionExample("a", "b"), build_train_format("a/b", tokenizer))


def test_a_token_that_no_file_names_is_none(tmp_path: Path):
    """Transformers' class for Qwen2 adds <|endoftext|> to a tokenizer that has none."""
    make_tokenizer(tmp_path, TEMPLATES["plain"], also=CONTROL_TOKENS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer = Tokenizer(tmp_path)
    assert "<|endoftext|>" in tokenizer.tokenizer.get_vocab()
    assert tokenizer.control_id("<|endoftext|>") is None
    tokenizer.check_rows(tokenizer.tokenizer.get_vocab()["<|endoftext|>"])
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>")) == "a<|endoftext|>"


def test_a_turn_of_weight_0_is_not_learned(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES["plain"], also=CONTROL_TOKENS)
    messages = list(Conversation.of("a", "b", "c", "d").messages)
    messages[1] = {**messages[1], "weight": 0}
    said = ChatExample(Conversation(tuple(messages)))
    (sequence,) = tokenize(said, build_train_format("a/b", tokenizer))
    assert [tokenizer.show(ids) for _, ids in learned(sequence)] == ["d⟨<|end|>⟩"]


def sentencepiece_folder(folder: Path) -> Path:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(
            ["What is the colour? It is the red one. Be kind. Hi And then?"] * 9
        ),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def test_what_stands_beside_a_tokenizer_model_counts(tmp_path: Path):
    folder = sentencepiece_folder(tmp_path / "model")
    bare = Tokenizer(folder)
    first = len(bare)
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    added = {
        str(first + number): {"content": token, "special": number > 0, **flags}
        for number, token in enumerate(("<|user|>", "<|end|>", "<|assistant|>", "<|system|>"))
    }
    config = {"eos_token": "<|end|>", "added_tokens_decoder": added, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": TEMPLATES["plain"], "use_fast": False})
    )
    tokenizer = Tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.bos_id) == (first + 1, bare.bos_id)
    assert tokenizer.encode("It is <|end|>.") == bare.encode("It is <|end|>.")
    check(tokenizer, system="Be kind.")


def test_how_answers_are_written_is_told(tmp_path: Path):
    name = "opens its reasons in the prompt and strips those of earlier answers"
    tokenizer = make_tokenizer(tmp_path / "one", TEMPLATES[name])
    told = describe_answers("a/b", tokenizer)
    assert told["chat_template"] == TEMPLATES[name]
    assert (told["generation_prompt"] or "").endswith("<think>\n")
    several = make_tokenizer(tmp_path / "two", {"default": TEMPLATES["plain"], "tool_use": OTHER})
    assert "OTHER" in (describe_answers("a/b", several)["chat_template"] or "")
    assert describe_answers("llama-2-7b", tokenizer)["chat_template"] is None
