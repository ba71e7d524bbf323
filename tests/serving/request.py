"""A short greedy request, and its answer."""

from src.serving.predictor import TextPredictor

REQUEST = {
    "prompt": "What?", "system_prompt": None, "prompt_template": None, "max_new_tokens": 3,
    "min_new_tokens": 3, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0,
    "stop_sequences": None, "seed": 1, "debug": False, "replicate_weights": None,
    "tools": None, "messages": None, "json_schema": None, "logprobs": None, "num_outputs": 1,
}  # fmt: skip


def answer(predictor: TextPredictor, weights: str | None) -> str:
    request = {**REQUEST, "replicate_weights": weights}
    return "".join(predictor.stream(request, record_metric=lambda *_, **__: None))
