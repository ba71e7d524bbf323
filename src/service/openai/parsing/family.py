"""How a model writes reasons and calls of tools: read off its chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from src.service.openai.parsing.call_writer import CallWriter, new_call_id, new_short_id
from src.service.openai.parsing.families import (
    deepseek,
    glm,
    granite,
    hermes,
    lfm,
    llama,
    mistral,
    qwen_coder,
)
from src.service.openai.parsing.reader import Parse, Reader
from src.service.openai.parsing.reasoning import BRACKETS, THINK, ReasoningMarks

ReadAnswer = Callable[[Reader, CallWriter], Parse[None]]

_CALLS: tuple[tuple[tuple[str, ...], ReadAnswer], ...] = (
    (("<｜tool▁call▁begin｜>",), deepseek.read_answer),
    (("[TOOL_CALLS]",), mistral.read_answer),
    (("<|tool_call_start|>",), lfm.read_answer),
    (("<tool_call>", "<arg_key>"), glm.read_answer),
    (("<tool_call>", "<function="), qwen_coder.read_answer),
    (("<tool_call>",), hermes.read_answer),
    (("<|tool_call|>",), granite.read_answer),
    (("<|python_tag|>",), llama.read_answer),
    (("<|start_header_id|>ipython",), llama.read_answer),
)
"""What a template must hold for each family; the first that fits counts."""


@dataclass(frozen=True)
class Family:
    """How the answers of a model are read."""

    read_calls: ReadAnswer | None = None
    """None where nothing is known of how the model calls tools."""
    reasoning: ReasoningMarks | None = None
    begins_in_reasoning: bool = False
    """Whether the prompt ends in the mark that opens the reasons."""
    new_call_id: Callable[[], str] = new_call_id


@lru_cache(8)
def find_family(chat_template: str | None, generation_prompt: str = "") -> Family:
    """Return how a model with this template writes its answers.

    `generation_prompt` is what the template puts before an answer.
    """
    text = chat_template or ""
    fitting = (read for marks, read in _CALLS if all(mark in text for mark in marks))
    read_calls = next(fitting, None)
    reasoning = next((marks for marks in (THINK, BRACKETS) if marks.closing in text), None)
    return Family(
        read_calls,
        reasoning,
        reasoning is not None and generation_prompt.rstrip().endswith(reasoning.opening),
        new_short_id if read_calls is mistral.read_answer else new_call_id,
    )
