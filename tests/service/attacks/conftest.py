"""A service on a tiny base model, with two owners who do not trust each other."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from src.cli.tiny_model import make_base_model
from tests.conftest import ROWS
from tests.service.running import add_token, running_service

BASE = "meta/llama-2-7b-chat"


@dataclass(frozen=True)
class Attacked:
    """A running service."""

    url: str
    tokens: dict[str, str]
    """By owner."""
    log: Path

    def ask(
        self, method: str, path: str, *, owner: str = "mallory", **options: Any
    ) -> requests.Response:
        """Return the answer to an owner's request."""
        headers = {"Authorization": f"Bearer {self.tokens[owner]}", **options.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=60, **options)

    def predict(
        self, *, owner: str = "mallory", num_tokens: int = 1, **options: Any
    ) -> dict[str, Any]:
        """Return a new prediction, of exactly so many tokens."""
        inputs = {"prompt": "Hello", "max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
        body = {"version": BASE, "input": inputs}
        answer = self.ask("POST", "/v1/predictions", owner=owner, json=body, **options)
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture(scope="package")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """A service that takes many requests, and trusts no address."""
    folder = tmp_path_factory.mktemp("attacked")
    base_model = folder / "tiny-llama"
    make_base_model(
        base_model, [row["completion"] for row in ROWS] * 4, vocab_size=400, hidden_size=64,
        num_layers=2, num_heads=4, num_key_value_heads=2, max_seq_len=32768,
    )  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "BASE_MODEL": str(base_model),
        "NUM_PROCESSES": "1",
        "REQUESTS_PER_MINUTE": "100000",
        "CREATES_PER_MINUTE": "100000",
        "FILE_GB": "0.002",
    }
    environment.pop("ALLOW_PRIVATE_URLS", None)
    tokens = {name: add_token(name, environment) for name in ("alice", "mallory")}
    with running_service(environment, folder / "service.log") as url:
        yield Attacked(url, tokens, folder / "service.log")
