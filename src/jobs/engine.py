"""Answers many requests at once, as messages on stdin ask for: `python -m src.jobs.engine`.

In:  {"do": "predict", "id", "input": {any of predict.py's inputs}}, {"do": "cancel", "id"},
     {"do": "report"}
Out: {"event": "ready", "model": {"name", "revision", "max_seq_len", "num_slots", "chat_template",
     "generation_prompt"}}, or
     {"event": "failed", "error"} where there is nothing to serve, with exit code 1
     {"event": "started", "id"} when the request is prepared and handed to the engine
     {"event": "output", "id", "text"} for each piece of the answer
     {"event": "log", "id", "text"} for whole lines that are printed for the request
     {"event": "end", "id", "status": "succeeded" | "failed" | "canceled", "error", "metrics",
     "refused"}; a request is refused where it cannot be answered as it is
     {"event": "report", "metrics"} with what is reported of the process

The end of stdin ends it at once.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import predict
from src.errors import UserError
from src.jobs.channel import Channel, Message
from src.jobs.failure import describe_failure
from src.jobs.inputs import complete_inputs
from src.jobs.printed import ContextLog, LineLog
from src.serving.end_with_engine import end_with_engine

if TYPE_CHECKING:
    from src.serving.predictor import TextPredictor


class Requests:
    """The requests that are being answered."""

    def __init__(
        self, predictor: "TextPredictor", send: Callable[[Message], None], printed: ContextLog
    ) -> None:
        self._predictor, self._send, self._printed = predictor, send, printed
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def take(self, message: Message) -> None:
        """Do what a message asks for."""
        match message:
            case {"do": "predict", "id": str(id), "input": dict(asked)} if id not in self._tasks:
                self._tasks[id] = asyncio.create_task(self._answer(id, asked))
            case {"do": "cancel", "id": str(id)}:
                if id in self._tasks:  # it may have ended meanwhile
                    self._tasks[id].cancel()
            case {"do": "report"}:
                metrics = self._predictor.process_metrics()
                self._send({"event": "report", "metrics": metrics})
            case _:
                print(f"a message that asks for nothing known: {message}", file=sys.stderr)

    async def _answer(self, id: str, asked: dict[str, Any]) -> None:
        self._printed.show_in(
            LineLog(lambda lines: self._send({"event": "log", "id": id, "text": lines}))
        )
        status, error = "succeeded", None
        metrics: dict[str, Any] = {}
        refused = False
        try:
            async for text in self._predictor.stream_async(
                complete_inputs(predict.Predictor.run, asked),
                record_metric=metrics.__setitem__,
                on_submitted=lambda: self._send({"event": "started", "id": id}),
            ):
                self._send({"event": "output", "id": id, "text": text})
        except asyncio.CancelledError:
            status = "canceled"
        except Exception as failure:
            status, error = "failed", describe_failure(failure)
            refused = isinstance(failure, UserError)
        del self._tasks[id]
        end = {"status": status, "error": error, "metrics": metrics, "refused": refused}
        self._send({"event": "end", "id": id, **end})


def load_predictor() -> "TextPredictor":
    """Load the base model, and the container's own weights if there are any."""
    # Here, as it takes seconds in which the end of stdin is noticed.
    from src.serving.predictor import TextPredictor

    return TextPredictor(os.environ.get("COG_WEIGHTS") or None)


async def main() -> None:
    """Get ready, and answer until stdin ends."""
    channel, printed = Channel(), ContextLog()
    sys.stdout = printed
    loop, messages = asyncio.get_running_loop(), asyncio.Queue[Message]()

    def receive() -> None:
        channel.receive(lambda message: loop.call_soon_threadsafe(messages.put_nowait, message))
        os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    try:
        predictor = await asyncio.to_thread(load_predictor)
    except Exception as error:
        channel.send({"event": "failed", "error": describe_failure(error)})
        channel.close()
        os._exit(1)
    channel.send({"event": "ready", "model": predictor.describe()})
    requests = Requests(predictor, channel.send, printed)
    end_with_engine(predictor)
    while True:
        requests.take(await messages.get())
        await asyncio.sleep(0)  # a request has begun before it can be canceled


if __name__ == "__main__":
    asyncio.run(main())
