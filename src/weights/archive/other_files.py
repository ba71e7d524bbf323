"""What stands where an adapter was expected, and how one is made of it."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from src.errors import UserError
from src.files.printable import printable

AS_BASE_MODEL = (
    "merge it into its base model (PEFT's merge_and_unload) and serve that as BASE_MODEL"
)
_KINDS = {
    "adapters.safetensors": "an adapter of MLX; mlx_lm.fuse merges it into its base model, which "
    "is then served as BASE_MODEL",
    "adapter_model.bin": "a pickle, which is never loaded; PEFT makes a safetensors file of it: "
    "PeftModel.from_pretrained(base_model, folder).save_pretrained(new_folder)",
    "pytorch_lora_weights.safetensors": "an adapter of an image model",
    "model*.safetensors": "a whole model, whose folder BASE_MODEL may name",
    "pytorch_model*.bin": "a whole model as a pickle; save it as safetensors, and BASE_MODEL may "
    "name its folder",
    "*.gguf": "a file of llama.cpp; expected the PEFT adapter it was made of",
    "*.pt": "a pickle, which is never loaded; expected what PEFT's save_pretrained writes",
}


def missing_file(name: str, place: str, others: Collection[str]) -> UserError:
    """Return the error for a place that lacks a file of an adapter, with what it has instead."""
    return UserError(f"{place}: {name} is missing; {_describe(name, sorted(others))}")


def _describe(name: str, others: Iterable[str]) -> str:
    others = [other for other in others if not other.rpartition("/")[2].startswith(".")]
    if nested := [other for other in others if other.endswith(f"/{name}")]:
        folders = " and ".join(repr(printable(n.removesuffix(f"/{name}"), 40)) for n in nested[:2])
        return f"it lies in {folders}: expected one such folder itself"
    for pattern, kind in _KINDS.items():
        for other in others:
            if fnmatchcase(other.rpartition("/")[2], pattern):
                return f"found {printable(other, 60)}, {kind}"
    return f"found {printable(', '.join(others) or 'no files', 100)}"
