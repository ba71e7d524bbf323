"""What a soak does to a server of predictions."""

import base64
import json
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.soak.files import PREDICTION_VALUES
from tests.soak.lane import Lane, NotAsPromised
from tests.soak.server import SoakRequest, text_of
from tests.soak.web import BAD_PATHS

GREEDY = {"temperature": 0, "repetition_penalty": 1, "top_p": 1, "seed": 0, "max_new_tokens": 24}
LONG = {"max_new_tokens": 900, "min_new_tokens": 900, "num_outputs": 16}
ANSWER_SECONDS = 60.0
NUM_AT_ONCE = 6
SERVERS = (
    {"COG_PREDICT_TYPE_STUB": "predict.py:Predictor", "COG_MAX_CONCURRENCY": "1"},
    {"COG_PREDICT_TYPE_STUB": "predict.py:ConcurrentPredictor", "COG_MAX_CONCURRENCY": "8"},
)


class Predictions:
    """Asks for answers that are known, and for what is to be refused."""

    def __init__(
        self, lane: Lane, prompts: list[str], good: Mapping[str, bytes], bad: Mapping[str, bytes]
    ) -> None:
        self._lane, self._prompts = lane, prompts
        self._good, self._bad = dict(good), dict(bad)
        self._known: dict[tuple[str, str], str] = {}

    def learn(self) -> None:
        """Note the right answers, one quiet request each."""
        for name in ("", *self._good):
            for prompt in self._prompts:
                end = self._lane.end_of(self._ask(prompt, name, "good"), ANSWER_SECONDS)
                assert end["status"] == "succeeded", end
                self._known[name, prompt] = text_of(end)
        answers = [tuple(self._known[name, p] for p in self._prompts) for name in ("", *self._good)]
        assert len(set(answers)) == len(answers), "two adapters answer alike: nothing is shown"

    def actions(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """Return what can be done, and how often it is drawn."""
        return {
            "prediction": (6, self._one),
            "predictions at once": (4, self._many),
            "bad weights": (4, self._bad_weights),
            "slow or broken weights URL": (4, self._bad_url),
            "prediction canceled": (3, self._cancel),
            "prediction with oversized values": (4, self._oversized),
            "prediction server killed": (1, self._kill_server),
            "prediction worker killed": (1, self._kill_worker),
            "prediction server ended by SIGTERM": (1, self._terminate),
        }

    def _ask(self, prompt: str, name: str, way: str) -> SoakRequest:
        weights = {"replicate_weights": self._source(name, self._good[name], way)} if name else {}
        return self._lane.ask(prompt=prompt, **GREEDY, **weights)

    def _source(self, name: str, content: bytes, way: str) -> str:
        if way == "data":
            return f"data:;base64,{base64.b64encode(content).decode()}"
        self._lane.web.files[f"{name}.tar"] = content
        return f"{self._lane.web.address}/{way}/{name}.tar"

    def _draw(self) -> tuple[str, str, SoakRequest]:
        """Send a request whose answer is known."""
        rng = self._lane.rng
        name, prompt = rng.choice(["", *self._good]), rng.choice(self._prompts)
        way = rng.choice(["good", "good", "data", "slow"])
        return name, prompt, self._ask(prompt, name, way)

    def _check(self, name: str, prompt: str, request: SoakRequest) -> None:
        end = self._lane.end_of(request, ANSWER_SECONDS)
        if end["status"] != "succeeded":
            self._lane.check_error(end)
            raise NotAsPromised(f"{name or 'base'}: {end['status']}, {end.get('error')}"[:400])
        if text_of(end) != self._known[name, prompt]:
            self._lane.row.wrong += 1
            self._lane.note(f"{name or 'base'}: {text_of(end)!r} != {self._known[name, prompt]!r}")

    def _one(self) -> None:
        self._check(*self._draw())
        self._lane.row.as_promised += 1

    def _many(self) -> None:
        """Known answers, refusals and a canceled request beside each other."""
        # One slot takes one at a time, in whichever order.
        if self._lane.extra["COG_MAX_CONCURRENCY"] == "1":
            for _ in range(NUM_AT_ONCE):
                self._check(*self._draw())
        else:
            bad = self._ask_bad("data")
            canceled = self._lane.ask(prompt=self._prompts[0], **{**GREEDY, **LONG})
            drawn = [self._draw() for _ in range(NUM_AT_ONCE)]
            canceled.cancel()
            for one in drawn:
                self._check(*one)
            if self._lane.end_of(bad, ANSWER_SECONDS)["status"] != "failed":
                raise NotAsPromised("bad weights were taken")
            self._lane.end_of(canceled, ANSWER_SECONDS)
        self._lane.row.as_promised += 1

    def _ask_bad(self, way: str) -> SoakRequest:
        name = self._lane.rng.choice(list(self._bad))
        source = self._source(f"bad-{name}", self._bad[name], way)
        return self._lane.ask(prompt="x", **GREEDY, replicate_weights=source)

    def _bad_weights(self) -> None:
        request = self._ask_bad(self._lane.rng.choice(["data", "good"]))
        self._lane.expect_refusal(self._lane.end_of(request, ANSWER_SECONDS))
        self._check(*self._draw())

    def _bad_url(self) -> None:
        name = self._lane.rng.choice(list(self._good))
        way = self._lane.rng.choice(BAD_PATHS)
        # A name of its own: what was fetched from a URL once is not fetched again.
        source = self._source(f"{name}-{time.monotonic_ns()}", self._good[name], way)
        request = self._lane.ask(prompt="x", **GREEDY, replicate_weights=source)
        self._lane.expect_refusal(self._lane.end_of(request, ANSWER_SECONDS))
        self._check(*self._draw())

    def _cancel(self) -> None:
        request = self._start_long()
        expected = "canceled" if request.wait(0) is None else "succeeded"
        self._lane.struck = time.monotonic()
        for _ in range(self._lane.rng.choice([1, 2])):
            request.cancel()
        end = self._lane.end_of(request, ANSWER_SECONDS)
        if end["status"] != expected:
            raise NotAsPromised(f"expected {expected}, found {end['status']}: {end.get('error')}")
        if time.monotonic() - self._lane.struck > 10:
            raise NotAsPromised(f"canceled after {time.monotonic() - self._lane.struck:.0f} s")
        self._check(*self._draw())
        self._lane.row.as_promised += 1

    def _start_long(self) -> SoakRequest:
        request = self._lane.ask(prompt=self._lane.rng.choice(self._prompts), **{**GREEDY, **LONG})
        request.wait(self._lane.rng.uniform(0, 2))
        return request

    def _oversized(self) -> None:
        values: Mapping[str, Any] = self._lane.rng.choice(PREDICTION_VALUES)
        request = self._lane.ask(**{"prompt": "x", **GREEDY, **values})
        end = self._lane.end_of(request, ANSWER_SECONDS)
        if end["status"] != "failed":
            raise NotAsPromised(f"{json.dumps(values)[:60]}: {end['status']}")
        self._lane.expect_refusal(end)

    def _kill_server(self) -> None:
        self._start_long()
        self._strike(signal.SIGKILL)
        self._lane.take_down(1, left_seconds=2)
        self._lane.row.as_promised += 1

    def _kill_worker(self) -> None:
        self._start_long()
        self._swap()
        self._lane.kill_worker()
        self._lane.row.as_promised += 1

    def _terminate(self) -> None:
        self._start_long()
        self._strike(signal.SIGTERM)
        self._lane.take_down(15, left_seconds=15)
        self._lane.row.as_promised += 1

    def _strike(self, number: signal.Signals) -> None:
        self._lane.struck = time.monotonic()
        self._swap()
        self._lane.server.signal(number)

    def _swap(self) -> None:
        """Have either predictor when the server is started next."""
        self._lane.extra = dict(self._lane.rng.choice(SERVERS))
