"""Chat and completions of a real service on a tiny model."""

import json
import socket
import time
from typing import Any

import pytest
import requests

from tests.service.openai.conftest import ASKED, LEARNED, TOOLS, Api

NAMED = {"type": "function", "function": {"name": "weather"}}
ENDLESS = {"min_tokens": 3500, "max_tokens": 3500, "temperature": 1}


def chunks_of(answer: requests.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == b"[DONE]", lines
    return [json.loads(line) for line in lines[:-1]]


def tokens_of(logprobs: dict[str, Any]) -> list[str]:
    assert all(token["logprob"] <= 0 and token["top_logprobs"] for token in logprobs["content"])
    return [token["token"] for token in logprobs["content"]]


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made_is_made(api: Api, choice: object):
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "seed": 1, "max_tokens": 200}
    answer = api.chat(**asked).json()["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert answer["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    deltas = [c["choices"][0]["delta"] for c in chunks_of(api.chat(**asked, stream=True))]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert pieces[0]["function"] == {"name": "weather", "arguments": ""}
    streamed = "".join(piece["function"]["arguments"] for piece in pieces)
    assert streamed == call["function"]["arguments"]


def test_a_stream_says_what_the_whole_answer_says(api: Api):
    asked: dict[str, Any] = {"seed": 5, "n": 2, "logprobs": True, "top_logprobs": 1}
    whole = api.chat(**asked).json()
    options = {"include_usage": True}
    chunks = chunks_of(api.chat(**asked, stream=True, stream_options=options))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for number, choice in enumerate(whole["choices"]):
        said = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == number]
        assert said[0]["delta"]["role"] == "assistant"
        text = "".join(part["delta"].get("content") or "" for part in said)
        assert text == choice["message"]["content"]
        assert said[-1]["finish_reason"] == choice["finish_reason"]
        (logprobs,) = [part["logprobs"] for part in said if part["logprobs"]]
        assert tokens_of(logprobs) == tokens_of(choice["logprobs"])
    first, second = (choice["message"]["content"] for choice in whole["choices"])
    assert first != second


def test_each_choice_can_be_asked_for_by_its_seed(api: Api):
    several = api.chat(seed=5, n=2).json()["choices"]
    alone = api.chat(seed=6).json()["choices"][0]
    assert several[1]["message"] == alone["message"]


def test_what_was_read_before_is_told(api: Api):
    asked = [{"role": "user", "content": "Tell it once more. " * 20}]
    counts = [
        api.chat(messages=asked, max_tokens=2).json()["usage"]["prompt_tokens_details"]
        for _ in range(2)
    ]
    assert counts[1]["cached_tokens"] >= counts[0]["cached_tokens"]
    assert counts[1]["cached_tokens"] > 0


def test_what_tools_returned_is_read(api: Api):
    call = {key: value for key, value in LEARNED.items() if key != "reasoning_content"}
    told = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    answer = api.chat(messages=[*ASKED, call, told], tools=TOOLS, max_tokens=3)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "nothing"}, 404, "model"),
        ({"model": "ft:tiny-hermes:alice::nothing"}, 404, "model"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "Hi " * 5000}]}, 400, "messages"),
        ({"response_format": {"type": "yaml"}}, 400, "response_format"),
        ({"stream": True, "messages": [{"role": "user", "content": 3}]}, 400, "messages"),
        ({"n": 2, "top_p": 7}, 400, "top_p"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_chunk(
    api: Api, fields: dict[str, Any], status: int, param: str | None
):
    answer = api.chat(**fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]


def test_a_body_that_is_no_json_and_a_path_that_is_none(api: Api):
    assert "error" in api.ask("POST", "/chat/completions", data="{").json()
    unknown = api.ask("GET", "/assistants")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    nobody = api.ask("GET", "/models", token="r8_wrong")
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


def test_fields_that_have_no_effect_are_told(api: Api):
    answer = api.chat(reasoning_effort="low", user="me", max_tokens=2)
    assert answer.headers["X-Ignored-Fields"] == "reasoning_effort"


def test_completions_of_several_prompts(api: Api):
    body = {"model": api.model, "prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 4}
    whole = api.ask("POST", "/completions", json=body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    streamed = api.ask("POST", "/completions", json={**body, "stream": True}, stream=True)
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks_of(streamed):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert [*texts.values()] == [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_ends_its_answers(api: Api, is_streamed: bool):
    asked = {"model": api.model, "messages": ASKED, "n": 8, "stream": is_streamed, **ENDLESS}
    sent = json.dumps(asked).encode()
    host, _, port = api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: here\r\n"
            b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
            % (api.token.encode(), len(sent), sent)
        )
        wait_until(api, 8)
    wait_until(api, 0)


def wait_until(api: Api, num_running: int) -> None:
    """Wait until the engine generates so many answers."""
    deadline = time.monotonic() + 10
    while api.metrics().get('cog_finetune_engine_answers_running{engine="0"}') != num_running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
