"""The base model's tokenizer, with text and control tokens kept apart."""

import itertools
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from src.chat.chat_template import ChatTemplateFormat
from src.chat.control_tokens import find_control_tokens
from src.chat.segments import BOS, EOS, Control, Segment, Text
from src.errors import UserError

_ANCHOR = "\n"


class Tokenizer:
    """Encodes segments to token ids; what people wrote is never read as a control token."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = _load(folder)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder.name} names no end-of-sequence token")
        if (folder / "tokenizer.json").is_file():
            # The file itself: some tokenizer classes rebuild it with another space before a text.
            self._backend = Backend.from_file(str(folder / "tokenizer.json"))
        else:
            # A copy: Transformers changes the settings of its own with every call.
            self._backend = Backend.from_str(self.tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.end_ids = frozenset({self.eos_id, *_generation_eos_ids(folder)})
        flagged = self._backend.get_added_tokens_decoder()
        self.silent_ids = frozenset(id_ for id_, token in flagged.items() if token.special)
        """Tokens that have no text."""
        self.special_tokens = [
            token
            for token in find_control_tokens(self.tokenizer, self.end_ids)
            if self._backend.token_to_id(token) is not None
        ]
        self._backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self.special_tokens]
        )
        # `encode_special_tokens` makes text like "</s>" plain characters.
        self._backend.encode_special_tokens = True
        # Text of unknown characters is rightly read as the token for those.
        self._control_ids = self.end_ids | {
            self._backend.token_to_id(token)
            for token in self.special_tokens
            if token != self.tokenizer.unk_token
        }

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of plain text; with `continues`, as it reads after other text."""
        ids = self._encode(text, continues)
        if self._control_ids.isdisjoint(ids):
            return ids
        # A model's own vocabulary can hold its control tokens, and then reads them in any text.
        parts = self._cut_markers(text)
        if len(parts) == 1:
            return [token for token in ids if token not in self._control_ids]
        return [
            token
            for number, part in enumerate(parts)
            for token in self.encode(part, continues=continues or number > 0)
        ]

    def _encode(self, text: str, continues: bool) -> list[int]:
        if continues and self._adds_prefix:
            both, anchor = self._ids(_ANCHOR + text), self._ids(_ANCHOR)
            if both[: len(anchor)] == anchor:
                return both[len(anchor) :]
        return self._ids(text)

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token; None where the tokenizer has no such token."""
        known = {BOS: self.bos_id, EOS: self.eos_id}
        return known[token] if token in known else self._backend.token_to_id(token)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Return the ids of a whole prompt."""
        return [token for segment in segments for token in self.encode_segment(segment)]

    def encode_segment(self, segment: Segment) -> list[int]:
        """Return the ids of one segment."""
        if isinstance(segment, Text):
            return self.encode(segment.text, continues=segment.continues)
        control_id = self.control_id(segment.token)
        return [] if control_id is None else [control_id]

    def end_id(self, following: Segment | None) -> int:
        """Return what ends an answer: the control token after it, else end-of-sequence."""
        control_id = self.control_id(following.token) if isinstance(following, Control) else None
        return self.eos_id if control_id is None else control_id

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; control tokens have none."""
        read = [token for token in ids if token not in self.silent_ids]
        return self._backend.decode(read, skip_special_tokens=False)

    def _ids(self, text: str) -> list[int]:
        # Unlike `encode`, it lets other threads run meanwhile.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _cut_markers(self, text: str) -> list[str]:
        """Cut text within each stretch of it that is read as a control token, alone or after other
        text."""
        cuts: set[int] = set()
        for before in ("", _ANCHOR):
            encoding = self._backend.encode(before + text, add_special_tokens=False)
            cuts |= {
                start + 1 - len(before)
                for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
                if token in self._control_ids and stop - start > 1
            }
        ends = [*sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
        return [text[start:end] for start, end in itertools.pairwise([0, *ends])]

    @cached_property
    def _adds_prefix(self) -> bool:
        """SentencePiece tokenizers put a space before every text."""
        return self._backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁")

    @cached_property
    def chat_format(self) -> ChatTemplateFormat | None:
        """The base model's own chat template, where it has one."""
        if not isinstance(self.tokenizer.chat_template, str):
            return None
        return ChatTemplateFormat(self.render_chat, self.special_tokens)

    def render_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Render messages with the base model's own chat template."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def check_unicode(where: str, text: str) -> None:
    """Raise UserError for text that holds half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: expected Unicode text, found half of a surrogate pair") from None


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"the tokenizer in {folder.name} has no tokenizer.json: expected one that the "
            "tokenizers library reads"
        )
    return tokenizer


def _load_sentencepiece(folder: Path) -> Any:
    """Read a bare tokenizer.model so that its ids are SentencePiece's own.

    The generic reader ignores the scores of the pieces and the space before a text.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import normalizers
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    model: Any = SentencePieceProcessor(str(folder / "tokenizer.model"))
    segments = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    vocab = {segment: number for number, segment in enumerate(segments)}
    scores = {segment: model.get_score(number) for number, segment in enumerate(segments)}
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores),
        unk_token=segments[model.unk_id()],
        bos_token=segments[model.bos_id()],
        eos_token=segments[model.eos_id()],
    )
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def _generation_eos_ids(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    ids = json.loads(path.read_text()).get("eos_token_id")
    return [ids] if isinstance(ids, int) else list(ids or [])
