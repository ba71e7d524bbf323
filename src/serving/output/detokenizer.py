"""Token ids to text, a token at a time, with no lost spaces and no broken characters."""

from collections.abc import Sequence
from functools import partial

from src.chat.control_tokens import CALL_MARKS
from src.chat.tokenizer import Tokenizer

_NUM_CONTEXT_IDS = 6
_NUM_KEPT_IDS = 4
"""A character has at most four bytes, and a token at least one."""
_BROKEN = "\ufffd"


class Detokenizer:
    """Decodes each token after those before it: what a token reads as depends on them.

    With `shows_calls` the marks around calls of tools are text, whatever the tokenizer says.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, shows_calls: bool = False
    ) -> None:
        shown = _call_mark_ids(tokenizer) if shows_calls else frozenset()
        self._silent_ids = tokenizer.silent_ids - shown
        self._decode = partial(tokenizer.decode, shown=shown)
        self._restart(list(prompt_ids[-_NUM_CONTEXT_IDS:]))

    def push(self, token: int) -> str:
        """Return the text that a token adds; "" while it ends within a character."""
        if token in self._silent_ids:
            return ""
        self._ids.append(token)
        text = self._new_text()
        if text and not text.endswith(_BROKEN):
            self._restart(self._ids[self._num_context :])
            return text
        if len(self._ids) - self._num_context <= 2 * _NUM_KEPT_IDS:
            return ""
        # More than a character wait: of those only the last one can still be completed.
        waiting = text[-1:]
        del self._ids[self._num_context + _NUM_KEPT_IDS : -_NUM_KEPT_IDS]
        self._num_shown = len(self._decode(self._ids)) - len(waiting)
        return text[: len(text) - len(waiting)]

    def flush(self) -> str:
        """Return the text of an unfinished character, when there is no more to come."""
        text = self._new_text()
        self._num_shown += len(text)
        return text

    def _restart(self, context: list[int]) -> None:
        self._ids, self._num_context = context, len(context)
        self._num_shown = len(self._decode(context))

    def _new_text(self) -> str:
        return self._decode(self._ids)[self._num_shown :]


def _call_mark_ids(tokenizer: Tokenizer) -> frozenset[int]:
    ids = map(tokenizer.control_id, CALL_MARKS)
    return frozenset(token for token in ids if token is not None)
