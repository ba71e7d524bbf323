"""POST /chat/completions and /completions: straight to the engine, with no row in the database."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from src.service.http.body import read_object
from src.service.openai.endpoint import as_api_error, service_of, unless_gone
from src.service.openai.errors import ApiError
from src.service.openai.find_model import AnsweringModel, answering_model
from src.service.openai.generation.chat_flow import ChatAnswers
from src.service.openai.generation.chat_request import read_chat_request
from src.service.openai.generation.choices import Choices
from src.service.openai.generation.completion_flow import CompletionTexts
from src.service.openai.generation.completion_request import read_completion_request
from src.service.openai.generation.request import GenerationRequest
from src.service.openai.parsing.family import Family, find_family
from src.service.store.ids import new_id
from src.service.work.engine_client import EngineError

Answers = ChatAnswers | CompletionTexts


async def create_chat_completion(request: Request, owner: str) -> Response:
    """POST /chat/completions."""
    asked = read_chat_request(await read_object(request))
    generation = asked.generation
    numbers = range(generation.num_choices)

    def answers(model: AnsweringModel) -> ChatAnswers:
        told = service_of(request).engines.model
        family = find_family(told.get("chat_template"), told.get("generation_prompt") or "")
        family = Family() if model.has_own_format else family
        return ChatAnswers(asked, family, _head("chatcmpl", model))

    inputs = [generation.inputs_of(number) for number in numbers]
    return await unless_gone(request, _answer(request, owner, generation, inputs, answers))


async def create_completion(request: Request, owner: str) -> Response:
    """POST /completions: what follows a prompt, which is put as `predict` puts it."""
    asked = read_completion_request(await read_object(request))
    generation = asked.generation
    inputs = [
        generation.inputs_of(number, prompt=prompt)
        for prompt in asked.prompts
        for number in range(generation.num_choices)
    ]

    def answers(model: AnsweringModel) -> CompletionTexts:
        return CompletionTexts(asked, _head("cmpl", model))

    return await unless_gone(request, _answer(request, owner, generation, inputs, answers))


async def _answer(
    request: Request,
    owner: str,
    generation: GenerationRequest,
    inputs: Sequence[dict[str, Any]],
    make_answers: Callable[[AnsweringModel], Answers],
) -> Response:
    service = service_of(request)
    headers = {"X-Ignored-Fields": ", ".join(generation.ignored)} if generation.ignored else None
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(answering_model(service, generation.model, owner))
        all_inputs = [{**one, **model.inputs} for one in inputs]
        field = "prompt" if "prompt" in all_inputs[0] else "messages"
        choices = Choices(
            partial(service.predictions.direct, owner), all_inputs, prompt_field=field
        )
        await stack.enter_async_context(choices)
        await choices.start()
        answers = make_answers(model)
        if not generation.is_streamed:
            return JSONResponse(await answers.whole(choices), headers=headers)
        return EventStream(answers.chunks(choices), stack.pop_all(), headers)


class EventStream(StreamingResponse):
    """A stream of chunks; what it holds is let go at its end, however that comes."""

    def __init__(
        self,
        chunks: AsyncIterator[dict[str, Any]],
        held: AsyncExitStack,
        headers: dict[str, str] | None,
    ) -> None:
        self._held = held
        headers = {"Cache-Control": "no-cache", **(headers or {})}
        super().__init__(_events(chunks), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the client has all or is gone."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except (ApiError, EngineError) as error:
        # A client takes a stream that just ends for one that is complete.
        yield f"data: {json.dumps(as_api_error(error).body())}\n\n"
        return
    yield "data: [DONE]\n\n"


def _head(prefix: str, model: AnsweringModel) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{new_id()}",
        "created": int(time.time()),
        "model": model.name,
    }
