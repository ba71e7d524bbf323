"""The base model's tokenizer, with text and control tokens kept apart."""

import itertools
import re
from collections.abc import Iterable, Set
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from src.chat.chat_template import ChatTemplateFormat
from src.chat.control_tokens import find_control_tokens, find_marks
from src.chat.tokenizer_files import generation_eos_ids, load_tokenizer
from src.errors import UserError
from src.files.printable import printable

_ANCHOR = "\n"
_LETTER = "\ud800"
"""Stands behind each character that is one and no part of a control token. No text of a user holds
half of a surrogate pair, and what a template cuts out of a text keeps it."""
_LETTERS = re.compile(f"((?:[^{_LETTER}]{_LETTER})+)")


class Tokenizer:
    """Encodes text to token ids; what people wrote is never read as a control token."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self._backend = load_tokenizer(folder)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder.name} names no end-of-sequence token")
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.bos: str = self.tokenizer.bos_token or ""
        # A configuration may name the end of another vocabulary.
        ends = {id_ for id_ in generation_eos_ids(folder) if self._backend.id_to_token(id_)}
        self.end_ids: frozenset[int] = frozenset({self.eos_id, *ends})
        """Tokens that end an answer."""
        marks = find_marks(self.tokenizer)
        controls = [*find_control_tokens(self.tokenizer, self.end_ids), *marks]
        self.special_tokens = [
            token for token in dict.fromkeys(controls) if self.control_id(token) is not None
        ]
        if self.chat_format is not None and self.chat_format.end is not None:
            self.end_ids |= self._ids_of([self.chat_format.end])
        self._letters = self._without_controls()
        self._mark_ids = self._ids_of(marks)
        # Text of unknown characters is rightly read as the token for those.
        self.control_ids = self.end_ids | self._ids_of(
            token for token in self.special_tokens if token != self.tokenizer.unk_token
        )
        flagged = self._backend.get_added_tokens_decoder()
        silent = {id_ for id_, token in flagged.items() if token.special}
        self.silent_ids = frozenset(silent - self._mark_ids)
        """Tokens that have no text."""

    def _without_controls(self) -> Backend:
        """Return what reads text like "</s>" as plain characters."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self.special_tokens]
        )
        backend.encode_special_tokens = True
        return backend

    def __len__(self) -> int:
        return len(self.tokenizer)

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token; None where the tokenizer has no such token."""
        return self._backend.token_to_id(token)

    def _ids_of(self, tokens: Iterable[str]) -> frozenset[int]:
        ids = map(self.control_id, tokens)
        return frozenset(token for token in ids if token is not None)

    def check_rows(self, num_rows: int) -> None:
        """Raise UserError where an embedding of so many rows has none for a token."""
        vocabulary = {**self._backend.get_vocab(), self.tokenizer.eos_token: self.eos_id}
        beyond = sorted((id_, token) for token, id_ in vocabulary.items() if id_ >= num_rows)
        if beyond:
            shown = ", ".join(f"{printable(token, 40)} ({id_})" for id_, token in beyond[:3])
            shown += ", ..." if len(beyond) > 3 else ""
            raise UserError(
                f"base model: the tokenizer has {len(beyond):,} tokens beyond the {num_rows:,} "
                f"rows of the embedding: {shown}; expected a base model saved "
                "after resize_token_embeddings, or a tokenizer without these tokens"
            )

    def unused_rows(self, num_rows: int) -> list[int]:
        """Return the rows of the vocabulary that no token belongs to; they must never be drawn."""
        return sorted(set(range(num_rows)).difference(self._backend.get_vocab().values()))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of what people wrote; with `continues`, as it reads after other text."""
        ids = self._read(self._letters, text, continues)
        if self.control_ids.isdisjoint(ids):
            return ids
        # A model's own vocabulary can hold its control tokens, and then reads them in any text.
        found = self._found(self._letters, text, self.control_ids)
        ends = [*sorted({start + 1 for start, stop in found if stop - start > 1}), len(text)]
        if len(ends) == 1:
            return [token for token in ids if token not in self.control_ids]
        return [
            token
            for start, stop in itertools.pairwise([0, *ends])
            for token in self.encode(text[start:stop], continues=continues or start > 0)
        ]

    def protect(self, text: str, *, is_answer: bool = False) -> str:
        """Return what people wrote for a place in a template, with no control token in it.

        In an answer, the marks of its parts are the model's own.
        """
        controls = self.control_ids - self._mark_ids if is_answer else self.control_ids
        found = self._found(self._backend, text, controls)
        if (unknown := self.tokenizer.unk_token) is not None:
            found += [match.span() for match in re.finditer(re.escape(unknown), text)]
        if not found:
            return text
        letters = {place for start, stop in found for place in range(start, stop)}
        protected = "".join(
            character + _LETTER * (place in letters) for place, character in enumerate(text)
        )
        if controls.isdisjoint(self.encode_prompt(protected)):
            return protected
        return "".join(character + _LETTER for character in text)

    def encode_prompt(
        self, text: str, *, continues: bool = False, known: dict[str, list[int]] | None = None
    ) -> list[int]:
        """Return the ids of a template's text, in which control tokens count.

        What `protect` returned is what people wrote. `known` spares prompts that repeat those
        before them: it keeps what was read of a text from one control token to the next.
        """
        ids: list[int] = []
        for number, part in enumerate(_LETTERS.split(text)):
            part, goes_on = part.replace(_LETTER, ""), continues or bool(ids)
            if part and number % 2:
                ids += self.encode(part, continues=goes_on)
            elif part and (goes_on or known is None):
                ids += self._read(self._backend, part, goes_on)
            elif part and known is not None:
                for stretch in self._before_controls.split(part):
                    if stretch not in known:
                        known[stretch] = _ids(self._backend, stretch)
                    ids += known[stretch]
        return ids

    @cached_property
    def _before_controls(self) -> re.Pattern[str]:
        """Where a text can be cut and is read as if it were whole."""
        added = self._backend.get_added_tokens_decoder().values()
        names = [
            re.escape(token.content)
            for token in added
            if token.special and not (token.lstrip or token.single_word or token.normalized)
        ]
        return re.compile(rf"(?={'|'.join(names)})" if names else r"(?!)")

    def decode(self, ids: list[int], *, shown: Set[int] = frozenset()) -> str:
        """Return the text of token ids; control tokens other than those `shown` have none."""
        read = [token for token in ids if token not in self.silent_ids or token in shown]
        return self._backend.decode(read, skip_special_tokens=False)

    def show(self, ids: list[int]) -> str:
        """Return the text of token ids for a log, with control tokens in ⟨ ⟩."""
        shown, anchor = "", _ids(self._letters, _ANCHOR)
        for is_control, part in itertools.groupby(ids, self.control_ids.__contains__):
            if is_control:
                shown += "".join(f"⟨{self._backend.id_to_token(token)}⟩" for token in part)
                continue
            # A decoder leaves out the space at the beginning of what it is given.
            before = anchor if shown else []
            shown += self.decode([*before, *part])[len(before and _ANCHOR) :]
        return shown

    def _read(self, backend: Backend, text: str, continues: bool) -> list[int]:
        if continues and self._adds_prefix:
            both, anchor = _ids(backend, _ANCHOR + text), _ids(backend, _ANCHOR)
            if both[: len(anchor)] == anchor:
                return both[len(anchor) :]
        return _ids(backend, text)

    def _found(
        self, backend: Backend, text: str, controls: frozenset[int]
    ) -> list[tuple[int, int]]:
        """Return where text is read as a control token, alone or after other text."""
        found: set[tuple[int, int]] = set()
        for before in ("", _ANCHOR) if self._adds_prefix else ("",):
            if controls.isdisjoint(_ids(backend, before + text)):
                continue
            encoding = backend.encode(before + text, add_special_tokens=False)
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                start = max(0, start - len(before))
                stop -= len(before)
                if token in controls and stop > start:
                    found.add((start, stop))
        return sorted(found)

    @cached_property
    def _adds_prefix(self) -> bool:
        """SentencePiece tokenizers put a space before every text."""
        return self._backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁")

    @property
    def template_names(self) -> list[str]:
        """The names of the chat templates, where there are several."""
        templates = self.tokenizer.chat_template
        return sorted(templates) if isinstance(templates, dict) else []

    @cached_property
    def chat_format(self) -> ChatTemplateFormat | None:
        """The base model's own chat template, where it has one: of several the default."""
        templates = self.tokenizer.chat_template
        if isinstance(templates, dict):
            templates = templates.get("default")
        return ChatTemplateFormat(self._render, self.special_tokens) if templates else None

    def _render(self, messages: list[Any], *, tools: list[Any] | None, opens: bool) -> str:
        templates = self.tokenizer.chat_template
        if isinstance(templates, dict):
            templates = templates["tool_use" if tools and "tool_use" in templates else "default"]
        render = partial(
            self.tokenizer.apply_chat_template,
            messages,
            chat_template=templates,
            tokenize=False,
            add_generation_prompt=opens,
        )
        try:
            return render(tools=tools)
        except Exception:  # some templates go through tools and documents where there are none
            return render(tools=tools or [], documents=[])


def check_unicode(where: str, text: str) -> None:
    """Raise UserError for text that holds half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: expected Unicode text, found half of a surrogate pair") from None


def _ids(backend: Backend, text: str) -> list[int]:
    # Unlike `encode`, it lets other threads run meanwhile.
    return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
