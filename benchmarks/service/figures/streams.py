"""Many streams at once: is each token right, and does each stream go on evenly?"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import httpx

from benchmarks.service.answers import GREEDY
from benchmarks.service.load import MODEL
from benchmarks.service.running import RunningService


@dataclass
class Streams:
    """What came of it."""

    wrong: list[str]
    """What streams said that is not what the engine says alone, or what their predictions show."""
    gaps: list[float]
    """Seconds between two tokens of a stream."""
    tokens_per_second: float
    """Of all streams together."""


async def stream_at_once(
    service: RunningService, answers: Mapping[str, str], *, num_tokens: int
) -> Streams:
    """Follow a prediction of each prompt, all at the same time."""
    found = Streams([], [], 0.0)
    started = time.monotonic()
    async with service.async_client("ann", connections=2 * len(answers)) as client:
        tasks = (_stream(client, found, *each, num_tokens) for each in answers.items())
        numbers = await asyncio.gather(*tasks)
    found.tokens_per_second = sum(numbers) / (time.monotonic() - started)
    return found


async def _stream(
    client: httpx.AsyncClient, found: Streams, prompt: str, answer: str, num_tokens: int
) -> int:
    inputs = {"prompt": prompt, "max_new_tokens": num_tokens, **GREEDY}
    created = await client.post(f"/v1/models/{MODEL}/predictions", json={"input": inputs})
    run = created.raise_for_status().json()
    pieces: list[str] = []
    times: list[float] = []
    rest = b""
    async with client.stream("GET", run["urls"]["stream"]) as response:
        # By bytes: httpx ends lines at characters too that are no end of a line here.
        async for chunk in response.aiter_bytes():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                lines = event.decode().split("\n")
                if lines[0] == "event: output":
                    data = (line[6:] for line in lines if line.startswith("data: "))
                    pieces.append("\n".join(data))
                    times.append(time.monotonic())
    shown = (await client.get(run["urls"]["get"])).json()
    # An event has no other end of a line.
    told = answer.replace("\r\n", "\n").replace("\r", "\n")
    if "".join(pieces) != told or "".join(shown["output"]) != answer:
        found.wrong.append(f"{prompt!r}: {''.join(pieces)!r}, {shown['output']}, {answer!r}")
    found.gaps += [after - before for before, after in pairwise(times)]
    return len(pieces)
