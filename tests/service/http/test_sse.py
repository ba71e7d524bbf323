"""Joined, the chunks of a stream are the text that was sent, in every client."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src.service.http.sse import KEEP_ALIVE, Encoder, Event, number_of, stream
from src.service.runs.live import LiveRun
from src.service.store.database import Database
from src.service.store.runs import create_run

LOST = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Ends of a line for httpx, and so for replicate-python, which cannot be told otherwise."""
texts = st.lists(
    st.text(st.sampled_from(f"ab: \n\r{LOST}\0é💡"), max_size=12)
    | st.sampled_from(["https://a.b", "data:x", "data: x\ndata: y", "event: done", "\r", "\n"]),
    max_size=6,
)


def standard_lines(body: bytes) -> Iterator[str]:
    yield from re.split("\r\n|\r|\n", body.decode())


def python_lines(body: bytes) -> Iterator[str]:
    # In small parts, for a line's end may come alone.
    parts = (body[at : at + 3] for at in range(0, len(body), 3))
    yield from httpx.Response(200, content=parts).iter_lines()


def read(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (event, id, data) as replicate-python and the standard read them."""
    event = id = None
    data: list[str] = []
    for line in lines:
        if not line:
            if event is not None and id is not None:
                yield event, id, "\n".join(data)
                event, data = None, []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "id":
            id = value
        elif field == "data":
            data.append(value)


def body_of(events: Iterable[Event], after: int = -1) -> bytes:
    encoder = Encoder(after=after)
    return b"".join(encoder.encode(event) for event in events)


@pytest.mark.parametrize(("lines", "lost"), [(standard_lines, ""), (python_lines, LOST)])
@given(texts)
@example(["\u2028", "a\u2028", "\n\u2028b\u2028\u2028", "c\r", "\nd\r\n", "\r", "\r"])
@example(["https:", "data:", "h", "ttps:", "\x85https:", "\ndata:"])
def test_the_joined_text_is_what_was_sent(
    lines: Callable[[bytes], Iterator[str]], lost: str, chunks: list[str]
):
    events = [Event("output", chunk, 7.9) for chunk in chunks]
    found = list(read(lines(body_of([*events, Event("done", "", 8.0)]))))
    sent = "".join(chunks).replace("\r\n", "\n").replace("\r", "\n")
    kept = sent.translate({ord(character): None for character in lost})
    assert "".join(data for event, _, data in found if event == "output") == kept
    assert found[-1][0::2] == ("done", "{}")
    assert not any(data.startswith(("https:", "data:")) for _, _, data in found)
    assert [id for _, id, _ in found[:-1]] == [f"7:{n}" for n in range(len(found) - 1)]


@given(texts, st.integers(-1, 30))
def test_a_reader_that_comes_back_gets_the_rest(chunks: list[str], after: int):
    events = [Event("output", chunk, 7.0) for chunk in chunks]
    everything = list(read(standard_lines(body_of(events))))
    rest = list(read(standard_lines(body_of(events, after))))
    assert rest == everything[after + 1 :]


def test_logs_and_output_do_not_disturb_each_other():
    events = [Event("output", "a\r", 1.0), Event("logs", "\nb\r", 2.0), Event("output", "\nc", 3.0)]
    assert list(read(standard_lines(body_of(events)))) == [
        ("output", "1:0", "a\n"),
        ("logs", "2:1", "\nb\n"),
        ("output", "3:2", "c"),
    ]


def test_the_ends_are_told():
    def data_of(*events: Event) -> list[tuple[str, object]]:
        found = read(standard_lines(body_of(events)))
        return [(name, json.loads(data)) for name, _, data in found]

    assert data_of(Event("done", "", 1.0)) == [("done", {})]
    assert data_of(Event("done", "canceled", 1.0)) == [("done", {"reason": "canceled"})]
    sentence = "no\nroom\u2028left"
    assert data_of(Event("error", sentence, 1.0), Event("done", "error", 1.0)) == [
        ("error", {"detail": sentence}),
        ("done", {"reason": "error"}),
    ]


@pytest.mark.parametrize("id", [None, "", "7", "x:y", "7:", "7:-1", "7:1x", "7:" + "9" * 5000])
def test_what_is_no_id_begins_at_the_first_event(id: str | None):
    assert number_of(id) == -1
    assert number_of("1699:41") == 41


def test_silence_is_filled_with_comments_and_nothing_is_lost_after_it(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    values = {"kind": "prediction", "owner": "ann", "model": "meta/m", "version": "v", "input": {}}
    accepted = database.write_now(create_run, {**values, "base_url": "http://x"})
    database.close()

    async def run() -> None:
        live = LiveRun(accepted)

        async def batches() -> AsyncGenerator[list[Event]]:
            async with aclosing(live.output(quiet_seconds=0.05)) as output:
                async for texts in output:
                    yield [Event("output", text, 5.0) for text in texts]

        body = stream(batches())
        assert await anext(body) == await anext(body) == KEEP_ALIVE
        live.push("la")
        live.push("te")
        found = list(read(standard_lines(await anext(body))))
        assert found == [("output", "5:0", "la"), ("output", "5:1", "te")]
        assert await anext(body) == KEEP_ALIVE
        assert len(live._followers) == 1
        await body.aclose()  # type: ignore[attr-defined]
        assert not live._followers

    asyncio.run(run())


def test_a_stream_ends_with_its_source():
    async def run(last_event_id: str | None) -> list[tuple[str, str, str]]:
        async def batches() -> AsyncGenerator[list[Event]]:
            yield [Event("output", "a", 5.0)]
            yield [Event("done", "", 6.0)]

        body = [part async for part in stream(batches(), last_event_id=last_event_id)]
        return list(read(standard_lines(b"".join(body))))

    assert asyncio.run(run(None)) == [("output", "5:0", "a"), ("done", "6:1", "{}")]
    assert asyncio.run(run("5:0")) == [("done", "6:1", "{}")]
    assert asyncio.run(run("6:1")) == []
