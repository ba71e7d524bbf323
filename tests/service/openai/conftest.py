"""A service on a tiny base model whose chat template has places for reasons and tools."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from src.cli.tiny_model import make_base_model
from tests.service.openai.parsing.families import TEMPLATES
from tests.service.running import add_token, running_service

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
CALL = {"name": "weather", "arguments": '{"city": "Paris"}'}
LEARNED = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "Paris?",
    "tool_calls": [{"id": "call_1", "type": "function", "function": CALL}],
}


@dataclass(frozen=True)
class Api:
    """OpenAI's API of a running service."""

    url: str
    token: str
    stranger: str
    """The token of another owner."""
    model: str
    folder: Path

    def ask(
        self, method: str, path: str, *, token: str | None = None, **options: Any
    ) -> requests.Response:
        """Return the answer to a request."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        url = f"{self.url}/openai/v1{path}"
        return requests.request(method, url, headers=headers, timeout=60, **options)

    def chat(self, **fields: Any) -> requests.Response:
        """Ask for the next message."""
        body = {"model": self.model, "messages": ASKED, "max_tokens": 60, **fields}
        return self.ask("POST", "/chat/completions", json=body, stream=bool(fields.get("stream")))

    def metrics(self) -> dict[str, float]:
        """Return the numbers that the service tells of itself."""
        lines = requests.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API, with two owners."""
    folder = tmp_path_factory.mktemp("openai")
    base_model = folder / "tiny-hermes"
    template = TEMPLATES["hermes"].replace("<|end|>", "{{ eos_token }}")
    texts = [template, json.dumps(TOOLS), json.dumps(ASKED), json.dumps(LEARNED)] * 4
    make_base_model(
        base_model, texts, vocab_size=400, hidden_size=64, num_layers=2, num_heads=4,
        num_key_value_heads=2, max_seq_len=4096,
    )  # fmt: skip
    (base_model / "chat_template.jinja").write_text(template)
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "BASE_MODEL": str(base_model),
        "NUM_PROCESSES": "1",
        "CREATES_PER_MINUTE": "100000",
        "REQUESTS_PER_MINUTE": "100000",
    }
    token, stranger = (add_token(name, environment) for name in ("alice", "mallory"))
    with running_service(environment, folder / "service.log") as url:
        yield Api(url, token, stranger, base_model.name, folder)
