"""What a service holds before any client comes."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

MORE_THAN_SLOTS = 40
"""Predictions that fill the engine and its queue."""
MORE_THAN_A_PAGE = 120
GUIDE_VERSION = "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132"


@dataclass(frozen=True)
class Service:
    """A service that runs, and what the programs find there."""

    api: str
    environment: dict[str, str]
    """What all programs are told."""

    def call(
        self, method: str, path: str, headers: dict[str, str] | None = None, **body: object
    ) -> dict[str, Any]:
        """Return the answer to a request of the owner."""
        token = self.environment["REPLICATE_API_TOKEN"]
        headers = {"Authorization": f"Bearer {token}", **(headers or {})}
        answer = requests.request(
            method, f"{self.api}/v1{path}", json=body or None, headers=headers, timeout=30
        )
        assert answer.ok, answer.text
        return answer.json()


def fill(service: Service, data: Path) -> dict[str, str]:
    """Make what the programs look for, and the training that they follow; return where it is."""
    for name in ("trained", "guided", "llama2-summarizer"):
        service.call(
            "POST", "/models", owner="alice", name=name, visibility="private", hardware="cpu"
        )
    chat = service.call("GET", "/models/meta/llama-2-7b-chat")["latest_version"]["id"]
    service.call(
        "POST", "/deployments", name="deployed", model="meta/llama-2-7b-chat", version=chat,
        hardware="cpu", min_instances=0, max_instances=1,
    )  # fmt: skip
    urls = service.call("POST", "/upload/data.jsonl")
    requests.put(urls["upload_url"], data.read_bytes(), timeout=30).raise_for_status()
    training = service.call(
        "POST",
        f"/models/meta/llama-2-7b/versions/{GUIDE_VERSION}/trainings",
        destination="alice/trained",
        input={"train_data": urls["serving_url"], "num_train_epochs": 2, "learning_rate": 0.01},
    )
    with ThreadPoolExecutor(8) as pool:
        one = {"version": chat, "input": {"prompt": "Hello", "max_new_tokens": 1}}
        create = partial(service.call, "POST", "/predictions", **one)
        list(pool.map(lambda _: create(), range(MORE_THAN_A_PAGE)))
    return {
        "TRAINING": training["id"],
        "DATA_URL": urls["serving_url"],
        "ABORTED": _abort(service, chat),
    }


def _abort(service: Service, version: str) -> str:
    """Return the id of a prediction that waited behind long ones until its deadline."""
    long = {"prompt": "Go on.", "min_new_tokens": 8000, "max_new_tokens": 8000}
    fillers = [
        service.call("POST", "/predictions", version=version, input=long)
        for _ in range(MORE_THAN_SLOTS)
    ]
    late = service.call(
        "POST", "/predictions", {"Cancel-After": "5s"}, version=version, input={"prompt": "Hello"}
    )
    time.sleep(5)
    for filler in fillers:
        service.call("POST", f"/predictions/{filler['id']}/cancel")
    return late["id"]
