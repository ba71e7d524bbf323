"""The base model's tokenizer, with text and control tokens kept apart."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from src.errors import UserError
from src.prompts.pieces import BOS, EOS, Control, Piece, Text

_ANCHOR = "\n"


class Tokenizer:
    """Encodes pieces to token ids; what people wrote is never read as a control token."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = _load(folder)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder.name} names no end-of-sequence token")
        self._backend = self.tokenizer.backend_tokenizer
        if (folder / "tokenizer.json").is_file():
            # The file itself: some tokenizer classes rebuild it with another blank before a text.
            self._backend = Backend.from_file(str(folder / "tokenizer.json"))
        # `encode_special_tokens` makes text like "</s>" plain characters.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.end_ids = frozenset({self.eos_id, *_generation_eos_ids(folder)})

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of plain text; with `continues`, as it reads after other text."""
        if continues and self._adds_prefix:
            whole = self._ids(_ANCHOR + text)
            anchor = self._ids(_ANCHOR)
            if whole[: len(anchor)] == anchor:
                return whole[len(anchor) :]
        return self._ids(text)

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token; None where the tokenizer has no such token."""
        if token == EOS:
            return self.eos_id
        if token == BOS:
            return self.bos_id
        return self._backend.token_to_id(token)

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of a whole prompt."""
        ids: list[int] = []
        for piece in pieces:
            ids += self.encode_piece(piece)
        return ids

    def encode_piece(self, piece: Piece) -> list[int]:
        """Return the ids of one piece."""
        if isinstance(piece, Text):
            return self.encode(piece.text, continues=piece.continues)
        control_id = self.control_id(piece.token)
        return [] if control_id is None else [control_id]

    def end_id(self, following: Piece | None) -> int:
        """Return what ends an answer: the control token after it, else end-of-sequence."""
        if isinstance(following, Control):
            control_id = self.control_id(following.token)
            if control_id is not None:
                return control_id
        return self.eos_id

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; control tokens have none."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def _adds_prefix(self) -> bool:
        """SentencePiece tokenizers put a blank before every text."""
        return self._backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁")

    @property
    def chat_template(self) -> str | None:
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else None

    @property
    def special_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    def render_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Render messages with the base model's own chat template."""
        text: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


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

    The generic reader ignores the scores of the pieces and the blank before a text.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import normalizers
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    model: Any = SentencePieceProcessor(str(folder / "tokenizer.model"))
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    scores = {piece: model.get_score(number) for number, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores),
        unk_token=pieces[model.unk_id()],
        bos_token=pieces[model.bos_id()],
        eos_token=pieces[model.eos_id()],
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
