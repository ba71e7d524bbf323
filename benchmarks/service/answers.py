"""What an engine says to prompts alone, one after the other: what the service has to say too."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from src.cli.docstrings import docstring_pairs
from src.service.work.workers import LocalExecutor

GREEDY = {"temperature": 0, "repetition_penalty": 1}


def prompts(number: int) -> list[str]:
    """Return different prompts."""
    texts = [row["prompt"][:200] for row in docstring_pairs()]
    return [f"{index}: {texts[index % len(texts)]}" for index in range(number)]


def answers_alone(base_model: str, inputs: Sequence[dict[str, Any]]) -> list[str]:
    """Return an engine's answer to each request, asked one by one."""
    return asyncio.run(_answers(base_model, inputs))


async def _answers(base_model: str, inputs: Sequence[dict[str, Any]]) -> list[str]:
    environment = {**os.environ, "BASE_MODEL": base_model}
    worker = await LocalExecutor().start("engine", environment)
    answers: list[str] = []
    text = ""
    async for message in worker:
        match message["event"]:
            case "output":
                text += message["text"]
            case "end":
                assert message["status"] == "succeeded", message
                answers.append(text)
        if message["event"] in ("ready", "end"):
            if len(answers) == len(inputs):
                break
            text, asked = "", inputs[len(answers)]
            await worker.send({"do": "predict", "id": str(len(answers)), "input": asked})
    await worker.stop(5)
    return answers
