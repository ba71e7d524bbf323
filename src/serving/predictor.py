"""A request from its inputs to a stream of text."""

import os
import secrets
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.base_models import KNOWN_MODELS
from src.errors import UserError
from src.serving.adapters import LoadedAdapter, adapter_bytes_limit
from src.serving.detokenizer import Detokenizer
from src.serving.engine import Engine
from src.serving.sampling import SamplingSettings
from src.serving.stopping import StopBuffer, parse_stop_sequences
from src.text.formats import Speech, build_speech
from src.weights.adapter import Manifest, read_adapter
from src.weights.base_model import find_base_model
from src.weights.cache import WeightsCache

RecordMetric = Callable[..., None]
MAX_LOADED_ADAPTERS = 8
MAX_PROMPT_CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class Adapter:
    """Fine-tuned weights on the device, and how they want to be spoken to."""

    loaded: LoadedAdapter | None
    manifest: Manifest


BARE = Adapter(None, Manifest())


class TextPredictor:
    """Answers prompts; each request gets exactly the weights it names."""

    def __init__(self, weights: str | None) -> None:
        started = time.monotonic()
        base_model = find_base_model(os.environ)
        known = KNOWN_MODELS.get(base_model.name)
        self._base_model = base_model.name
        self._engine = Engine(
            base_model.folder,
            known_context=known.context if known else None,
            in_4bit=os.environ.get("BASE_MODEL_IN_4BIT") == "1",
        )
        cache = os.environ.get("WEIGHTS_CACHE") or Path(tempfile.gettempdir()) / "weights-cache"
        self._cache = WeightsCache(
            Path(cache), max_archive_bytes=adapter_bytes_limit(self._engine.linear_shapes)
        )
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        root = os.environ.get("WEIGHTS_DIR")
        self._weights_dir = Path(root) if root else None
        self._own = self._adapter(weights, local_root=None) if weights else BARE
        print(f"ready after {time.monotonic() - started:.1f} s", flush=True)

    def stream(self, request: Mapping[str, Any], *, record_metric: RecordMetric) -> Iterator[str]:
        """Yield the answer as it is generated, and record the metrics of the request.

        Raises UserError for a request that cannot be answered.
        """
        started = time.monotonic()
        seed = request["seed"]
        if seed is None:
            seed = secrets.randbelow(2**31)
            print(f"seed {seed}", flush=True)
        # Cog lets 3.0 pass for an integer.
        settings = SamplingSettings(
            **{
                name: kind(seed if name == "seed" else request[name])
                for name, kind in SamplingSettings.__annotations__.items()
            }
        )
        stop_sequences = parse_stop_sequences(request["stop_sequences"])
        adapter = self._requested(request["replicate_weights"])
        speech = self._speech(request, adapter)
        prompt_ids = self._prompt_ids(request, speech)
        if request["debug"]:
            self._log_prompt(prompt_ids)
        answer = _Answer(self._engine, prompt_ids, settings, stop_sequences, adapter.loaded)
        first_piece_seconds = None
        try:
            for piece in answer.pieces(speech.prompt_format.answer_prefix):
                if first_piece_seconds is None:
                    first_piece_seconds = time.monotonic() - started
                yield piece
        finally:
            seconds = time.monotonic() - started
            metrics = {
                "input_token_count": len(prompt_ids),
                "output_token_count": answer.num_tokens,
                "time_to_first_token": round(answer.first_token_seconds or seconds, 4),
                "tokens_per_second": round(answer.num_tokens / max(seconds, 1e-9), 2),
                "finish_reason": answer.finish_reason,
                "seed": seed,
            }
            for name, value in metrics.items():
                record_metric(name, value)
            if request["debug"]:
                self._log_costs(metrics, seconds)

    def _requested(self, source: str | None) -> Adapter:
        if not source:
            return self._own
        is_path = source[:5].lower() != "data:" and "://" not in source
        if is_path and self._weights_dir is None:
            raise UserError(
                "replicate_weights: expected an http(s) or data: URL; paths are served from "
                "WEIGHTS_DIR, which is not set here"
            )
        return self._adapter(source, local_root=self._weights_dir)

    def _adapter(self, source: str, *, local_root: Path | None) -> Adapter:
        """Return the weights a source names; what is loaded is known by its content alone."""
        weights = self._cache.get(source, local_root=local_root)
        adapter = self._loaded.get(weights.key)
        if adapter is None:
            file = read_adapter(weights.folder, self._engine.linear_shapes)
            adapter = Adapter(self._engine.load_adapter(file), file.manifest)
            self._loaded[weights.key] = adapter
            while len(self._loaded) > MAX_LOADED_ADAPTERS:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(weights.key)
        return adapter

    def _speech(self, request: Mapping[str, Any], adapter: Adapter) -> Speech:
        template, own_system = request["prompt_template"], adapter.manifest.system_prompt
        if template is None:
            template = adapter.manifest.prompt_template
        return build_speech(
            self._base_model,
            self._engine.tokenizer,
            template=template,
            system_prompt=own_system,
        )

    def _prompt_ids(self, request: Mapping[str, Any], speech: Speech) -> list[int]:
        limit = self._engine.context * MAX_PROMPT_CHARACTERS_PER_TOKEN
        for name in ("prompt", "system_prompt", "prompt_template"):
            text = request[name] or ""
            if len(text) > limit:
                raise UserError(
                    f"{name}: expected at most {limit:,} characters, found {len(text):,}"
                )
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{name}: expected Unicode text, found half of a surrogate pair"
                ) from None
        dialogue = speech.of_prompt(request["prompt"], request["system_prompt"])
        ids = self._engine.tokenizer.encode_pieces(speech.prompt_format.pieces(dialogue))
        return ids or [self._engine.tokenizer.eos_id]

    def _log_prompt(self, prompt_ids: list[int]) -> None:
        text = self._engine.tokenizer.tokenizer.decode(prompt_ids)
        print(f"prompt, {len(prompt_ids)} tokens: {text!r}", flush=True)

    def _log_costs(self, metrics: Mapping[str, Any], seconds: float) -> None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{seconds:.2f} s, peak memory {peak:.2f} GB, {dict(metrics)}", flush=True)


