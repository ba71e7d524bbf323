"""Prompt lookup: what followed the last tokens where they stood before may follow them again."""

from collections.abc import Sequence

LAST_TOKENS = (3, 2)
"""So many of them are looked up, the longer match first."""
FEWEST, MOST = 3, 15
"""Tokens proposed at a time; with the one before them, 4, 8 or 16 are read at once."""
FIRST_CREDIT, MOST_CREDIT, CREDIT_A_STEP = 1.8, 8.0, 0.01


class NgramProposer:
    """Proposes the next tokens of one answer, as long as it gains more than it costs.

    A step that reads proposed tokens takes longer, and each of them that comes true saves one.
    Credit is counted in steps: an answer that repeats nothing loses `FIRST_CREDIT` of them, one
    proposal, and a share of `CREDIT_A_STEP`. It follows from the tokens alone and from no clock, so
    that the same request takes the same steps.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = list(prompt_ids)
        self._num_prompt_ids = len(prompt_ids)
        self._num_learned = 0
        self._position_after: dict[tuple[int, ...], int] = {}
        self._num_ahead = FEWEST
        self._credit = FIRST_CREDIT

    @property
    def has_credit(self) -> bool:
        """Whether there is credit for a proposal."""
        return self._credit >= _cost(FEWEST)

    def propose(self, answer_ids: Sequence[int], most: int) -> list[int]:
        """Return up to so many tokens that may come next; none where too few of them would."""
        self._credit = min(self._credit + CREDIT_A_STEP, MOST_CREDIT)
        if not self.has_credit or most < FEWEST:
            return []
        self._learn(answer_ids)
        for size in LAST_TOKENS:
            position = self._position_after.get(tuple(self._ids[-size:]))
            if position is not None:
                # A text that repeats itself goes on doing so.
                period = len(self._ids) - position
                num_ahead = min(self._num_ahead, most)
                return [self._ids[position + number % period] for number in range(num_ahead)]
        return []

    def update(self, num_proposed: int, num_accepted: int) -> None:
        """Take what became of a proposal."""
        self._credit += num_accepted - _cost(num_proposed)
        is_quoting = num_accepted == num_proposed
        self._num_ahead = min(2 * self._num_ahead + 1, MOST) if is_quoting else FEWEST

    def _learn(self, answer_ids: Sequence[int]) -> None:
        self._ids += answer_ids[len(self._ids) - self._num_prompt_ids :]
        for position in range(self._num_learned, len(self._ids)):
            for size in LAST_TOKENS:
                if position >= size:
                    self._position_after[tuple(self._ids[position - size : position])] = position
        self._num_learned = len(self._ids)


def _cost(num_proposed: int) -> float:
    """Return how many steps more a step takes that reads so many proposed tokens.

    Measured on a CPU by plain steps, with weights that fit into its cache; where they do not, and
    by compiled steps, it takes fewer.
    """
    return 1.5 + num_proposed / 10


def num_accepted(proposed: Sequence[int], drawn: Sequence[int]) -> int:
    """Return how many first tokens of a proposal are those that were drawn."""
    pairs = zip(proposed, drawn, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(proposed))
