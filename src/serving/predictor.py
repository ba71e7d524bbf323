"""A request from its inputs to a stream of text, for one client at a time or for many."""

import asyncio
import gc
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any

from src.base_models import describe_model
from src.chat.chat_format import ChatFormat, build_chat_format, describe_answers
from src.environment import cache_folder, read_serve_environment
from src.errors import UserError
from src.model.precision import dtype_name
from src.out_of_memory import release_memory
from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Grammar
from src.serving.grammar.json_grammar import JsonGrammars
from src.serving.inputs import RequestInputs, build_conversation, parse_inputs
from src.serving.lora.host_cache import BARE, Adapter, AdapterStore
from src.serving.lora.weights import adapter_bytes_limit
from src.serving.metrics import ProcessMetrics
from src.serving.output.request_state import RequestState
from src.serving.warm_up import warm_up
from src.weights.adapter.adapter import read_adapter
from src.weights.base_model.base_model import find_base_model
from src.weights.base_model.same_model import ServedModel
from src.weights.cache.cache import Weights, WeightsCache
from src.weights.download.deadline import CancelToken, never

RecordMetric = Callable[..., None]
MAX_PREPARING = 64
WAIT_SECONDS = 0.5
"""Cog's cancel is not noticed by a thread that waits without end."""


class TextPredictor:
    """Answers prompts; each request gets exactly the weights it names."""

    def __init__(self, weights: str | None) -> None:
        started = time.monotonic()
        environment = read_serve_environment(os.environ)
        base_model = find_base_model(os.environ)
        self._base_model, self._revision = ServedModel.of(base_model), base_model.revision
        self._engine = Engine(
            base_model.folder,
            known_max_seq_len=describe_model(base_model.name).max_seq_len,
            in_4bit=environment.in_4bit,
            dtype=environment.dtype,
            in_float8=environment.in_float8,
            compile=environment.compile,
            code_folder=cache_folder(os.environ) / "compiled",
            max_context=environment.max_context,
            cache_bytes=environment.cache_bytes,
            tensor_parallel=environment.tensor_parallel,
            can_speculate=environment.can_speculate,
        )
        limit = adapter_bytes_limit(self._engine.linear_shapes)
        cache = WeightsCache(environment.weights_cache, max_archive_bytes=limit, own_url=weights)
        self._store = AdapterStore(cache, self._load)
        self._process = ProcessMetrics(self._engine, self._store, cache)
        self._grammars = JsonGrammars(self._engine.tokenizer, vocab_size=self._engine.vocab_size)
        self._preparing = ThreadPoolExecutor(MAX_PREPARING, thread_name_prefix="prepare")
        self._fetching = ThreadPoolExecutor(MAX_PREPARING, thread_name_prefix="fetch")
        """For requests that name weights, which may take long: others never wait for them."""
        self._weights_dir = environment.weights_dir
        self._own = self._store.acquire(weights, local_root=None) if weights else BARE
        warm_up_seconds = warm_up(self._engine, self._own.loaded)
        release_memory()  # weights that became parts of wider ones have left gaps
        # What stays for good is not searched again: a full collection would hold up all answers.
        gc.freeze()
        print(
            f"ready after {time.monotonic() - started:.1f} s "
            f"(model {self._engine.load_seconds:.1f}, warm-up {warm_up_seconds:.1f}), "
            f"{dtype_name(self._engine.dtype)}, {self._engine.num_slots} requests at once",
            flush=True,
        )

    def stream(self, request: Mapping[str, Any], *, record_metric: RecordMetric) -> Iterator[str]:
        """Yield the answer as it is generated, and record the metrics of the request.

        Raises UserError for a request that cannot be answered.
        """
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        with ExitStack() as cleanup, self._process.request():
            state = self._prepare(request)
            cleanup.callback(self._end, state, record_metric)
            state.submit(lambda *event: events.put(event))
            while not state.is_over:
                try:
                    event = events.get(timeout=WAIT_SECONDS)
                except queue.Empty:
                    self._engine.check_alive()
                    continue
                if text := state.push(*event):
                    yield text

    async def stream_async(
        self,
        request: Mapping[str, Any],
        *,
        record_metric: RecordMetric,
        on_submitted: Callable[[], object] = lambda: None,
    ) -> AsyncIterator[str]:
        """Like `stream`, with others answered at the same time.

        `on_submitted` is called when the request is prepared and the engine has it.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        with ExitStack() as cleanup, self._process.request():
            state = await self._prepare_aside(request)
            cleanup.callback(self._end, state, record_metric)
            state.submit(lambda *event: loop.call_soon_threadsafe(events.put_nowait, event))
            on_submitted()
            while not state.is_over:
                try:
                    # Not wait_for: up to Python 3.11 it loses a cancel that comes with an event.
                    async with asyncio.timeout(WAIT_SECONDS):
                        event = await events.get()
                except TimeoutError:
                    self._engine.check_alive()
                    continue
                if text := state.push(*event):
                    yield text

    def describe(self) -> dict[str, Any]:
        """Return which base model answers, in what form, and how much at once."""
        return {
            **describe_answers(self._base_model.name, self._engine.tokenizer),
            "name": self._base_model.short_name,
            "revision": self._revision,
            "max_seq_len": self._engine.max_seq_len,
            "num_slots": self._engine.num_slots,
        }

    def check_alive(self) -> None:
        """Raise an error where no request will be answered any more."""
        self._engine.check_alive()

    def process_metrics(self) -> dict[str, Any]:
        """Return what each request records as `process`."""
        return self._process.now()

    def close(self) -> None:
        """End all requests, and the threads that serve them."""
        self._engine.close()
        for pool in (self._preparing, self._fetching):
            pool.shutdown(wait=False, cancel_futures=True)
        gc.unfreeze()

    async def _prepare_aside(self, request: Mapping[str, Any]) -> RequestState:
        canceled = threading.Event()
        pool = self._fetching if request["replicate_weights"] else self._preparing
        # In the context of the caller, who may tell by it whose log a printed line belongs to.
        prepare = partial(copy_context().run, self._prepare)
        preparing = pool.submit(prepare, request, canceled.is_set)
        try:
            return await asyncio.wrap_future(preparing)
        except asyncio.CancelledError:
            canceled.set()
            preparing.add_done_callback(self._abandon)
            raise

    def _end(self, state: RequestState, record_metric: RecordMetric) -> None:
        state.cancel()
        self._release(state.adapter)
        for name, value in state.metrics().items():
            record_metric(name, value)
        record_metric("process", self.process_metrics())
        if state.inputs.debug:
            state.log_costs()

    def _abandon(self, preparing: "Future[RequestState]") -> None:
        if not preparing.cancelled() and preparing.exception() is None:
            self._release(preparing.result().adapter)

    def _prepare(
        self, request: Mapping[str, Any], is_canceled: CancelToken = never
    ) -> RequestState:
        received_at = time.monotonic()
        inputs = parse_inputs(request, max_seq_len=self._engine.max_seq_len)
        grammars: list[Grammar | None] = [None] * inputs.num_outputs
        if inputs.json_schema is not None:
            grammar = self._grammars.start(inputs.json_schema)
            grammars = [grammar, *(grammar.copy() for _ in grammars[1:])]
        adapter = self._requested(inputs.replicate_weights, is_canceled)
        try:
            if adapter.warning:
                print(adapter.warning, flush=True)
            chat_format = self._chat_format(inputs, adapter)
            conversation = build_conversation(
                inputs,
                chat_format,
                self._engine.tokenizer,
                max_seq_len=self._engine.max_seq_len,
            )
            prompt_ids = chat_format.prompt_ids(conversation)
            if inputs.debug:
                text = self._engine.tokenizer.show(prompt_ids)
                print(f"prompt, {len(prompt_ids)} tokens: {text!r}", flush=True)
            return RequestState(
                self._engine,
                inputs,
                adapter,
                prompt_ids,
                prefix=chat_format.answer_prefix(conversation),
                grammars=grammars,
                received_at=received_at,
            )
        except BaseException:
            self._release(adapter)
            raise

    def _load(self, weights: Weights) -> Adapter:
        file = read_adapter(weights.folder, self._engine.linear_shapes)
        warning = self._base_model.check(file.manifest)
        return Adapter(self._engine.load_adapter(file, key=weights.key), file.manifest, warning)

    def _requested(self, source: str | None, is_canceled: CancelToken) -> Adapter:
        if not source:
            return self._own
        is_path = source[:5].lower() != "data:" and "://" not in source
        if is_path and self._weights_dir is None:
            raise UserError(
                "replicate_weights: expected an http(s) or data: URL; paths are served from "
                "WEIGHTS_DIR, which is not set here"
            )
        return self._store.acquire(source, local_root=self._weights_dir, is_canceled=is_canceled)

    def _release(self, adapter: Adapter) -> None:
        # The container's own weights stay for good.
        if adapter is not self._own:
            self._store.release(adapter)

    def _chat_format(self, inputs: RequestInputs, adapter: Adapter) -> ChatFormat:
        asked, own = inputs.prompt_template, adapter.manifest.prompt_template
        return build_chat_format(
            self._base_model.name,
            self._engine.tokenizer,
            template=own if asked is None else asked,
            system_prompt=adapter.manifest.system_prompt,
        )