class _Answer:
    """One answer, from tokens to text that is sure to stand."""

    def __init__(
        self,
        engine: Engine,
        prompt_ids: list[int],
        settings: SamplingSettings,
        stop_sequences: tuple[str, ...],
        adapter: LoadedAdapter | None,
    ) -> None:
        self._engine, self._settings = engine, settings
        self._detokenizer = Detokenizer(engine.tokenizer, prompt_ids)
        self._stop = StopBuffer(stop_sequences)
        self._started = time.monotonic()
        self._tokens = engine.generate(prompt_ids, settings, adapter=adapter)
        self.num_tokens = 0
        self.first_token_seconds: float | None = None
        self.finish_reason = "canceled"

    def pieces(self, answer_prefix: str) -> Iterator[str]:
        """Yield the text, without what the format puts before an answer."""
        prefix, is_stopped = answer_prefix, False
        self.finish_reason = "canceled"
        for text, can_stop in self._texts():
            if prefix and text:
                text, prefix = text.removeprefix(prefix), ""
            if can_stop:
                text, is_stopped = self._stop.push(text)
            if text:
                yield text
            if is_stopped:
                self.finish_reason = "stop"
                return
        if rest := self._stop.flush():
            yield rest
        self.finish_reason = self._end

    def _texts(self) -> Iterator[tuple[str, bool]]:
        self._end = "length"
        for token in self._tokens:
            self.num_tokens += 1
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self._started
            if token in self._engine.tokenizer.end_ids:
                self._end = "end"
                break
            can_stop = self.num_tokens > self._settings.min_new_tokens
            yield self._detokenizer.push(token), can_stop
        yield self._detokenizer.flush(), True
