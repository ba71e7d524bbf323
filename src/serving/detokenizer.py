"""Token ids to text, a token at a time, with no lost blanks and no broken characters."""

from collections.abc import Sequence

from src.text.tokenizer import Tokenizer

_NUM_CONTEXT_IDS = 6
_BROKEN = "\ufffd"


class Detokenizer:
    """Decodes each token after those before it: what a token reads as depends on them."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_NUM_CONTEXT_IDS:])
        self._num_shown = len(self._ids)

    def push(self, token: int) -> str:
        """Return the text that a token adds; "" while it ends within a character."""
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(_BROKEN):
            return ""
        self._ids = self._ids[self._num_shown :]
        self._num_shown = len(self._ids)
        return text

    def flush(self) -> str:
        """Return the text of an unfinished character, when there is no more to come."""
        text = self._new_text()
        self._num_shown = len(self._ids)
        return text

    def _new_text(self) -> str:
        shown = self._tokenizer.decode(self._ids[: self._num_shown])
        return self._tokenizer.decode(self._ids)[len(shown) :]
