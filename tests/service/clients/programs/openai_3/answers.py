"""Python `openai` 3: chat, completions and models."""

import asyncio
import json

import openai
from check import (
    WORDS,
    check,
    main,
    raised,
    raised_async,
    spoken,
)

client = openai.OpenAI()
BASE = client.models.list().data[0].id
SAY = {
    "model": BASE,
    "messages": [{"role": "user", "content": "Say it."}],
    "max_tokens": 100,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "words", "schema": {"const": WORDS}},
    },
}
FREE = {"model": BASE, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 8}


def chat(**values):
    """Return the answer to a chat whose answer is known."""
    return client.chat.completions.create(**{**SAY, **values})


@check("chat.completions.create")
def answer():
    """An answer has text, a reason for its end, and counts."""
    completion = chat()
    assert completion.object == "chat.completion"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content == spoken(WORDS)
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens > 0


@check("chat.completions.create")
def stream():
    """Chunks: the role first, the text, the reason, then usage without choices."""
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in choices) == spoken(WORDS)
    assert choices[-1].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


@check("chat.completions.create")
def stream_of_breaks():
    """U+2028 and U+0085 arrive whole."""
    words = "one\u2028two\u0085three"
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"const": words}}}
    chunks = chat(response_format=form, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == spoken(words)


@check("chat.completions.create")
def several():
    """`n` answers, each with its index."""
    completion = client.chat.completions.create(**FREE, n=3, temperature=1)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]


@check("chat.completions.create")
def length():
    """An answer that is cut off says so."""
    completion = client.chat.completions.create(**{**FREE, "max_tokens": 2}, temperature=0)
    assert completion.usage.completion_tokens <= 2
    assert completion.choices[0].finish_reason in ("length", "stop")


@check("chat.completions.create")
def stop():
    """`stop` as a text, and as a list, ends the answer before it."""
    for stops in ("red", ["nothing", "red"]):
        completion = chat(stop=stops)
        assert completion.choices[0].message.content == '"It is '
        assert completion.choices[0].finish_reason == "stop"


@check("chat.completions.create")
def seed():
    """The same seed gives the same answer, another one another."""
    texts = [
        client.chat.completions.create(**FREE, seed=number, temperature=1)
        .choices[0]
        .message.content
        for number in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@check("chat.completions.create")
def logprobs():
    """Each token's log-probability, with the best ones beside it."""
    completion = client.chat.completions.create(**FREE, logprobs=True, top_logprobs=2)
    tokens = completion.choices[0].logprobs.content
    assert tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


@check("chat.completions.create")
def max_completion_tokens():
    """The newer name of max_tokens."""
    values = {name: value for name, value in FREE.items() if name != "max_tokens"}
    completion = client.chat.completions.create(**values, max_completion_tokens=3)
    assert completion.usage.completion_tokens <= 3


@check("chat.completions.create")
def parts_and_roles():
    """Content as a list of parts, a system message, and an answer before."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Say it."},
    ]
    assert chat(messages=messages).choices[0].message.content == spoken(WORDS)


@check("chat.completions.parse")
def json_object():
    """Any JSON, on request."""
    completion = chat(response_format={"type": "json_object"}, max_tokens=400)
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(completion.choices[0].message.content), dict)


@check("AsyncOpenAI")
async def answer_many():
    """Many awaited answers at once, one of them streamed."""
    async with openai.AsyncOpenAI() as chats:
        create = chats.chat.completions.create
        answers = await asyncio.gather(*(create(**SAY) for _ in range(8)))
        chunks = [chunk async for chunk in await create(**SAY, stream=True)]
    assert {answer.choices[0].message.content for answer in answers} == {spoken(WORDS)}
    assert chunks[-1].choices[0].finish_reason == "stop"


@check("AsyncOpenAI")
async def unknown_model():
    """An unknown model is NotFoundError with OpenAI's code."""
    async with openai.AsyncOpenAI() as chats:
        create = chats.chat.completions.create(**{**SAY, "model": "nothing"})
        error = await raised_async(openai.NotFoundError, create)
    assert error.code == "model_not_found"


@check("chat.completions.create")
def wrong_values():
    """A wrong value is BadRequestError that names the parameter."""
    error = raised(openai.BadRequestError, chat, temperature=9)
    assert error.param == "temperature"
    assert "temperature" in error.message
    raised(openai.BadRequestError, chat, messages=[])


@check("completions.create")
def complete():
    """The old call: a text for a prompt, whole and streamed."""
    values = {"model": BASE, "prompt": "Go on.", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**values)
    assert whole.object == "text_completion"
    chunks = list(client.completions.create(**values, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


@check("models.list")
def models():
    """Base models are listed, and found by names with a slash."""
    listed = client.models.list().data
    assert all(model.object == "model" and isinstance(model.created, int) for model in listed)
    for model in listed[:2]:
        assert client.models.retrieve(model.id).id == model.id
    raised(openai.NotFoundError, client.models.retrieve, "nothing")


@check("OpenAI(api_key)")
def wrong_token():
    """A wrong key is AuthenticationError with OpenAI's code."""
    nobody = openai.OpenAI(api_key="sk-wrong")
    assert raised(openai.AuthenticationError, nobody.models.list).code == "invalid_api_key"


main()
