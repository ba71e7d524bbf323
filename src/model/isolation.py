"""Do examples that share a row see each other? Tried at load, as architectures differ."""

import inspect
from typing import Any

import torch

from src.deterministic import is_nondeterministic
from src.errors import UserError
from src.model.base_model import cannot_run
from src.model.core.attention import Spans
from src.model.core.families.table import dependent_rope
from src.model.transformers_attention import ISOLATED, NO_MASK
from src.out_of_memory import is_out_of_memory

LENGTHS = 6, 8
MAX_ID = 1000


@torch.no_grad()
def find_neighbour_effect(model: Any) -> str | None:
    """Return why an example that shares a row is not what it is alone; None where it is the same.

    Raises UserError for a model whose tokens see those after them: it cannot learn to go on.
    """
    was_training = model.training
    model.eval()
    try:
        return _find_effect(model)
    except Exception as error:  # whatever an architecture raises
        if isinstance(error, UserError) or is_out_of_memory(error) or is_nondeterministic(error):
            raise
        raise UserError(cannot_run(model.config.model_type, "run", error)) from error
    finally:
        model.train(was_training)


def _find_effect(model: Any) -> str | None:
    vocab_size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(MAX_ID, vocab_size), (1, sum(LENGTHS)), generator=generator)
    first, second = ids.to(model.device).split(LENGTHS, dim=1)
    alone = [_scores(model, first), _scores(model, second)]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1  # the rounding of many layers
    if differ(_scores(model, first[:, :-1]), alone[0][:-1], tolerance):
        raise UserError(
            f"base model: {model.config.model_type} lets a token see what comes after it; expected "
            "a causal language model"
        )
    config = model.config.get_text_config()
    if (rope := dependent_rope(config)) is not None:
        return f"its rotary embedding ({rope}) depends on the longest of them"
    if getattr(config, "attention_chunk_size", None):
        return "its attention counts chunks from the beginning of a row"
    if not takes_positions(model):
        return "it takes no positions that begin again"
    if differ(_scores(model, first, second), torch.cat(alone), tolerance):
        return "they would see each other"
    return None


def takes_positions(model: Any) -> bool:
    """Return whether the model is told where each token stands."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _scores(model: Any, *examples: torch.Tensor) -> torch.Tensor:
    """Return the scores (tokens, vocabulary) of examples that share a row."""
    lengths = [example.shape[1] for example in examples]
    options: dict[str, Any] = {}
    if takes_positions(model):
        positions = [torch.arange(length, device=model.device) for length in lengths]
        options["position_ids"] = torch.cat(positions)[None]
    if model.config._attn_implementation == ISOLATED:
        boundaries = (0, *torch.tensor(lengths).cumsum(0).tolist())
        options["spans"] = Spans.between(boundaries, model.device)
        options["attention_mask"] = NO_MASK
    return model(torch.cat(examples, 1), use_cache=False, **options).logits[0].float()


def differ(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Return whether any token's scores differ by more than a share of their spread."""
    distance, spread = (
        (one - other).norm(dim=-1),
        (other - other.mean(-1, keepdim=True)).norm(dim=-1),
    )
    return bool((distance > tolerance * spread).any())
