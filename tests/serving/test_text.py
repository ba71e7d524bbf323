"""Stop sequences never leak and never swallow; tokens become text with nothing lost."""

import random

import pytest

from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.serving.output.detokenizer import Detokenizer
from src.serving.output.stopping import StopBuffer, parse_stop_sequences
from tests.chat.known_tokenizers import needs_llama


def stopped(text: str, sequences: list[str]) -> str:
    """Return what should be shown, letter by letter: the slow and obvious way."""
    for end in range(1, len(text) + 1):
        found = [s for s in sequences if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def test_stopping_is_exact_however_the_text_comes():
    rng = random.Random(0)
    num_stopped = 0
    for _ in range(20_000):
        sequences = ["".join(rng.choices("ab<", k=rng.randint(1, 4))) for _ in range(3)]
        text = "".join(rng.choices("ab<c", k=rng.randint(0, 14)))
        buffer, shown, position, is_stopped = StopBuffer(sequences), "", 0, False
        while position < len(text) and not is_stopped:
            size = rng.randint(1, 5)
            piece, is_stopped = buffer.push(text[position : position + size])
            position += size
            shown += piece
            assert stopped(text, sequences).startswith(shown)
        if not is_stopped:
            shown += buffer.flush()
        assert shown == stopped(text, sequences)
        num_stopped += is_stopped
    assert num_stopped > 5000


class Compared(str):
    """A stop sequence that counts how often one of its characters is looked at."""

    num_looks = 0

    def __getitem__(self, key):
        Compared.num_looks += 1 if isinstance(key, int) else len(range(len(self))[key])
        return super().__getitem__(key)


def test_a_long_run_that_nearly_stops_costs_no_more_for_it():
    """Each character of the text is held against each sequence a few times, long as it may be."""
    sequences = ["a" * 998 + f"{n:02}" for n in range(64)]
    buffer = StopBuffer([Compared(sequence) for sequence in sequences])
    for character in ["a"] * 1200 + ["b"] + ["a"] * 999:
        Compared.num_looks = 0
        assert not buffer.push(character)[1]
        assert 0 < Compared.num_looks <= 4 * 64
    assert buffer.push("63") == ("", True)


def test_too_many_characters_are_named():
    with pytest.raises(UserError, match="at most 1,000,000 characters in all, found 1,000,001"):
        parse_stop_sequences("a" * 1_000_001)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("a,b", ("a", "b")),
        ("a,,b,", ("a", "b")),
        ("a, b", ("a", " b")),
        ('["a,b", "c"]', ("a,b", "c")),
        ("[INST],x", ("[INST]", "x")),
        ("[]", ()),
        ('["", "\\n"]', ("\n",)),
    ],
)
def test_stop_sequences_are_a_list_with_commas_or_json(text, expected):
    assert parse_stop_sequences(text) == expected


@pytest.mark.parametrize("text", ["[1]", ",".join(["a"] * 500_000), "a" * 2000, '[["a"]]'])
def test_what_is_no_such_list_is_refused(text):
    with pytest.raises(UserError, match="stop_sequences: expected"):
        parse_stop_sequences(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is red.",
        " two  blanks ",
        "👩‍👩‍👧 emoji 🍎",
        "漢字\n\tcode()",
        "a\ufffdb",
        "\ufffd",
        "é" * 9,
    ],
)
def test_pieces_joined_are_the_text(tokenizer, text):
    prompt = tokenizer.encode("What is it?\n")
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == text
    assert detokenizer.flush() == ""


def test_no_piece_holds_a_broken_character(tokenizer):
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("x"))
    ids = tokenizer.encode("🍎")
    assert len(ids) > 1
    assert [detokenizer.push(token) for token in ids] == [""] * (len(ids) - 1) + ["🍎"]
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("x"))
    assert detokenizer.push(ids[0]) == ""
    assert detokenizer.flush() == "\ufffd"


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.num_decoded = tokenizer, 0
        self.silent_ids = tokenizer.silent_ids

    def decode(self, ids: list[int], **options) -> str:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids, **options)


@needs_llama
def test_bytes_that_are_no_text_cost_no_more_than_text(llama: Tokenizer):
    byte = llama.control_id("<0x80>")
    ids = [byte] * 2000 + llama.encode("a\n🍎", continues=True)
    counted = Counted(llama)
    detokenizer = Detokenizer(counted, llama.encode("What is it?"))
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == "\ufffd" * 2000 + "a\n🍎"
    assert max(map(len, pieces)) < 20
    assert counted.num_decoded < 50 * len(ids)


def test_broken_bytes_read_as_in_the_whole(tokenizer: Tokenizer):
    """Tokens of bytes in any order, of which the decoder makes what it can."""
    rng = random.Random(0)
    letters = [tokenizer.encode(c) for c in ("🍎", "é", "漢", "a", " ")]
    letters.append([tokenizer.bos_id])
    num_broken = 0
    for _ in range(300):
        ids = []
        while len(ids) < 40:
            part = rng.choice(letters)
            ids += part[: rng.randint(1, 4)] * rng.choice((1, 1, 1, 12))
        prompt = tokenizer.encode("x")
        detokenizer = Detokenizer(tokenizer, prompt)
        text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        assert text == tokenizer.decode(prompt + ids)[1:]
        num_broken += text.count("\ufffd") > 9
    assert num_broken > 100
